import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.data.parquet import Columns
from alexnet.data.shards import (
    SCHEMA_VERSION,
    Chunk,
    Row,
    ShardSet,
    Split,
    pack,
    row_checksum,
    write_shard,
)
from alexnet.data.storage import Location
from alexnet.errors import DataError

CLASSES = ["a", "b", "곰"]
ROWS = [Row(image=b"image %d" % i * (1 + i % 7), path=f"곰/{i}", label=i % 3) for i in range(600)]
GROUPS = (256, 256, 88)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """600 rows in one shard."""
    shard = write_shard(tmp_path / "train-00000-of-00001.parquet", ROWS, CLASSES)
    return Split(
        name="train",
        folder=Location.of(tmp_path),
        shards=(shard,),
        columns=Columns(image="image.bytes", label="label"),
        classes=tuple(CLASSES),
    )


@pytest.fixture
def file(split: Split) -> Path:
    return split.folder.local / split.shards[0].file


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


def rows(chunk: Chunk) -> list[tuple[bytes | None, int]]:
    images = [None if image is None else bytes(image) for image in chunk.images]
    return list(zip(images, chunk.labels.tolist(), strict=True))


def same(one: Chunk, other: Chunk) -> bool:
    return rows(one) == rows(other) and one.bad == other.bad


def nothing_but_told(chunk: Chunk, where: str) -> bool:
    """Whether no row of a chunk is there and each is named in one line with `where`."""
    return (
        set(chunk.images) == {None}
        and set(chunk.bad) == set(range(len(chunk.images)))
        and all(where in reason and "\n" not in reason for reason in chunk.bad.values())
    )


def flip(path: Path, whole: bytes, at: int) -> None:
    path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])


def test_rows_come_back_in_order(split: Split) -> None:
    assert split.chunk_rows == GROUPS
    assert split.rows == 600
    at = 0
    for number, count in enumerate(GROUPS):
        chunk = split.read_chunk(number)
        assert rows(chunk) == [(row.image, row.label) for row in ROWS[at : at + count]]
        assert chunk.labels.dtype == np.int64
        assert not chunk.bad
        at += count


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
    assert not list(file.parent.glob(".*"))  # nothing left of the temporary name


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
        bad = split.read_chunk(1).bad
        assert bad
        assert split.name_of(1, min(bad)) == f"{file}: row group 1, row {min(bad)}"
        assert all("\n" not in reason for reason in bad.values())
        assert all(
            same(split.read_chunk(chunk), before)
            for chunk, before in zip((0, 2), others, strict=True)
        )


def test_no_flipped_bit_anywhere_changes_what_is_read(split: Split, file: Path) -> None:
    whole = file.read_bytes()
    wanted = [rows(split.read_chunk(chunk)) for chunk in range(3)]
    footer = len(whole) - int.from_bytes(whole[-8:-4], "little") - 8
    assert footer == split.shards[0].footer
    told = 0
    for at in (*range(0, footer, 501), *range(footer, len(whole), 17)):
        flip(file, whole, at)
        for number in range(3):
            chunk = split.read_chunk(number)
            for row, (found, should) in enumerate(zip(rows(chunk), wanted[number], strict=True)):
                assert found == should or (found[0] is None and row in chunk.bad)
            told += bool(chunk.bad)
    assert told > 50


def test_a_row_that_is_another_is_told_and_only_that(split: Split, file: Path) -> None:
    """Written by a sound writer: nothing but the checksum of the row can tell."""
    other = [
        *ROWS[:300],
        Row(image=b"image 300" + b"IMAGE 300" * 6, path="곰/300", label=0),
        *ROWS[301:],
    ]
    assert len(other[300].image) == len(ROWS[300].image)
    other[10] = Row(image=ROWS[10].image, path=ROWS[10].path, label=(ROWS[10].label + 1) % 3)
    write_shard(file, other, CLASSES)
    assert [set(split.read_chunk(chunk).bad) for chunk in range(3)] == [{10}, {44}, set()]


@pytest.mark.parametrize("left", [0, 3, 1000, -1])
def test_a_shard_that_is_cut_is_told(split: Split, file: Path, left: int) -> None:
    file.write_bytes(file.read_bytes()[:left])
    for chunk in range(3):
        assert nothing_but_told(split.read_chunk(chunk), "bytes")


def test_a_shard_that_is_not_there_is_told(split: Split, file: Path) -> None:
    file.unlink()
    assert nothing_but_told(split.read_chunk(2), "missing")


@pytest.mark.parametrize("count", [500, 700, 256])
def test_a_shard_of_another_set_is_told(split: Split, file: Path, count: int) -> None:
    write_shard(file, (ROWS * 2)[:count], CLASSES)
    assert nothing_but_told(split.read_chunk(2), "")


@pytest.mark.parametrize(
    "columns",
    [
        {"image": ["text"], "label": [1]},
        {"image": [{"bytes": b"x"}]},
        {"label": [1]},
        {"image": [{"bytes": None}] * 256, "label": [0] * 256},
    ],
)
def test_a_table_of_another_kind_is_told(split: Split, file: Path, columns: Any) -> None:
    size = file.stat().st_size
    pq.write_table(pa.table(columns), file)
    with file.open("ab") as end:  # of the same size, so that it is looked into
        end.write(bytes(max(0, size - file.stat().st_size)))
    assert nothing_but_told(split.read_chunk(0), "")


@given(st.binary(max_size=40), st.integers(0, 2**40), st.data())
def test_a_row_checksum_is_of_image_and_label(
    image: bytes, label: int, data: st.DataObject
) -> None:
    checksum = row_checksum(image, label)
    assert 0 <= checksum < 2**32
    assert row_checksum(memoryview(image), label) == checksum
    assert row_checksum(image + b"\0", label) != checksum
    assert row_checksum(image, label + 1) != checksum
    if image:
        at = data.draw(st.integers(0, len(image) * 8 - 1))
        changed = bytearray(image)
        changed[at // 8] ^= 1 << at % 8
        assert row_checksum(bytes(changed), label) != checksum


def test_row_checksums_are_little_endian_numbers_in_base64_by_row_group(split: Split) -> None:
    wanted = [row_checksum(row.image, row.label) for row in ROWS]
    (shard,) = split.shards
    assert base64.b64decode(shard.checksums)[:4] == wanted[0].to_bytes(4, "little")
    assert pack(wanted) == shard.checksums
    assert [len(part) for part in shard.row_checksums] == list(GROUPS)
    assert np.concatenate(shard.row_checksums).tolist() == wanted


def test_a_set_is_known_by_its_manifest(digits: Path, tmp_path: Path) -> None:
    dataset = ShardSet.open(digits)
    manifest = (digits / "manifest.json").read_bytes()
    assert dataset.sha256 == hashlib.sha256(manifest).hexdigest()
    assert dataset.splits["train"].chunk_rows == (256,) * 5 + (158,)
    shutil.copytree(digits, tmp_path / "moved")
    moved = ShardSet.open(tmp_path / "moved").splits["validation"]
    assert rows(moved.read_chunk(1)) == rows(dataset.splits["validation"].read_chunk(1))


def manifest(**changes: Any) -> str:
    tree = {
        "schema_version": SCHEMA_VERSION,
        "classes": ["a"],
        "columns": {"image": "image.bytes", "label": "label"},
        "rejected": 0,
        "statistics": {"mean": [0, 0, 0], "std": [1, 1, 1], "covariance": [[0] * 3] * 3},
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
        (manifest(schema_version=1), "schema_version 1, expected 2; prepare it again"),
        (manifest(columns={"image": "x"}), "not a manifest"),
        (manifest(classes=7), "not a manifest"),
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
    with pytest.raises(DataError, match=r"no such dataset .*run `alexnet prepare`") as caught:
        ShardSet.open(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(("images", "groups"), [(1, [1]), (3, [3]), (5, [3, 2])])
def test_large_images_make_row_groups_of_fewer_rows(
    tmp_path: Path, images: int, groups: list[int]
) -> None:
    large = [Row(image=bytes([i]) * (9 << 17), path=str(i), label=0) for i in range(images)]
    shard = write_shard(tmp_path / "x.parquet", large, ["a"])
    assert [group.rows for group in shard.row_groups] == groups
    data = (tmp_path / "x.parquet").read_bytes()
    for group, extents in zip(shard.row_groups, shard.row_extents, strict=True):
        for offset, length in extents.tolist():
            begin = group.offset + offset
            assert data[begin : begin + length] == large.pop(0).image


def test_a_disk_that_does_not_take_it_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError, match="directory"):
        write_shard(tmp_path / "x.parquet", ROWS[:3], CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]
