import json
import shutil
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alexnet.config import DataConfig, RunConfig
from alexnet.data.batches import evaluation_batches, training_batches
from alexnet.data.index import index, verify
from alexnet.data.order import Order
from alexnet.data.prepare import PrepareOptions, prepare
from alexnet.data.shards import ShardSet
from alexnet.errors import DataError
from alexnet.exchange import Alone
from alexnet.task import Task
from tests.s3 import flaky_s3

CLASSES = ("ant", "bee", "검은 고양이")
CONFIG = DataConfig(image_size=67)


def png(index: int) -> bytes:
    """An image that tells its number: the first pixel is (number, label, 77)."""
    pixels = np.random.default_rng(index).integers(0, 256, (67, 67, 3), np.uint8)
    pixels[0, 0] = index, index % 3, 77
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def all_rows(dataset: ShardSet, split: str) -> list[tuple[int, int]]:
    """Number and label of each row, as training would get them."""
    batches = evaluation_batches(dataset, split, range(dataset.splits[split].rows), CONFIG, 8)
    rows: list[tuple[int, int]] = []
    for images, labels in batches:
        assert (images[:, 0, 0, 0, 2] == 77).all()
        rows += zip(images[:, 0, 0, 0, 0].tolist(), labels.tolist(), strict=True)
    return rows


def struct(images: list[bytes]) -> pa.Array:
    return pa.array([{"bytes": image, "path": None} for image in images])


def byte_lists(images: list[bytes]) -> pa.Array:
    return pa.array([list(image) for image in images], pa.list_(pa.uint8()))


@pytest.mark.parametrize(
    ("image", "column"),
    [
        ("image", struct),
        ("img", struct),
        ("image", lambda images: pa.array(images, pa.binary())),
        ("picture", lambda images: pa.array(images, pa.large_binary())),
        ("image", byte_lists),
    ],
    ids=["struct", "struct-img", "binary", "large-binary", "list-of-bytes"],
)
@pytest.mark.parametrize(
    ("label", "of"),
    [
        ("label", lambda number: number % 3),
        ("fine_label", lambda number: CLASSES[number % 3]),
    ],
    ids=["numbers", "names"],
)
@pytest.mark.parametrize("compression", ["snappy", "none"])
def test_a_set_of_any_usual_columns_is_read_as_it_lies(
    tmp_path: Path, image: str, column: Any, label: str, of: Any, compression: str
) -> None:
    def write(name: str, numbers: range) -> None:
        labels = pa.array([of(number) for number in numbers])
        table = pa.table({label: labels, "other": labels, image: column([png(n) for n in numbers])})
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / name, row_group_size=7, compression=compression)

    write("data/train-00000-of-00002.parquet", range(20))
    write("data/train-00001-of-00002.parquet", range(20, 35))
    write("data/test-00000-of-00001.parquet", range(40, 50))
    dataset = index(str(tmp_path), 0.1)
    assert dataset.classes == (CLASSES if label == "fine_label" else ("0", "1", "2"))
    assert all_rows(dataset, "train") == [(n, n % 3) for n in range(35)]
    assert all_rows(dataset, "validation") == [(n, n % 3) for n in range(40, 50)]
    assert dataset.splits["train"].chunk_rows == (7, 7, 6, 7, 7, 1)
    assert dataset.rejected == 0
    pixels = np.concatenate([np.asarray(Image.open(BytesIO(png(n)))) for n in range(35)])
    np.testing.assert_allclose(dataset.mean, pixels.reshape(-1, 3).mean(0))
    assert verify(str(tmp_path)) == []


def huggingface(folder: Path, held_out: bool) -> None:
    """Write a set with the `datasets` library itself."""
    import datasets

    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES))
    )

    def write(split: str, numbers: range) -> None:
        images = [Image.open(BytesIO(png(number))) for number in numbers]
        rows = {"image": images, "label": [number % 3 for number in numbers]}
        dataset = datasets.Dataset.from_dict(rows, features=features)
        dataset.to_parquet(str(folder / f"{split}.parquet"), batch_size=8)

    folder.mkdir()
    write("train", range(64))
    if held_out:
        write("test", range(64, 80))


@pytest.mark.parametrize("held_out", [True, False])
def test_a_set_written_by_hugging_face_trains_with_no_conversion(
    tmp_path: Path, held_out: bool
) -> None:
    huggingface(tmp_path / "set", held_out)
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    dataset = index(str(tmp_path / "set"), 0.25)
    assert dataset.classes == CLASSES
    numbers = [n for split in dataset.splits for n, _ in all_rows(dataset, split)]
    assert sorted(numbers) == list(range(80 if held_out else 64))
    after = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    assert after.pop("manifest.json")
    assert after == before

    config = RunConfig.model_validate(
        {
            "data": {"path": str(tmp_path / "set"), "image_size": 67},
            "train": {"global_batch": 16, "micro_batch": 8},
        }
    )
    task = Task.build(config, Alone())
    images, labels = next(iter(task.batches(0)))
    result = task.step.read(task.step(images, labels, 0, 0.01, False))
    assert 0.5 < result.loss < 3
    assert task.evaluator()["images"] == dataset.splits["validation"].rows


def test_the_datasets_library_reads_what_prepare_writes(digits: Path) -> None:
    import datasets

    files = {"train": str(digits / "train-*.parquet")}
    train = datasets.load_dataset("parquet", data_files=files, cache_dir=None)["train"]
    assert train.features["label"].names == list("0123456789")
    assert train[0]["image"].size == (8, 8)
    assert len(train) == 1438


def test_an_index_can_be_of_files_far_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alexnet.data.storage import Location

    huggingface(tmp_path / "set", True)
    with flaky_s3(monkeypatch) as s3:
        for path in (tmp_path / "set").iterdir():
            (Location.of(s3.uri("set")) / path.name).upload(path)
        s3.failing = 0.2
        far = index(s3.uri("set"), 0.1)
        assert far.sha256 == index(str(tmp_path / "set"), 0.1).sha256
        assert [n for n, _ in all_rows(far, "train")] == list(range(64))


def test_images_that_cannot_be_decoded_are_counted_and_skipped_on_request(tmp_path: Path) -> None:
    images = [b"no image" if number in (3, 20) else png(number) for number in range(32)]
    table = pa.table({"image": struct(images), "label": [number % 3 for number in range(32)]})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=8)
    pq.write_table(table.slice(24), tmp_path / "val.parquet")
    dataset = index(str(tmp_path), 0.1)
    assert dataset.rejected == 2

    def numbers(**settings: Any) -> npt.NDArray[np.uint8]:
        config = DataConfig(image_size=67, **settings)
        order = Order(seed=0, chunk_rows=(8,) * 4, virtual_workers=2, micro_batch=8, window=16)
        batches = training_batches(dataset, order, range(2), config, 0)
        return np.array([images[..., 0, 0, 0].ravel() for images, _ in islice(batches, 2)])

    with pytest.raises(DataError, match=r"train.parquet: row group \d, row \d: not an image"):
        numbers()
    seen = np.sort(numbers(on_bad_row="skip", max_bad_rows=0.1).ravel()).tolist()
    assert seen == sorted([*(n for n in range(32) if n not in (3, 20)), 4, 21])


def broken(folder: Path) -> Iterator[tuple[str, str]]:
    """Folders that cannot be indexed, and a word of why."""
    images = struct([png(number) for number in range(4)])
    good = {"image": images, "label": [0, 1, 2, 0]}
    tables: dict[str, tuple[dict[str, Any], str]] = {
        "no-image": ({"label": [1, 2]}, "no image column"),
        "no-label": ({"image": images}, "no label column"),
        "negative": ({**good, "label": [0, 1, -1, 2]}, "label -1"),
        "missing": ({**good, "label": [0, 1, None, 2]}, "without a label"),
        "one-group": (good, "too few row groups"),
        "undecodable": ({"image": struct([b"x"] * 4), "label": [0, 1, 2, 0]}, "decoded"),
    }
    for name, (columns, reason) in tables.items():
        (folder / name).mkdir()
        pq.write_table(pa.table(columns), folder / name / "train.parquet")
        if name == "undecodable":
            pq.write_table(pa.table(good), folder / name / "test.parquet")
        yield name, reason
    (folder / "empty").mkdir()
    yield "empty", "no Parquet files"
    yield "not-there", "no Parquet files"
    (folder / "text").mkdir()
    (folder / "text/train.parquet").write_text("text")
    yield "text", "not a Parquet file"
    shutil.copytree(folder / "one-group", folder / "done")
    (folder / "done/manifest.json").write_text("{}")
    yield "done", "has a manifest.json already"


def test_what_cannot_be_indexed_is_told_in_one_line(tmp_path: Path) -> None:
    for name, reason in broken(tmp_path):
        before = sorted(path.name for path in (tmp_path / name).glob("*"))
        with pytest.raises(DataError, match=reason) as caught:
            index(str(tmp_path / name), 0.1)
        assert "\n" not in str(caught.value)
        assert sorted(path.name for path in (tmp_path / name).glob("*")) == before


def test_verify_names_what_is_not_as_it_was(tmp_path: Path) -> None:
    prepare("digits", tmp_path / "set", PrepareOptions(shard_rows=500))
    assert verify(str(tmp_path / "set")) == []
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    first, second, third = manifest["splits"]["train"]["shards"]
    flipped, cut, gone = (tmp_path / "set" / shard["file"] for shard in (first, second, third))
    data = bytearray(flipped.read_bytes())
    data[first["row_groups"][1]["offset"] + 2000] ^= 1
    flipped.write_bytes(bytes(data))
    cut.write_bytes(cut.read_bytes()[:-100])
    gone.unlink()
    problems = verify(str(tmp_path / "set"))
    assert sum(str(flipped) in line for line in problems) == 2  # the file, and its row
    assert any(f"{flipped}: row group 1, row " in line for line in problems)
    assert any(str(cut) in line and "the manifest says" in line for line in problems)
    assert any(str(gone) in line for line in problems)
    assert not any("validation" in line for line in problems)
