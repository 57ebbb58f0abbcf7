"""`prepare`: any source to a shard set. Every image is really decoded, once.

Rows are laid out by a hash of their key: the same input gives the same bytes, and every chunk mixes
the classes. What cannot be decoded is listed in `rejected.csv` and left out.
"""

import csv
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import reduce
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from alexnet.data.shards import MANIFEST, SCHEMA_VERSION, Row, Shard, ShardSet, write_shard
from alexnet.data.sources import TRAIN, VALIDATION, Item, Source, open_source
from alexnet.errors import DataError

MAX_PIXELS = 64_000_000
EXIF_ORIENTATION = 0x0112
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"\0\0\0\0IEND\xaeB`\x82"}
Moments = tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How a set is written."""

    validation_share: float = 0.1  # of the images, where the source names no validation split
    shard_rows: int = 4096
    max_rejected: float = 0.1  # share of undecodable images at which the set is refused
    threads: int = 0  # 0: one a core


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    row: Row
    moments: Moments


@dataclass(frozen=True, kw_only=True)
class _Rejected:
    key: str
    reason: str


def prepare(
    source_name: str,
    out: Path,
    options: PrepareOptions = PrepareOptions(),
    progress: Progress = lambda done, total: None,
) -> ShardSet:
    """Write `source_name` to `out` as shards with a manifest; return the opened set.

    Raises:
        DataError: `out` holds a set already, the source is unusable, or too much is rejected.
    """
    if (out / MANIFEST).exists():
        raise DataError(f"{out}: holds a prepared set already; remove it first or name another")
    with open_source(source_name, options.validation_share) as source:
        out.mkdir(parents=True, exist_ok=True)
        _write_set(source_name, source, out, options, progress)
    return ShardSet.open(out)


def _write_set(
    name: str, source: Source, out: Path, options: PrepareOptions, progress: Progress
) -> None:
    classes, done = source.classes, 0
    label_of = {class_name: label for label, class_name in enumerate(classes)}
    splits: dict[str, list[Shard]] = {}
    rejected: list[_Rejected] = []
    moments = _no_moments()

    with ThreadPoolExecutor(options.threads or os.cpu_count()) as pool:
        for split in (TRAIN, VALIDATION):
            items = sorted((i for i in source.items if i.split == split), key=_place)
            blocks = [
                items[at : at + options.shard_rows]
                for at in range(0, len(items), options.shard_rows)
            ]
            shards = splits.setdefault(split, [])
            for number, block in enumerate(blocks):
                results = list(pool.map(lambda i: _decode(source, i, label_of), block))
                rejected += [r for r in results if isinstance(r, _Rejected)]
                _refuse_if_too_many(name, rejected, len(source.items), options.max_rejected)
                good = [r for r in results if isinstance(r, _Decoded)]
                if split == TRAIN:
                    moments = reduce(_add, (r.moments for r in good), moments)
                path = out / f"{split}-{number:05d}-of-{len(blocks):05d}.parquet"
                shards.append(write_shard(path, [r.row for r in good], classes))
                progress(done := done + len(block), len(source.items))

    _write_rejected(out, rejected)
    if not moments[0]:
        raise DataError(f"{name}: none of the training images can be decoded")
    _write_manifest(out, classes, splits, len(rejected), moments)


def _place(item: Item) -> bytes:
    """Where an item stands in its split: shuffled, but the same for ever."""
    return hashlib.sha256(item.key.encode()).digest()


def _decode(source: Source, item: Item, label_of: dict[str, int]) -> _Decoded | _Rejected:
    try:
        encoded, pixels = normalise(source.read(item))
    except (DataError, OSError) as error:
        return _Rejected(key=item.key, reason=str(error))
    row = Row(image=encoded, path=item.key, label=label_of[item.class_name])
    return _Decoded(row=row, moments=_moments(pixels))


def normalise(encoded: bytes) -> tuple[bytes, npt.NDArray[np.uint8]]:
    """Return bytes that every decoder agrees on, and the RGB pixels, uint8 [height, width, 3].

    An upright 8-bit RGB or gray JPEG or PNG with a proper end passes through as it is. Anything
    else (rotated by EXIF, CMYK, palette, alpha, 16 bit, GIF, WebP, BMP) is written anew, alpha over
    white.

    Raises:
        DataError: no image, damaged, or larger than `MAX_PIXELS`.
    """
    if not encoded:
        raise DataError("an empty file")
    try:
        Image.open(BytesIO(encoded)).verify()  # a PNG's checksums, which decoding skips
        image: Image.Image = Image.open(BytesIO(encoded))
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} allowed")
        image.load()
    except UnidentifiedImageError:
        raise DataError("not an image") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(" ".join(str(error).split()) or "damaged") from None
    plain = encoded.endswith(ENDS.get(image.format or "", ())) and image.mode in ("RGB", "L")
    upright = image.getexif().get(EXIF_ORIENTATION, 1) == 1
    if plain and upright:
        return encoded, np.asarray(image.convert("RGB"))
    lossy = image.format in ("JPEG", "WEBP")
    rgb = _to_rgb(ImageOps.exif_transpose(image))
    buffer = BytesIO()
    if lossy:
        rgb.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        rgb.save(buffer, "PNG")
    return buffer.getvalue(), np.asarray(rgb)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 and 32 bit gray: to 8 bits, not clipped
        pixels = np.asarray(image, np.float64)
        image = Image.fromarray((pixels * (255 / max(65535.0, pixels.max()))).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image.convert("RGB")


def _no_moments() -> Moments:
    return 0, np.zeros(3), np.zeros((3, 3))


def _moments(pixels: npt.NDArray[np.uint8]) -> Moments:
    """Pixel count, sum and sum of outer products of the colours."""
    colours = pixels.reshape(-1, 3).astype(np.float64)
    return len(colours), colours.sum(0), colours.T @ colours


def _add(a: Moments, b: Moments) -> Moments:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _refuse_if_too_many(
    name: str, rejected: list[_Rejected], total: int, max_rejected: float
) -> None:
    if len(rejected) > max_rejected * total:
        raise DataError(
            f"{name}: {len(rejected)} of {total} images cannot be decoded, more than the "
            f"{max_rejected:.0%} allowed; the last one: {rejected[-1].key}: {rejected[-1].reason}"
        )


def _write_rejected(out: Path, rejected: list[_Rejected]) -> None:
    with (out / "rejected.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "reason"])
        table.writerows([item.key, item.reason] for item in rejected)


def _write_manifest(
    out: Path, classes: list[str], splits: dict[str, list[Shard]], rejected: int, moments: Moments
) -> None:
    count, total, products = moments
    mean = total / count
    covariance = products / count - np.outer(mean, mean)
    tree = {
        "schema_version": SCHEMA_VERSION,
        "classes": classes,
        "rejected": rejected,
        "statistics": {
            "mean": mean.tolist(),
            "std": np.sqrt(np.diag(covariance)).tolist(),
            "covariance": covariance.tolist(),
        },
        "splits": {
            name: {
                "rows": sum(sum(shard.row_groups) for shard in shards),
                "shards": [asdict(shard) for shard in shards],
            }
            for name, shards in splits.items()
        },
    }
    partial = out / f".{MANIFEST}.partial"
    with partial.open("w") as file:
        json.dump(tree, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(out / MANIFEST)
