import csv
import hashlib
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from alexnet.data.prepare import PrepareOptions, normalise, prepare
from alexnet.data.shards import ShardSet
from alexnet.errors import EXIT_DATA, DataError
from tests.conftest import ImageTree

Pixels = npt.NDArray[np.uint8]
Depth = npt.NDArray[np.unsignedinteger]

RISE = np.add.outer(np.arange(0, 80, 2), np.arange(0, 144, 3)).astype(np.uint8)  # 40 x 48
COLOUR = np.stack([RISE, 255 - RISE, np.full_like(RISE, 90)], axis=-1)
GRAY = np.stack([RISE] * 3, axis=-1)
# From EXIF 2.3, Orientation: where the stored image has the upright one's row 0 and column 0.
STORED_AS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),  # stored row 0 is the upright image's right side
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),  # stored row 0 is the upright image's left side
}


def encode(pixels: Depth | Image.Image, kind: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(pixels: Pixels | Image.Image, **options: Any) -> bytes:
    return encode(pixels, "JPEG", quality=95, subsampling=0, **options)


def oriented(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED_AS[orientation](COLOUR))
    return jpeg(stored, exif=exif) if kind == "JPEG" else encode(stored, kind, exif=exif)


def png(side: int, depth: int, rows: bytes) -> bytes:
    """A gray PNG of `side` x `side` pixels, whose data may be too short for it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, depth, 0, 0, 0, 0)
    data = zlib.compress(rows)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def seen_by_tensorflow(encoded: bytes) -> npt.NDArray[np.int64]:
    import tensorflow as tf

    pixels: Pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
    return pixels.astype(np.int64)


def palette() -> Image.Image:
    """RISE in 16 shades of a palette."""
    image = Image.fromarray(RISE // 16, "P")
    image.putpalette([shade for index in range(16) for shade in (index * 16, 7, 200)])
    return image


PALETTE = np.stack([RISE // 16 * 16, np.full_like(RISE, 7), np.full_like(RISE, 200)], axis=-1)
SHADE_3_WHITE = np.where((RISE // 16 == 3)[..., None], np.uint8(255), PALETTE)
HALF = np.concatenate([COLOUR, np.full((40, 48, 1), 128, np.uint8)], axis=-1)
HALF_OVER_WHITE = np.round(COLOUR * (128 / 255) + 255 * (127 / 255)).astype(np.uint8)


@pytest.mark.parametrize(
    ("encoded", "pixels", "tolerance"),
    [
        pytest.param(encode(COLOUR, "PNG"), COLOUR, 0, id="png"),
        pytest.param(encode(RISE, "PNG"), GRAY, 0, id="gray-png"),
        pytest.param(jpeg(COLOUR), COLOUR, 6, id="jpeg"),
        pytest.param(jpeg(COLOUR, progressive=True), COLOUR, 6, id="progressive-jpeg"),
        pytest.param(jpeg(RISE), GRAY, 3, id="gray-jpeg"),
        pytest.param(jpeg(Image.fromarray(COLOUR).convert("CMYK")), COLOUR, 8, id="cmyk-jpeg"),
        pytest.param(encode(RISE.astype(np.uint16) * 257, "PNG"), GRAY, 0, id="16-bit-gray"),
        pytest.param(encode(palette(), "PNG"), PALETTE, 0, id="palette"),
        pytest.param(encode(palette(), "PNG", transparency=3), SHADE_3_WHITE, 0, id="transparent"),
        pytest.param(encode(HALF, "PNG"), HALF_OVER_WHITE, 1, id="rgba"),
        pytest.param(encode(palette(), "GIF"), PALETTE, 0, id="gif"),
        pytest.param(encode(COLOUR, "BMP"), COLOUR, 0, id="bmp"),
        pytest.param(encode(COLOUR, "TIFF"), COLOUR, 0, id="tiff"),
        pytest.param(encode(COLOUR, "WEBP", quality=95), COLOUR, 12, id="webp"),
        pytest.param(
            encode(Image.fromarray((RISE > 90).astype(np.uint8) * 255).convert("1"), "PNG"),
            np.where(GRAY > 90, np.uint8(255), np.uint8(0)),
            0,
            id="black-and-white",
        ),
        *(
            pytest.param(oriented(orientation, kind), COLOUR, tolerance, id=f"{kind}-{orientation}")
            for orientation in STORED_AS
            for kind, tolerance in (("JPEG", 8), ("PNG", 0))
        ),
    ],
)
def test_any_image_becomes_upright_rgb_that_the_training_decodes_alike(
    encoded: bytes, pixels: Pixels, tolerance: int
) -> None:
    written, here = normalise(encoded)
    assert here.dtype == np.uint8
    assert here.shape == pixels.shape
    assert np.abs(here.astype(np.int64) - pixels).max() <= tolerance
    there = seen_by_tensorflow(written)
    assert there.shape == pixels.shape
    assert np.abs(there - pixels).max() <= tolerance


@pytest.mark.parametrize(
    "encoded",
    [encode(COLOUR, "PNG"), encode(RISE, "PNG"), jpeg(COLOUR), jpeg(RISE), oriented(1, "JPEG")],
)
def test_what_needs_no_change_keeps_its_bytes(encoded: bytes) -> None:
    assert normalise(encoded)[0] == encoded


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_of_gray(bits: int) -> None:
    written, here = normalise(png(8, bits, (b"\0" + b"\x1f" * bits) * 8))
    assert here.max() == 255
    np.testing.assert_array_equal(seen_by_tensorflow(written), here)


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "an empty file"),
        (b"text, not pixels", "not an image"),
        (b"<html></html>", "not an image"),
        (jpeg(COLOUR)[:-600], "[Tt]runcated"),
        (encode(COLOUR, "PNG")[:70], "truncated"),
        (png(13_000, 8, bytes(100)), "13000 x 13000 pixels, at most 64000000"),
        (png(2**31 - 1, 8, bytes(100)), "pixels"),
        (png(8_001, 8, bytes(100)), "8001 x 8001 pixels"),
    ],
    ids=["empty", "text", "html", "half-jpeg", "half-png", "large", "monstrous", "just-too-large"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_usable_image_is_refused(encoded: bytes, reason: str) -> None:
    with pytest.raises((DataError, OSError), match=f"(?i){reason}"):
        normalise(encoded)


def end_of_a_file_damaged() -> list[bytes]:
    """A PNG and a JPEG whose last bytes are cut off or changed, one after the other."""
    whole = encode(COLOUR, "PNG"), jpeg(COLOUR)
    cut = [encoded[:-length] for encoded in whole for length in range(1, 30)]
    changed = [
        encoded[:-at] + bytes([encoded[-at] ^ 0xFF]) + encoded[len(encoded) - at + 1 :]
        for encoded in whole
        for at in range(1, 30)
    ]
    return cut + changed


def test_a_damaged_image_is_refused_or_mended_but_never_left_to_the_training() -> None:
    accepted = 0
    for encoded in end_of_a_file_damaged():
        try:
            written, here = normalise(encoded)
        except (DataError, OSError):
            continue
        accepted += 1
        assert seen_by_tensorflow(written).shape == here.shape
    assert accepted


@pytest.mark.xfail(strict=True, reason="a false marker near the end stops TensorFlow, not Pillow")
def test_a_jpeg_that_is_damaged_inside_is_refused_or_decoded_in_training() -> None:
    from alexnet.data.batches import decode_and_resize

    whole, accepted = jpeg(COLOUR), 0
    for at in range(len(whole) // 2, len(whole) - 2, 3):
        try:
            written, _ = normalise(whole[:at] + b"\xff" + whole[at + 1 :])
        except DataError:
            continue
        accepted += 1
        assert decode_and_resize(written, 40).shape == (40, 40, 3)
    assert accepted


CATS_AND_DOGS = tuple(f"{name}/{i}.png" for name in ("검은 고양이", "dogs") for i in range(30))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def rejected_rows(folder: Path) -> list[list[str]]:
    with (folder / "rejected.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("mode", ["folder", "w:", "w:gz"])
@pytest.mark.parametrize("threads", [1, 5])
def test_the_same_images_give_the_same_bytes_in_every_file(
    image_tree: ImageTree, tmp_path: Path, mode: str, threads: int
) -> None:
    root = source = image_tree(*CATS_AND_DOGS)
    if mode != "folder":
        source = tmp_path / "images.tar"
        with tarfile.open(source, mode) as archive:  # type: ignore[call-overload]
            archive.add(root, ".")
    prepare(str(root), tmp_path / "first", PrepareOptions(shard_rows=20))
    prepare(str(source), tmp_path / "second", PrepareOptions(shard_rows=20, threads=threads))
    first = contents(tmp_path / "first")
    assert first == contents(tmp_path / "second")
    assert set(first) >= {"manifest.json", "rejected.csv", "train-00000-of-00003.parquet"}


def test_a_prepared_set_holds_every_image_with_its_label(
    image_tree: ImageTree, tmp_path: Path
) -> None:
    root, progress = image_tree(*CATS_AND_DOGS), list[tuple[int, int]]()
    options = PrepareOptions(validation_share=0.3, shard_rows=16)
    dataset = prepare(
        str(root), tmp_path / "set", options, lambda done, of: progress.append((done, of))
    )
    assert dataset.classes == ("dogs", "검은 고양이")
    assert dataset == ShardSet.open(tmp_path / "set")
    found: list[tuple[bytes, int]] = []
    for split in dataset.splits.values():
        assert split.rows == sum(split.chunk_rows)
        for chunk in range(len(split.chunk_rows)):
            images, labels = split.read_chunk(chunk)
            found += zip(images, labels.tolist(), strict=True)
    wanted = [(p.read_bytes(), int(p.parent.name != "dogs")) for p in root.rglob("*.png")]
    assert sorted(found) == sorted(wanted)
    assert progress == sorted(progress)
    assert progress[-1] == (60, 60)


def test_statistics_are_of_the_training_pixels(image_tree: ImageTree, tmp_path: Path) -> None:
    names = [*(f"train/a/{i}.png" for i in range(9)), *(f"val/a/{i}.png" for i in range(9))]
    root = image_tree(*names)
    (root / "train/b").mkdir()
    Image.fromarray(COLOUR).save(root / "train/b/large.png")  # counts by its pixels
    dataset = prepare(str(root), tmp_path / "set", PrepareOptions(shard_rows=4))
    pixels = np.concatenate(
        [np.asarray(Image.open(p)).reshape(-1, 3) for p in root.glob("train/*/*.png")]
    )
    np.testing.assert_allclose(dataset.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, pixels.std(0), rtol=1e-12)
    statistics = json.loads((tmp_path / "set/manifest.json").read_text())["statistics"]
    covariance = np.cov(pixels.T.astype(float), bias=True)
    np.testing.assert_allclose(statistics["covariance"], covariance, rtol=1e-9)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_decoded_is_left_out_counted_and_listed(
    image_tree: ImageTree, tmp_path: Path
) -> None:
    root = image_tree(*CATS_AND_DOGS)
    damaged = {
        "dogs/text.jpg": (b"no image", "not an image"),
        "dogs/nothing, really.jpg": (b"", "an empty file"),
        "dogs/large.png": (
            png(13_000, 8, bytes(9)),
            "13000 x 13000 pixels, at most 64000000 allowed",
        ),
    }
    for name, (encoded, _) in damaged.items():
        (root / name).write_bytes(encoded)
    dataset = prepare(str(root), tmp_path / "set")
    assert dataset.rejected == 3
    assert sum(split.rows for split in dataset.splits.values()) == 60
    header, *rows = rejected_rows(tmp_path / "set")
    assert header == ["path", "reason"]
    assert sorted(rows) == sorted([name, reason] for name, (_, reason) in damaged.items())


def test_too_much_that_cannot_be_decoded_makes_no_set(
    image_tree: ImageTree, tmp_path: Path
) -> None:
    root, out = image_tree(*CATS_AND_DOGS), tmp_path / "set"
    for i in range(8):  # of 68: 11.8 %
        (root / f"dogs/{i}.jpg").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        prepare(str(root), out)
    for word in (str(root), "of 68", "10% allowed", "dogs/", "not an image"):
        assert word in str(caught.value)
    assert caught.value.exit_code == EXIT_DATA
    assert not (out / "manifest.json").exists()
    with pytest.raises(DataError, match="no such dataset"):
        ShardSet.open(out)

    assert prepare(str(root), out, PrepareOptions(max_rejected=0.12)).rejected == 8


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_training_image_left_makes_no_set(image_tree: ImageTree, tmp_path: Path) -> None:
    root = image_tree(*(f"val/a/{i}.png" for i in range(30)), "train/a/1.png")
    (root / "train/a/1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="training"):
        prepare(str(root), tmp_path / "set")


def test_a_prepared_set_is_not_written_over(image_tree: ImageTree, tmp_path: Path) -> None:
    root, out = image_tree(*CATS_AND_DOGS), tmp_path / "set"
    prepare(str(root), out)
    before = contents(out)
    with pytest.raises(DataError, match="holds a prepared set already"):
        prepare("digits", out)
    assert contents(out) == before


def test_what_an_interrupted_preparation_left_is_in_nobody_s_way(
    image_tree: ImageTree, tmp_path: Path
) -> None:
    root, out = image_tree(*CATS_AND_DOGS), tmp_path / "set"

    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(str(root), out, PrepareOptions(shard_rows=20), interrupt)
    assert "train-00000-of-00003.parquet" in contents(out)
    with pytest.raises(DataError, match="no such dataset"):
        ShardSet.open(out)
    assert sum(split.rows for split in prepare(str(root), out).splits.values()) == 60


def test_nothing_is_made_of_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such dataset"):
        prepare(str(tmp_path / "nothing"), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_digits(digits: Path) -> None:
    dataset = ShardSet.open(digits)
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    assert (train.rows, validation.rows, dataset.rejected) == (1438, 359, 0)
    assert dataset.classes == tuple("0123456789")
    assert rejected_rows(digits) == [["path", "reason"]]
    images, labels = validation.read_chunk(0)
    assert {Image.open(BytesIO(image)).size for image in images} == {(8, 8)}
    counts = np.bincount(labels, minlength=10)
    assert counts.min() > 10  # every chunk mixes the classes
