import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alexnet.data.shards import Row, ShardSet, Split, write_shard
from alexnet.errors import EXIT_DATA, DataError

ROWS = [Row(image=b"image %d" % i * (1 + i % 7), path=f"곰/{i}", label=i % 3) for i in range(600)]
GROUPS = (256, 256, 88)
Chunk = tuple[list[bytes], npt.NDArray[np.int64]]


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """600 rows in one shard."""
    shard = write_shard(tmp_path / "train-00000-of-00001.parquet", ROWS, ["a", "b", "곰"])
    return Split(name="train", folder=tmp_path, shards=(shard,))


@pytest.fixture
def file(split: Split) -> Path:
    return split.folder / split.shards[0].file


@pytest.fixture
def pages(file: Path) -> Any:
    """Where the pages of a column begin and end, by (row group, column)."""
    metadata = pq.read_metadata(file)

    def place(group: int, name: str) -> range:
        columns = [metadata.row_group(group).column(i) for i in range(3)]
        (column,) = (column for column in columns if column.path_in_schema == name)
        start = column.data_page_offset
        return range(start, start + column.total_compressed_size)

    return place


def same(one: Chunk, other: Chunk) -> bool:
    return one[0] == other[0] and np.array_equal(one[1], other[1])


def flip(path: Path, whole: bytes, at: int) -> None:
    path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])


def test_rows_come_back_in_order(split: Split) -> None:
    assert split.chunk_rows == GROUPS
    assert split.rows == 600
    at = 0
    for chunk, rows in enumerate(GROUPS):
        images, labels = split.read_chunk(chunk)
        assert images == [row.image for row in ROWS[at : at + rows]]
        assert labels.tolist() == [row.label for row in ROWS[at : at + rows]]
        assert labels.dtype == np.int64
        at += rows


def test_a_shard_is_what_the_datasets_library_reads(file: Path) -> None:
    schema = pq.read_schema(file)
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert schema.field("label").type == pa.int64()
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {
        "image": {"_type": "Image"},
        "label": {"names": ["a", "b", "곰"], "_type": "ClassLabel"},
    }
    assert pq.read_table(file)["image"].to_pylist()[300] == {
        "bytes": ROWS[300].image,
        "path": "곰/300",
    }


def test_a_shard_is_plain(file: Path) -> None:
    metadata = pq.read_metadata(file)
    columns = [metadata.row_group(g).column(c) for g in range(3) for c in range(3)]
    assert {column.compression for column in columns} == {"UNCOMPRESSED"}
    assert not any(column.has_dictionary_page for column in columns)
    assert {e for column in columns for e in column.encodings} <= {"PLAIN", "RLE"}


def test_the_manifest_entry_is_of_the_file(split: Split, file: Path) -> None:
    shard = split.shards[0]
    assert shard.bytes == file.stat().st_size
    assert shard.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert not list(split.folder.glob(".*"))  # nothing left of the temporary name


def test_a_shard_may_have_no_rows(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "x.parquet", [], ["a"]).row_groups == ()


@pytest.mark.parametrize("column", ["image.bytes", "label"])
def test_a_flipped_bit_in_a_page_is_told_with_file_and_row_group(
    split: Split, file: Path, pages: Any, column: str
) -> None:
    whole, place = file.read_bytes(), pages(1, column)
    others = [split.read_chunk(chunk) for chunk in (0, 2)]
    data = place[len(place) // 10 :]  # behind the page's header
    for at in data[:: len(data) // 40]:
        flip(file, whole, at)
        with pytest.raises(DataError) as caught:
            split.read_chunk(1)
        assert str(caught.value).startswith(f"{file}: row group 1 cannot be read: ")
        assert caught.value.exit_code == EXIT_DATA
        assert "\n" not in str(caught.value)
        assert all(
            same(split.read_chunk(chunk), before)
            for chunk, before in zip((0, 2), others, strict=True)
        )


def test_no_flipped_bit_anywhere_changes_what_is_read(split: Split, file: Path) -> None:
    whole = file.read_bytes()
    wanted = [split.read_chunk(chunk) for chunk in range(3)]
    footer = len(whole) - int.from_bytes(whole[-8:-4], "little") - 8
    told = 0
    for at in (*range(0, footer, 501), *range(footer, len(whole), 17)):
        flip(file, whole, at)
        for chunk in range(3):
            try:
                assert same(split.read_chunk(chunk), wanted[chunk])
            except DataError as error:
                assert str(file) in str(error)
                told += 1
    assert told > 50


@pytest.mark.parametrize("left", [0, 3, 1000, -1])
def test_a_shard_that_is_cut_is_told(split: Split, file: Path, left: int) -> None:
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(DataError, match="row group 0 cannot be read"):
        split.read_chunk(0)


def test_a_shard_that_is_not_there_is_told(split: Split, file: Path) -> None:
    file.unlink()
    with pytest.raises(DataError, match=file.name):
        split.read_chunk(2)


@pytest.mark.parametrize("rows", [500, 700, 256])
def test_a_shard_of_another_set_is_told(split: Split, file: Path, rows: int) -> None:
    write_shard(file, (ROWS * 2)[:rows], ["a"])
    with pytest.raises(DataError, match=r"row group 2"):
        split.read_chunk(2)


@pytest.mark.parametrize(
    "columns", [{"image": ["text"], "label": [1]}, {"image": [{"bytes": b"x"}]}, {"label": [1]}]
)
def test_a_table_of_another_kind_is_told(split: Split, file: Path, columns: Any) -> None:
    pq.write_table(pa.table(columns), file)
    with pytest.raises(DataError, match="row group 0"):
        split.read_chunk(0)


def test_a_missing_image_is_told(split: Split, file: Path) -> None:
    images = [{"bytes": b"x" if i else None} for i in range(256)]
    pq.write_table(pa.table({"image": images, "label": [0] * 256}), file)
    with pytest.raises(DataError, match="row group 0"):
        split.read_chunk(0)


def test_a_set_is_known_by_its_manifest(digits: Path, tmp_path: Path) -> None:
    dataset = ShardSet.open(digits)
    manifest = (digits / "manifest.json").read_bytes()
    assert dataset.sha256 == hashlib.sha256(manifest).hexdigest()
    assert dataset.splits["train"].chunk_rows == (256,) * 5 + (158,)
    shutil.copytree(digits, tmp_path / "moved")
    moved = ShardSet.open(tmp_path / "moved").splits["validation"]
    assert same(moved.read_chunk(1), dataset.splits["validation"].read_chunk(1))


def manifest(**changes: Any) -> str:
    tree = {
        "schema_version": 1,
        "classes": ["a"],
        "rejected": 0,
        "statistics": {"mean": [0, 0, 0], "std": [1, 1, 1]},
        "splits": {"train": {"shards": []}},
    }
    return json.dumps({**tree, **changes})


def test_a_manifest_for_the_cases_below(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest())
    assert ShardSet.open(tmp_path).splits["train"].rows == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a manifest"),
        ("{", "not a manifest"),
        ("[]", "not a manifest"),
        ("{}", "schema_version"),
        (manifest(schema_version=2), "schema_version 2, expected 1"),
        (manifest(statistics={}), "mean"),
        (manifest(splits={"train": {"shards": [{"file": "x"}]}}), "not a manifest"),
        (manifest(splits={"train": {"shards": [7]}}), "not a manifest"),
        (manifest(splits=[]), "not a manifest"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_told(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        ShardSet.open(tmp_path)
    assert str(tmp_path / "manifest.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_a_manifest_is_no_set(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path if exists else tmp_path / "nothing"
    with pytest.raises(DataError, match=r"no such dataset .*run prepare") as caught:
        ShardSet.open(folder)
    assert str(folder) in str(caught.value)
