"""What the measured loaders share: command line, clock, decoders, crop and mirror.

A loader is a function that returns an endless iterator of (images uint8 [..., 32, 227, 227, 3],
labels); its keyword arguments are the settings that can be tuned. No loader comes to the end of an
epoch: the next one follows at once, so that none pays for a pause that a long epoch would hide.

A measurement warms up for as long as it then measures. The rate of the warm-up's second half fixes
a number of images; as many are timed, again if need be, until the time is up. One line of JSON
comes of it. It also says how much of the cores others had meanwhile: where that is more than a
little, nothing has been measured.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

PATCH = 256  # of an image, its centre square of this side
SIZE = 227  # what is cut out of that
BATCH = 32
Batches = Iterator[tuple[Any, Any]]
Images = list[tuple[Path, int]]


def main(
    batches: Callable[..., Any],
    output: str = "",
    convert: Callable[[Images, Path], None] | None = None,
    steps_per_epoch: Callable[[Path], int] | None = None,
) -> None:
    """Measure `batches(data, cores, **settings)`, or write its input if there is none yet.

    `convert(images, path)` writes the exported JPEG files into `path`, which becomes `output`.
    """
    arguments = _arguments()
    data, settings = arguments.data, dict(arguments.setting)
    if arguments.convert:
        if convert and not (data / output).exists():
            partial = data / f"{output}.{os.getpid()}.partial"
            convert(exported(data), partial)
            partial.rename(data / output)
        return
    endless = iter(batches(data, arguments.cores, **settings))
    if arguments.epochs and steps_per_epoch:
        measured = follow_memory(endless, steps_per_epoch(data), arguments.epochs)
    else:
        measured = measure(endless, arguments.seconds)
    print(json.dumps(measured), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="folder of all inputs")
    parser.add_argument("--cores", type=int, default=2, help="how many this process is pinned to")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure")
    parser.add_argument("--setting", type=_setting, nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--epochs", type=int, help="follow the memory over these, not the pace")
    parser.add_argument("--convert", action="store_true", help="only write the loader's input")
    return parser.parse_args()


def _setting(text: str) -> tuple[str, int | str]:
    key, _, value = text.partition("=")
    return key, int(value) if value.isdigit() else value


def measure(batches: Batches, seconds: float) -> dict[str, float]:
    """Return images a second, and the bytes held, at a steady pace."""
    began = time.perf_counter()
    images = _check(next(batches)[0])
    first_batch = time.perf_counter() - began
    _take(batches, seconds / 2)
    taken, spent = _take(batches, seconds / 2)
    block = math.ceil(taken / spent * seconds)
    own, all_ = _family_cpu_seconds(), _cpu_seconds()
    count, spent = _take(batches, 0.95 * seconds, block)
    own, all_ = _family_cpu_seconds() - own, _cpu_seconds() - all_
    return {
        "images_per_second": count * images / spent,
        "rss_bytes": _family_bytes(),
        "images": count * images,
        "seconds": spent,
        "first_batch_seconds": first_batch,
        "cpu_seconds": own,
        "cpu_seconds_of_others": max(0.0, all_ - own),
    }


def _take(batches: Batches, seconds: float, block: int = 1) -> tuple[int, float]:
    """Take blocks of batches until time is up; return how many batches, and the seconds."""
    count, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or not count:
        for _ in range(block):
            next(batches)
        count += block
    return count, spent


def _check(images: Any) -> int:
    """Return how many images there are, if they are what was asked for."""
    shape = tuple(images.shape)
    if shape[-4:] != (BATCH, SIZE, SIZE, 3) or "uint8" not in str(images.dtype):
        raise ValueError(f"a batch is {images.dtype} {shape}, not uint8 [..., 32, 227, 227, 3]")
    return math.prod(shape[:-3])


def follow_memory(batches: Batches, steps_per_epoch: int, epochs: int) -> dict[str, float]:
    """Return the peak over all epochs, and how far the later ones' exceeds the first one's."""
    peaks = [_epoch_peak(batches, steps_per_epoch) for _ in range(epochs)]
    return {
        "rss_bytes": _kilobytes("/proc/self/status", "VmHWM:"),
        "growth_percent": max(0.0, 100 * (max(peaks[1:]) / peaks[0] - 1)),
    }


def _epoch_peak(batches: Batches, steps: int) -> int:
    return max(_resident_after(batches) for _ in range(steps))


def _resident_after(batches: Batches) -> int:
    next(batches)
    return _kilobytes("/proc/self/status", "VmRSS:")


def _family_bytes() -> int:
    """Memory of this process and its descendants; what they share is counted once."""
    family = _family(os.getpid())
    return sum(_kilobytes(f"/proc/{pid}/smaps_rollup", "Pss:") for pid in family)


def _family_cpu_seconds() -> float:
    """Processor time of this process and its descendants."""
    stats = [Path(f"/proc/{pid}/stat").read_text() for pid in _family(os.getpid())]
    ticks = [sum(map(int, stat.rpartition(")")[2].split()[11:13])) for stat in stats]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def _cpu_seconds() -> float:
    """Time that this process' cores did not stand idle, whoever used it or had it stolen."""
    names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    ticks = [sum(map(int, line[1:4] + line[6:9])) for line in lines if line[0] in names]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    children = [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]
    return [pid, *(member for child in children for member in _family(child))]


def _kilobytes(file: str, field: str) -> int:
    """Return a field of a /proc file, in bytes."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def exported(data: Path) -> Images:
    """JPEG files and labels in the order of the prepared set, in which classes are mixed."""
    files = sorted((data / "folder").glob("*/*.jpg"), key=lambda file: file.name)
    return [(file, int(file.parent.name)) for file in files]


def decode_pillow(encoded: bytes) -> Any:
    """Decode with Pillow: uint8 [height, width, 3], RGB."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(BytesIO(encoded)).convert("RGB"))


def decode_opencv(encoded: bytes) -> Any:
    """Decode with OpenCV, straight to RGB."""
    import cv2
    import numpy as np

    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)


def decode_simplejpeg(encoded: bytes) -> Any:
    """Decode with simplejpeg, a binding of libjpeg-turbo."""
    import simplejpeg

    return simplejpeg.decode_jpeg(encoded)


DECODERS = {"pillow": decode_pillow, "opencv": decode_opencv, "simplejpeg": decode_simplejpeg}


def crop_and_mirror(image: Any, draws: Any) -> Any:
    """Cut a square out of the centre patch at random, mirror it one time in two.

    `draws` are three numbers in [0, 1).
    """
    import cv2
    import numpy as np

    top = (image.shape[0] - PATCH) // 2 + int(draws[0] * (PATCH - SIZE + 1))
    left = (image.shape[1] - PATCH) // 2 + int(draws[1] * (PATCH - SIZE + 1))
    square = image[top : top + SIZE, left : left + SIZE]
    return cv2.flip(square, 1) if draws[2] < 0.5 else np.ascontiguousarray(square)
