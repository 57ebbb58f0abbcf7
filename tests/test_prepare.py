import csv
import hashlib
import os
import shutil
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alexnet.data.images import decode
from alexnet.data.prepare import PrepareOptions, prepare
from alexnet.data.shards import ShardSet
from alexnet.errors import EXIT_DATA, DataError
from tests.conftest import ImageTree
from tests.test_images import COLOUR, encode, jpeg, png

CATS_AND_DOGS = tuple(f"{name}/{i}.png" for name in ("검은 고양이", "dogs") for i in range(30))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def rejected_rows(folder: Path) -> list[list[str]]:
    with (folder / "rejected.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("mode", ["folder", "w:", "w:gz", "zip"])
@pytest.mark.parametrize("workers", [1, 5])
def test_the_same_images_give_the_same_bytes_in_every_file(
    image_tree: ImageTree, tmp_path: Path, mode: str, workers: int
) -> None:
    root = source = image_tree(*CATS_AND_DOGS)
    if mode == "zip":
        source = Path(shutil.make_archive(str(tmp_path / "images"), "zip", root))
    elif mode != "folder":
        source = tmp_path / "images.tar"
        with tarfile.open(source, mode) as archive:  # type: ignore[call-overload]
            archive.add(root, ".")
    prepare(str(root), tmp_path / "first", PrepareOptions(shard_rows=20))
    prepare(str(source), tmp_path / "second", PrepareOptions(shard_rows=20, workers=workers))
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
            read = split.read_chunk(chunk)
            assert not read.bad
            images = [bytes(image) for image in read.images if image is not None]
            found += zip(images, read.labels.tolist(), strict=True)
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
    covariance = np.cov(pixels.T.astype(float), bias=True)
    np.testing.assert_allclose(dataset.covariance, covariance, rtol=1e-9)


@pytest.mark.filterwarnings("error")
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


def test_a_pipe_is_not_waited_for(image_tree: ImageTree, tmp_path: Path) -> None:
    root = image_tree(*CATS_AND_DOGS)
    os.mkfifo(root / "dogs/pipe.jpg")
    prepare(str(root), tmp_path / "set")
    assert rejected_rows(tmp_path / "set")[1:] == [["dogs/pipe.jpg", "not a regular file"]]


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


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_of_which_no_image_is_left_makes_no_set(
    image_tree: ImageTree, tmp_path: Path, split: str
) -> None:
    other = {"train": "val", "val": "train"}[split]
    root = image_tree(*(f"{other}/a/{i}.png" for i in range(30)), "train/a/1.png", "val/a/1.png")
    (root / split / "a/1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=f"none of the {split}[a-z]* images can be decoded"):
        prepare(str(root), tmp_path / "set")
    assert not (tmp_path / "set/manifest.json").exists()


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
    chunk = validation.read_chunk(0)
    assert {decode(image).shape for image in chunk.images if image is not None} == {(8, 8, 3)}
    counts = np.bincount(chunk.labels, minlength=10)
    assert counts.min() > 10  # every chunk mixes the classes


def bytes_in(dataset: ShardSet) -> dict[str, bytes]:
    """Every image as a stranger reads it, by its path."""
    found = {}
    for split in dataset.splits.values():
        for shard in split.shards:
            for row in pq.read_table(split.folder.local / shard.file)["image"].to_pylist():
                found[row["path"]] = row["bytes"]
    return found


def images_in(dataset: ShardSet) -> dict[str, Image.Image]:
    return {path: Image.open(BytesIO(encoded)) for path, encoded in bytes_in(dataset).items()}


SHAPES = {"wide": (60, 100), "tall": (90, 40), "square": (50, 50), "small": (20, 30)}


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Images of several shapes, each as PNG and as JPEG, in both splits."""
    for name, (height, width) in SHAPES.items():
        x = np.linspace(0, 255, width).astype(np.uint8)
        pixels = np.broadcast_to(x[None, :, None], (height, width, 3))
        for split in ("train", "val"):
            folder = tmp_path / "shapes" / split / "a"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.png").write_bytes(encode(np.ascontiguousarray(pixels), "PNG"))
            (folder / f"{name}.jpg").write_bytes(jpeg(np.ascontiguousarray(pixels)))
    return tmp_path / "shapes"


def test_a_size_is_of_the_shorter_side(shapes: Path, tmp_path: Path) -> None:
    dataset = prepare(str(shapes), tmp_path / "set", PrepareOptions(size=50))
    found = images_in(dataset)
    assert len(found) == 4 * len(SHAPES)
    for path, image in found.items():
        height, width = SHAPES[Path(path).stem]
        scale = 50 / min(height, width)
        assert (image.height, image.width) == (round(height * scale), round(width * scale))
        changed = min(height, width) != 50
        assert image.format == ("JPEG" if changed or path.endswith("jpg") else "PNG")
        row = np.asarray(image.convert("RGB"))[image.height // 2, :, 0].astype(float)
        np.testing.assert_allclose(row, np.linspace(0, 255, image.width), atol=9)


def test_what_has_the_size_keeps_its_bytes(shapes: Path, tmp_path: Path) -> None:
    prepare(str(shapes), tmp_path / "plain")
    prepare(str(shapes), tmp_path / "sized", PrepareOptions(size=50))
    plain, sized = (bytes_in(ShardSet.open(tmp_path / name)) for name in ("plain", "sized"))
    for name in ("train/a/square.png", "val/a/square.jpg"):
        assert plain[name] == sized[name] == (shapes / name).read_bytes()


def test_raw_pixels_are_those_of_the_image(shapes: Path, tmp_path: Path) -> None:
    found = images_in(prepare(str(shapes), tmp_path / "set", PrepareOptions(store="raw")))
    for path, image in found.items():
        assert image.format == "PPM"
        np.testing.assert_array_equal(image, decode((shapes / path).read_bytes()))


def test_raw_pixels_of_a_size_are_of_the_centre_square(shapes: Path, tmp_path: Path) -> None:
    options = PrepareOptions(store="raw", size=50)
    dataset = prepare(str(shapes), tmp_path / "set", options)
    for path, image in images_in(dataset).items():
        assert (image.height, image.width) == (50, 50)
        height, width = SHAPES[Path(path).stem]
        whole = np.linspace(0, 255, round(width * 50 / min(height, width)))
        begin = (len(whole) - 50) // 2
        row = np.asarray(image)[25, :, 0].astype(float)
        np.testing.assert_allclose(row, whole[begin : begin + 50], atol=9)


def test_statistics_are_of_the_pixels_that_are_stored(shapes: Path, tmp_path: Path) -> None:
    options = PrepareOptions(store="raw", size=50)
    dataset = prepare(str(shapes), tmp_path / "set", options)
    train = [np.asarray(i) for path, i in images_in(dataset).items() if path.startswith("train")]
    pixels = np.concatenate([image.reshape(-1, 3) for image in train])
    np.testing.assert_allclose(dataset.mean, pixels.mean(0), rtol=1e-12)


def test_an_image_that_a_size_would_make_huge_is_left_out(shapes: Path, tmp_path: Path) -> None:
    """A line of 40 000 pixels, as high as 256, would take 8 GB."""
    (shapes / "train/a/line.png").write_bytes(encode(np.zeros((1, 40_000, 3), np.uint8), "PNG"))
    dataset = prepare(str(shapes), tmp_path / "set", PrepareOptions(size=256))
    assert dataset.rejected == 1
    reason = "10240000 x 256 pixels, at most 64000000 allowed"
    assert rejected_rows(tmp_path / "set")[1:] == [["train/a/line.png", reason]]


def test_nothing_but_the_set_is_left(image_tree: ImageTree, tmp_path: Path) -> None:
    prepare(str(image_tree(*CATS_AND_DOGS)), tmp_path / "set", PrepareOptions(shard_rows=20))
    names = {path.name for path in (tmp_path / "set").iterdir()}
    shards = {name for name in names if name.endswith(".parquet")}
    assert names == {"manifest.json", "rejected.csv", *shards}
    assert len(shards) == 4
