"""Sets written by others, and whether a set is still what it was.

`index` writes a manifest for Parquet files that hold images and labels, and changes nothing else;
`verify` reads every byte again and compares it with the manifest.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alexnet.data.images import decode
from alexnet.data.manifest import NO_MOMENTS, Moments, add, manifest_of, moments_of
from alexnet.data.parquet import Columns, RowGroup, read_row_group
from alexnet.data.shards import (
    MANIFEST,
    Shard,
    ShardSet,
    Split,
    footer_of,
    pack,
    row_checksum,
    row_groups_of,
)
from alexnet.data.sources import SPLIT_NAMES, TRAIN, VALIDATION
from alexnet.data.storage import Location, explained
from alexnet.errors import DataError

IMAGE_COLUMNS = ("image", "img", "images", "jpg", "jpeg", "png", "picture")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "target", "category")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class _File:
    """A Parquet file that was found, and what its footer says."""

    name: str
    split: str
    bytes: int
    sha256: str
    metadata: pq.FileMetaData
    schema: pa.Schema


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """What reading a row group has shown."""

    checksums: list[int]
    moments: Moments
    undecodable: int


def index(
    name: str, validation_share: float, progress: Progress = lambda done, total: None
) -> ShardSet:
    """Write `manifest.json` into a folder, or URI, of Parquet files; return the set.

    Splits follow the names of files and folders (train, test, validation, ...). Where none is for
    validation, every so many row groups of the training files are held out. Every image is decoded
    once, for the statistics.

    Raises:
        DataError: no such files, no image or label column, or not one image can be decoded.
    """
    folder = Location.of(name)
    with explained(name):
        if (folder / MANIFEST).exists():
            raise DataError(f"{name}: has a {MANIFEST} already; remove it first")
        files = _find(name, folder)
    columns = _columns(name, files[0].schema)
    classes = _classes(name, folder, files, columns)
    checked = dict(_check_all(folder, files, columns, classes, progress))
    splits = {
        split: [
            _shard(file, groups, checked)
            for file, groups in _members(files, split, validation_share)
        ]
        for split in (TRAIN, VALIDATION)
    }
    if not all(splits.values()):
        raise DataError(f"{name}: too few row groups to hold any out; name a file for validation")
    moments = reduce(
        add,
        (
            checked[shard.file, group.index].moments
            for shard in splits[TRAIN]
            for group in shard.row_groups
        ),
        NO_MOMENTS,
    )
    if not moments[0]:
        raise DataError(f"{name}: none of the training images can be decoded")
    undecodable = sum(each.undecodable for each in checked.values())
    text = manifest_of(list(classes), columns, splits, moments, rejected=undecodable)
    with explained(name):
        (folder / MANIFEST).write(text.encode())
    return ShardSet.open(name)


def verify(name: str, progress: Progress = lambda done, total: None) -> list[str]:
    """Return what is wrong with a set, a line each: files and rows that are not the manifest's.

    Raises:
        DataError: no such set.
    """
    dataset = ShardSet.open(name)
    problems: dict[str, None] = {}
    splits = list(dataset.splits.values())
    total, done = sum(len(split.places) for split in splits), 0
    for split in splits:
        for shard in split.shards:
            problems |= dict.fromkeys(_wrong_file(split.folder / shard.file, shard))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for wrong in pool.map(partial(_wrong_rows, split), range(len(split.places))):
                problems |= dict.fromkeys(wrong)
                progress(done := done + 1, total)
    return list(problems)


def _wrong_file(path: Location, shard: Shard) -> Iterator[str]:
    try:
        size, sha256 = path.digest()
    except OSError as error:
        yield f"{path}: cannot be read: {error.strerror or ' '.join(str(error).split())}"
        return
    if (size, sha256) != (shard.bytes, shard.sha256):
        yield (
            f"{path}: {size} bytes with SHA-256 {sha256[:12]}..., the manifest says "
            f"{shard.bytes} with {shard.sha256[:12]}..."
        )


def _wrong_rows(split: Split, chunk: int) -> list[str]:
    bad = split.read_chunk(chunk).bad
    if len(bad) == split.chunk_rows[chunk] and len(set(bad.values())) == 1:
        return [f"{split.name_of(chunk)}: {bad[0]}"]
    return [f"{split.name_of(chunk, row)}: {reason}" for row, reason in bad.items()]


def _find(name: str, folder: Location) -> list[_File]:
    sizes = folder.files()
    names = sorted(file for file in sizes if file.endswith(".parquet"))
    if not names:
        raise DataError(f"{name}: no Parquet files; to convert images, use `alexnet prepare`")
    files = []
    for file in names:
        size, sha256 = (folder / file).digest()
        metadata, schema = _footer(folder / file)
        files.append(
            _File(
                name=file,
                split=_split_of(file),
                bytes=size,
                sha256=sha256,
                metadata=metadata,
                schema=schema,
            )
        )
    return _one_held_out_split(files)


def _footer(path: Location) -> tuple[pq.FileMetaData, pa.Schema]:
    def once() -> tuple[pq.FileMetaData, pa.Schema]:
        with pq.ParquetFile(path.path, filesystem=path.filesystem) as parquet:
            return parquet.metadata, parquet.schema_arrow

    try:
        return path.attempt(once)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a Parquet file: {reason}") from None


def _split_of(file: str) -> str:
    """`data/test-00000-of-00001.parquet` and `test/0.parquet` are for validation."""
    words = [word for part in PurePosixPath(file).parts for word in re.split(r"[-.]", part.lower())]
    named = [word for word in words if word in SPLIT_NAMES]
    return named[-1] if named else TRAIN


def _one_held_out_split(files: list[_File]) -> list[_File]:
    """Prefer what is called validation over what is called test, where both are there."""
    held_out = sorted({file.split for file in files if SPLIT_NAMES[file.split] == VALIDATION})
    named_validation = [split for split in held_out if not split.startswith("test")]
    chosen = (named_validation or held_out)[:1]
    return [
        replace(file, split=SPLIT_NAMES[file.split])
        for file in files
        if SPLIT_NAMES[file.split] == TRAIN or file.split in chosen
    ]


def _columns(name: str, schema: pa.Schema) -> Columns:
    def find(kind: str, usual: tuple[str, ...], fits: Callable[[pa.DataType], bool]) -> str:
        for column in (*usual, *schema.names):
            if column in schema.names and fits(schema.field(column).type):
                return column
        raise DataError(
            f"{name}: no {kind} column; there are {', '.join(map(str, schema)) or 'none'}"
        )

    image = find("image", IMAGE_COLUMNS, _holds_images)
    is_struct = pa.types.is_struct(schema.field(image).type)
    label = find("label", LABEL_COLUMNS, _holds_labels)
    return Columns(image=f"{image}.bytes" if is_struct else image, label=label)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_images(kind.field(at).type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return bool(pa.types.is_integer(kind.value_type) and kind.value_type.bit_width == 8)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_labels(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    )


def _classes(name: str, folder: Location, files: list[_File], columns: Columns) -> tuple[str, ...]:
    """Names from the metadata that Hugging Face's library writes; else what labels there are."""
    features = json.loads((files[0].schema.metadata or {}).get(b"huggingface", b"{}"))
    named = features.get("info", {}).get("features", {}).get(columns.label, {}).get("names")
    if named:
        return tuple(named)
    labels: set[Any] = set()
    for file in files:
        labels |= _labels(folder / file.name, columns.label)
    if None in labels:
        raise DataError(f"{name}: column {columns.label!r} has rows without a label")
    if all(isinstance(label, int) for label in labels):
        if min(labels) < 0:
            raise DataError(
                f"{name}: label {min(labels)} in column {columns.label!r}; expected 0.."
            )
        return tuple(str(label) for label in range(max(labels) + 1))
    return tuple(sorted(map(str, labels)))


def _labels(path: Location, column: str) -> set[Any]:
    def once() -> pa.Table:
        return pq.read_table(path.path, columns=[column], filesystem=path.filesystem)

    return set(path.attempt(once)[column].unique().to_pylist())


def _check_all(
    folder: Location,
    files: list[_File],
    columns: Columns,
    classes: tuple[str, ...],
    progress: Progress,
) -> Iterator[tuple[tuple[str, int], _Checked]]:
    places = [(file, group) for file in files for group in row_groups_of(file.metadata)]

    def check(place: tuple[_File, RowGroup]) -> _Checked:
        file, group = place
        shard = _shard_without_rows(file)
        path = folder / file.name
        try:
            images, labels = read_row_group(path, shard, group, columns, classes, None)
        except DataError as error:
            raise DataError(f"{path}: row group {group.index}: {error}") from None
        moments, undecodable = NO_MOMENTS, 0
        for image in images:
            try:
                moments = add(moments, moments_of(decode(image or b"")))
            except DataError:
                undecodable += 1
        checksums = [
            row_checksum(image or b"", label)
            for image, label in zip(images, labels.tolist(), strict=True)
        ]
        return _Checked(checksums=checksums, moments=moments, undecodable=undecodable)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, ((file, group), found) in enumerate(
            zip(places, pool.map(check, places), strict=True), 1
        ):
            progress(done, len(places))
            yield (file.name, group.index), found


def _members(
    files: list[_File], split: str, validation_share: float
) -> Iterator[tuple[_File, tuple[RowGroup, ...]]]:
    """The files of a split, each with those of its row groups that belong to it."""
    has_validation = any(file.split == VALIDATION for file in files)
    every, seen = max(2, round(1 / validation_share)), 0
    for file in files:
        groups = row_groups_of(file.metadata)
        if has_validation:
            if file.split == split:
                yield file, groups
            continue
        held_out = {group for at, group in enumerate(groups, seen) if at % every == every - 1}
        seen += len(groups)
        mine = tuple(group for group in groups if (group in held_out) == (split == VALIDATION))
        if mine:
            yield file, mine


def _shard_without_rows(file: _File) -> Shard:
    return Shard(
        file=file.name,
        bytes=file.bytes,
        sha256=file.sha256,
        footer=footer_of(file.metadata, file.bytes),
        row_groups=(),
        checksums="",
    )


def _shard(
    file: _File, groups: tuple[RowGroup, ...], checked: dict[tuple[str, int], _Checked]
) -> Shard:
    checksums = [sum_ for group in groups for sum_ in checked[file.name, group.index].checksums]
    return replace(_shard_without_rows(file), row_groups=groups, checksums=pack(checksums))
