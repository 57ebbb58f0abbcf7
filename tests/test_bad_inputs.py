"""What people feed it by mistake or out of malice, through the real command line: each becomes
right pixels or one line that says why not, and nothing half-written reads as whole."""

import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from alexnet.config import DataConfig, RunConfig, TrainConfig
from alexnet.data.images import Pixels, decode
from alexnet.data.index import verify
from alexnet.data.shards import ShardSet
from alexnet.data.storage import RangeCache
from alexnet.errors import EXIT_CONFIG, EXIT_DATA, EXIT_OK, DataError
from tests.clusters import ROOT
from tests.disks import small_disk
from tests.test_images import (
    ANIMATED,
    COLOUR,
    DEEP,
    GRAY,
    PALETTE,
    RISE,
    STORED_AS,
    encode,
    jpeg,
    large_jpeg,
    oriented,
    palette,
)

SMOKE = str(ROOT / "configs" / "smoke.yaml")


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "cluster", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def alexnet(*arguments: str) -> "subprocess.Popen[str]":
    process = start(*arguments)
    try:
        process.wait(timeout=120)
    finally:
        process.kill()
    return process


def errors(process: "subprocess.Popen[str]") -> list[str]:
    """The lines of standard error, but for the progress bar."""
    assert process.stderr
    return [line for line in process.stderr.read().splitlines() if not line.startswith("preparing")]


def refusal(process: "subprocess.Popen[str]", exit_code: int = EXIT_DATA) -> str:
    """The one line that a process said before it gave up."""
    lines = errors(process)
    assert process.returncode == exit_code, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("alexnet: ")
    return lines[0]


def is_no_set(out: Path) -> bool:
    """Whether nothing takes `out` for a prepared set."""
    with pytest.raises(DataError, match="no such dataset"):
        ShardSet.open(out)
    return not (out / "manifest.json").exists()


GOOD = encode(COLOUR, "PNG")
CMYK = encode(palette().convert("CMYK"), "JPEG", quality=95, subsampling=0)
ACCEPTED: dict[str, tuple[bytes, Pixels]] = {
    "cmyk.jpg": (CMYK, PALETTE),
    "gray.jpg": (jpeg(RISE), GRAY),
    "gray.png": (encode(RISE, "PNG"), GRAY),
    "16-bit-gray.png": (encode(RISE.astype(np.uint16) * 257, "PNG"), GRAY),
    "16-bit.png": (DEEP, COLOUR),
    "animated.gif": (encode(palette(), "GIF", **ANIMATED), PALETTE),
    "webp.webp": (encode(COLOUR, "WEBP", lossless=True), COLOUR),
    "a png.jpeg": (GOOD, COLOUR),
    **{f"rotated-{turn}.jpg": (oriented(turn, "JPEG"), COLOUR) for turn in STORED_AS},
}
CLASSES = ["a class with spaces", "북극 곰"]
REJECTED = {
    "bomb.jpg": (large_jpeg(13_000, 13_000), "13000 x 13000 pixels, at most 64000000 allowed"),
    "zero bytes.png": (b"", "an empty file"),
    "text.jpg": (b"not an image", "not an image"),
    "phone.HEIC": (b"anything", "HEIC is not read: save it as JPEG or PNG"),
    "scan.tiff": (encode(COLOUR, "TIFF"), "TIFF is not read: save it as JPEG or PNG"),
}


def test_odd_images_become_right_pixels_and_bad_ones_are_listed(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "set"
    for split in ("train", "val"):
        for class_name in CLASSES:
            folder = images / split / class_name
            folder.mkdir(parents=True)
            for name, (encoded, _) in ACCEPTED.items():
                (folder / name).write_bytes(encoded)
    odd = images / "train" / CLASSES[1]
    for name, (encoded, _) in REJECTED.items():
        (odd / name).write_bytes(encoded)
    (odd / "loop.png").symlink_to("loop.png")
    (odd / "folder").symlink_to("..")

    process = alexnet("prepare", str(images), str(out))
    assert (process.returncode, errors(process)) == (EXIT_OK, [])
    dataset = ShardSet.open(out)
    assert dataset.classes == tuple(CLASSES)
    assert dataset.rejected == len(REJECTED) + 1
    listed = (out / "rejected.csv").read_text()
    for name, (_, reason) in REJECTED.items():
        assert f"train/{CLASSES[1]}/{name}," in listed
        assert reason in listed
    assert "Too many levels of symbolic links" in listed
    seen = 0
    for shard in sorted(out.glob("*.parquet")):
        for row in pq.read_table(shard).to_pylist():
            path = Path(row["image"]["path"])
            assert row["label"] == CLASSES.index(path.parent.name)
            wanted = ACCEPTED[path.name][1]
            pixels = decode(row["image"]["bytes"])
            assert pixels.shape == wanted.shape, path
            assert np.abs(pixels.astype(int) - wanted).max() <= 12, path
            seen += 1
    assert seen == 2 * len(CLASSES) * len(ACCEPTED)


def tree(*names: str, content: bytes = GOOD) -> Callable[[Path], Path]:
    def make(tmp_path: Path) -> Path:
        for name in names:
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / "images"

    return make


def archive(kind: str, *names: str, keep: float = 1.0) -> Callable[[Path], Path]:
    def make(tmp_path: Path) -> Path:
        path = tmp_path / f"images.{kind}"
        if kind == "zip":
            with zipfile.ZipFile(path, "w") as file:
                for name in names:
                    file.writestr(name, GOOD)
        else:
            with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as file:
                for name in names:
                    member = tarfile.TarInfo(name)
                    member.size = len(GOOD)
                    file.addfile(member, BytesIO(GOOD))
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        return path

    return make


def broken_directory(tmp_path: Path) -> Path:
    """A zip whose list of members is damaged."""
    path = archive("zip", *PAIR)(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"PK\1\2", b"PK\7\7", 1))
    return path


def link_to_itself(tmp_path: Path) -> Path:
    (tmp_path / "images").symlink_to("images")
    return tmp_path / "images"


def with_empty_class(tmp_path: Path) -> Path:
    (tree(*PAIR)(tmp_path) / "train" / "none").mkdir()
    return tmp_path / "images"


PAIR = ("train/a/1.png", "val/a/2.png")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (tree(*PAIR, content=large_jpeg(13_000, 13_000)), "13000 x 13000 pixels, at most"),
        (tree(*PAIR, content=b""), "images cannot be decoded, more than"),
        (tree("train/a/1.png", "val/a/2.png", "val/북극 곰/3.png"), "'북극 곰' is in validation"),
        (tree("train/a\nb/1.png", "val/a/2.png"), "has a line break in it"),
        (with_empty_class, "folder 'train/none' has no images"),
        (link_to_itself, "no such dataset"),
        (archive("tar", *PAIR, "train/../../a/3.png"), "points out of the archive"),
        (archive("zip", *PAIR, "../3.png"), "points out of the archive"),
        (archive("tar", *PAIR, keep=0.13), "damaged archive"),
        (archive("tar.gz", *PAIR, keep=0.6), "damaged archive"),
        (broken_directory, "damaged archive"),
        (lambda tmp_path: Path("synthetic:few"), "expected synthetic:IMAGES"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_what_cannot_be_prepared_is_told_in_one_line(
    tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    source, out = make(tmp_path), tmp_path / "set"
    said = refusal(alexnet("prepare", str(source), str(out)))
    assert words in said
    assert str(source) in said
    assert is_no_set(out)


def test_an_output_that_is_a_file_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("precious")
    process = alexnet("prepare", "synthetic:20:1:16", str(tmp_path / "set"))
    assert str(tmp_path / "set") in refusal(process)
    assert (tmp_path / "set").read_text() == "precious"


def test_a_prepared_set_is_told_in_one_line(tmp_path: Path, digits: Path) -> None:
    before = (digits / "manifest.json").read_bytes()
    assert "holds a prepared set already" in refusal(alexnet("prepare", "digits", str(digits)))
    assert (digits / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["data.source={tmp}/strange"], EXIT_DATA, "'b' is in validation but not in training"),
        (
            ["data.image_size=80", "data.fit=crop", "data.resize=70"],
            EXIT_CONFIG,
            "resize 70 is less than image_size 80",
        ),
        (["data.evaluation_crops=10"], EXIT_CONFIG, "needs fit: crop"),
    ],
)
def test_what_cannot_be_trained_on_is_told_before_anything_starts(
    tmp_path: Path, overrides: list[str], code: int, words: str
) -> None:
    tree("train/a/1.png", "val/b/2.png")(tmp_path)
    (tmp_path / "images").rename(tmp_path / "strange")
    filled = [text.format(tmp=tmp_path) for text in overrides]
    run, out = tmp_path / "run", tmp_path / "set"
    process = alexnet("train", SMOKE, f"run_dir={run}", f"data.path={out}", *filled)
    assert words in refusal(process, code)
    assert not run.exists()
    assert is_no_set(out)


def test_fewer_rows_than_one_global_batch_are_told(digits: Path) -> None:
    from alexnet.exchange import Alone
    from alexnet.task import Task

    config = RunConfig(
        data=DataConfig(path=str(digits), image_size=67), train=TrainConfig(global_batch=1440)
    )
    with pytest.raises(DataError) as caught:
        Task.build(config, Alone())
    assert str(caught.value) == (
        f"{digits}: 1438 training images are fewer than one global batch of 1440"
    )


def test_of_two_writers_one_is_refused_and_the_set_is_whole(tmp_path: Path) -> None:
    out, source = tmp_path / "set", "synthetic:200:3:96"
    command = ["prepare", source, str(out), "--shard-rows=20"]
    first = start(*command)
    while not list(out.glob("*.parquet")):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # it holds the folder for as long as it lives
    second = alexnet(*command)
    first.send_signal(signal.SIGCONT)
    assert "is being written by another preparation" in refusal(second)
    assert first.wait(timeout=120) == EXIT_OK
    assert errors(first) == []
    assert verify(str(out)) == []
    assert not list(out.glob(".*"))


def test_writers_that_start_together_leave_one_whole_set(tmp_path: Path) -> None:
    out = tmp_path / "set"
    writers = [start("prepare", "synthetic:90:3:160", str(out)) for _ in range(3)]
    codes = [writer.wait(timeout=120) for writer in writers]
    assert sorted(codes) == [EXIT_OK, EXIT_DATA, EXIT_DATA]
    for writer in writers:
        if writer.returncode:
            assert "preparation" in (said := refusal(writer)) or "holds a prepared set" in said
    assert verify(str(out)) == []


def test_a_full_disk_is_told_and_prepare_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        command = ["prepare", "synthetic:200:2:128", str(disk / "set"), "--shard-rows=20"]
        said = refusal(alexnet(*command))
        assert f"{disk / 'set'}: the disk is full; make room and run it again" in said
        assert is_no_set(disk / "set")
        written = {path.name: path.stat().st_mtime_ns for path in disk.glob("set/*.parquet")}
        assert written
        assert not list(disk.glob("set/.*.partial"))

        room = ["mount", "-o", "remount,size=64m", str(disk)]
        subprocess.run(room, check=True, timeout=60)
        process = alexnet(*command)
        assert (process.returncode, errors(process)) == (EXIT_OK, [])
        for name, written_at in written.items():
            assert (disk / "set" / name).stat().st_mtime_ns == written_at
        assert verify(str(disk / "set")) == []
        command[2] = str(tmp_path / "elsewhere")
        assert alexnet(*command).returncode == EXIT_OK
        for path in (tmp_path / "elsewhere").iterdir():
            assert (disk / "set" / path.name).read_bytes() == path.read_bytes()


def test_a_disk_too_full_for_the_smallest_file_is_told(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        (disk / "other").write_bytes(bytes(64 << 10))
        assert "disk is full" in refusal(alexnet("prepare", "synthetic:20:1:16", str(disk / "set")))
        assert is_no_set(disk / "set")


def test_a_full_disk_makes_the_range_cache_slower_but_not_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pieces = {f"piece-{i}": bytes([i]) * 300_000 for i in range(8)}
    fetched: list[str] = []
    with small_disk(tmp_path / "disk", "1m") as disk:
        cache = RangeCache(disk / "cache", limit=1 << 30)

        def get(name: str) -> bytes:
            return cache.get(name, lambda: fetched.append(name) or pieces[name])  # type: ignore[func-returns-value]

        for _ in range(2):
            for name, data in pieces.items():
                assert get(name) == data
        kept = {path.name: path.read_bytes() for path in (disk / "cache").iterdir()}
        assert 1 <= len(kept) <= 3
        assert all(pieces[name] == data for name, data in kept.items())
        assert len(fetched) == 16 - len(kept)
    assert "cannot cache" in caplog.text
    assert "No space left" in caplog.text
