"""Parquet shards and their manifest: written once, checked at every read.

The layout is the Hugging Face image convention (`image: struct<bytes, path>`, `label: int64`),
plain encoded, with page checksums. `manifest.json` is written last: a folder without one is no set.
It holds a checksum of every row, so whatever happens to a file between its writer and here, a row
either is what it was or is known to be bad.

A chunk is a row group: the unit that is read, and that `alexnet.data.order` permutes.
"""

import base64
import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from alexnet.data.images import Encoded
from alexnet.data.parquet import (
    Columns,
    RowGroup,
    forget_row_group,
    read_labels,
    read_row_group,
)
from alexnet.data.storage import Location, RangeCache
from alexnet.errors import DataError

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
ROW_GROUP_ROWS = 256
ROW_GROUP_BYTES = 4 << 20  # fewer rows where images are large
Labels = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image on its way into a shard."""

    image: bytes
    path: str
    label: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The rows that a split has in one Parquet file, as the manifest lists them."""

    file: str  # from the manifest's folder
    bytes: int
    sha256: str
    footer: int  # where the file's own metadata begin
    row_groups: tuple[RowGroup, ...]
    checksums: str  # of the rows, see `row_checksum`: little-endian uint32 in base64
    extents: str = ""  # of the images, offset and length: the same; only where they lie plainly

    @cached_property
    def row_checksums(self) -> list[Numbers]:
        """One uint32 a row, by row group."""
        return self._by_row_group(_unpack(self.checksums))

    @cached_property
    def row_extents(self) -> list[Numbers]:
        """Offset from the row group's and length of each image, uint32 [rows, 2], by row group."""
        return self._by_row_group(_unpack(self.extents).reshape(-1, 2))

    def _by_row_group(self, of_rows: Numbers) -> list[Numbers]:
        return np.split(of_rows, np.cumsum([group.rows for group in self.row_groups])[:-1])


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The rows of a row group; an image that is not what it was is None and named in `bad`."""

    images: list[Encoded | None]
    labels: Labels
    bad: Mapping[int, str]  # by row of the chunk


@dataclass(frozen=True, kw_only=True)
class Split:
    """The shards of one split and how to read them, a chunk at a time."""

    name: str
    folder: Location
    shards: tuple[Shard, ...]
    columns: Columns
    classes: tuple[str, ...]
    cache: RangeCache | None = None

    @cached_property
    def chunk_rows(self) -> tuple[int, ...]:
        """Rows of each chunk, in manifest order."""
        return tuple(group.rows for shard in self.shards for group in shard.row_groups)

    @property
    def rows(self) -> int:
        """Images in the split."""
        return sum(self.chunk_rows)

    @cached_property
    def places(self) -> list[tuple[Shard, int]]:
        """Where each chunk is: its shard and its place in the shard's list of row groups."""
        return [(shard, at) for shard in self.shards for at in range(len(shard.row_groups))]

    def read_chunk(self, chunk: int) -> Chunk:
        """Read a row group and compare each row with its checksum. Never raises for bad data."""
        found = self._read(chunk)
        if found.bad and self.cache:  # it may be the copy that is damaged
            shard, at = self.places[chunk]
            forget_row_group(shard, shard.row_groups[at], self.cache)
            found = self._read(chunk)
        return found

    def _read(self, chunk: int) -> Chunk:
        shard, at = self.places[chunk]
        group, checksums = shard.row_groups[at], shard.row_checksums[at].tolist()
        try:
            images, labels = read_row_group(
                self.folder / shard.file, shard, group, self.columns, self.classes, self.cache
            )
        except DataError as error:
            every_row = dict.fromkeys(range(group.rows), str(error))
            nothing = np.zeros(group.rows, np.int64)
            return Chunk(images=[None] * group.rows, labels=nothing, bad=every_row)
        bad = {
            row: "its checksum is not the manifest's"
            for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True))
            if image is None or row_checksum(image, label) != checksums[row]
        }
        kept = [None if row in bad else image for row, image in enumerate(images)]
        return Chunk(images=kept, labels=labels, bad=bad)

    def read_labels(self, chunk: int) -> Labels:
        """Return the labels of a row group of a local file.

        Raises:
            DataError: they cannot be read.
        """
        shard, at = self.places[chunk]
        return read_labels(
            self.folder / shard.file, shard, shard.row_groups[at], self.columns, self.classes
        )

    def name_of(self, chunk: int, row: int | None = None) -> str:
        """Say where a chunk is, or a row of it, for people."""
        shard, at = self.places[chunk]
        group = f"{self.folder / shard.file}: row group {shard.row_groups[at].index}"
        return group if row is None else f"{group}, row {row}"


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """A prepared dataset."""

    classes: tuple[str, ...]
    mean: tuple[float, ...]  # of R, G, B over all training pixels, in 0..255
    std: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    rejected: int  # images of the source that could not be decoded
    sha256: str  # of the manifest: names the exact set
    splits: dict[str, Split]

    @staticmethod
    def open(name: str | Path, cache: RangeCache | None = None) -> "ShardSet":
        """Read the manifest in the folder `name`, a path or a URI.

        Raises:
            DataError: no manifest, or one that this version cannot read.
        """
        folder = Location.of(name)
        path = folder / MANIFEST
        try:
            text = path.read()
        except FileNotFoundError:
            raise DataError(
                f"{name}: no such dataset (no {MANIFEST}); run `alexnet prepare`, or `alexnet "
                "index` if it holds Parquet files"
            ) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
        try:
            tree = json.loads(text)
            if tree["schema_version"] != SCHEMA_VERSION:
                raise DataError(
                    f"{path}: schema_version {tree['schema_version']}, expected {SCHEMA_VERSION}; "
                    "prepare it again"
                )
            statistics, classes = tree["statistics"], tuple(tree["classes"])
            return ShardSet(
                classes=classes,
                mean=tuple(statistics["mean"]),
                std=tuple(statistics["std"]),
                covariance=tuple(map(tuple, statistics["covariance"])),
                rejected=tree["rejected"],
                sha256=hashlib.sha256(text).hexdigest(),
                splits={
                    name: Split(
                        name=name,
                        folder=folder,
                        shards=tuple(map(load_shard, split["shards"])),
                        columns=Columns(**tree["columns"]),
                        classes=classes,
                        cache=None if folder.is_local else cache,
                    )
                    for name, split in tree["splits"].items()
                },
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a manifest: {error!r}") from None


def load_shard(tree: dict[str, Any]) -> Shard:
    """Return a shard as the manifest has it.

    Raises:
        ValueError: it does not fit together, or names a file outside of the set.
    """
    groups = tuple(RowGroup(**group) for group in tree["row_groups"])
    shard = Shard(**{**tree, "row_groups": groups})
    if shard.file.startswith("/") or ".." in shard.file.split("/"):
        raise ValueError(f"{shard.file} is outside of the set")
    rows, checksums = sum(group.rows for group in groups), sum(map(len, shard.row_checksums))
    if rows != checksums:
        raise ValueError(f"{shard.file}: {rows} rows, but {checksums} row checksums")
    return shard


def row_checksum(image: Encoded, label: int) -> int:
    """Return 32 bits of XXH3 (Collet) over an image's bytes, seeded with its label."""
    return xxhash.xxh3_64_intdigest(image, label) & 0xFFFFFFFF


def pack(numbers: Iterable[int]) -> str:
    """Return numbers below 2^32 as the manifest has them."""
    return base64.b64encode(np.fromiter(numbers, "<u4").tobytes()).decode()


def _unpack(text: str) -> Numbers:
    return np.frombuffer(base64.b64decode(text), "<u4")


def write_shard(path: Path, rows: list[Row], classes: list[str]) -> Shard:
    """Write one shard under a temporary name, then move it into place.

    Raises:
        OSError: the disk does not take it; nothing is left then.
    """
    partial = path.with_name(f".{path.name}.partial")
    groups = list(_row_groups(rows))
    try:
        _write_parquet(partial, groups, classes)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        metadata = pq.read_metadata(partial)
        shard = Shard(
            file=path.name,
            bytes=partial.stat().st_size,
            sha256=sha256,
            footer=footer_of(metadata, partial.stat().st_size),
            row_groups=row_groups_of(metadata),
            checksums=pack(row_checksum(row.image, row.label) for row in rows),
        )
        shard = replace(shard, extents=_find_images(partial, shard, rows))
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return shard


def _find_images(path: Path, shard: Shard, rows: list[Row]) -> str:
    """Return where in a file the images lie: plainly encoded, they are there byte by byte."""
    groups = [group for group in shard.row_groups for _ in range(group.rows)]
    extents: list[int] = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0
        for row, group in zip(rows, groups, strict=True):
            at = data.find(row.image, at)
            extents += at - group.offset, len(row.image)
            at += len(row.image)
    return pack(extents)


def _write_parquet(path: Path, groups: list[list[Row]], classes: list[str]) -> None:
    schema = _schema(classes)
    with (
        path.open("wb") as file,
        pq.ParquetWriter(
            file, schema, use_dictionary=False, compression="none", write_page_checksum=True
        ) as writer,
    ):
        for group in groups:
            images = [{"bytes": row.image, "path": row.path} for row in group]
            labels = [row.label for row in group]
            columns = [pa.array(images, schema.field("image").type), labels]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=len(group))


def _row_groups(rows: list[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    size = 0
    for row in rows:
        if group and (len(group) == ROW_GROUP_ROWS or size + len(row.image) > ROW_GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(row)
        size += len(row.image)
    if group:
        yield group


def row_groups_of(metadata: pq.FileMetaData) -> tuple[RowGroup, ...]:
    """Return where each row group of a Parquet file is."""
    return tuple(RowGroup.of(metadata.row_group(at), at) for at in range(metadata.num_row_groups))


def footer_of(metadata: pq.FileMetaData, size: int) -> int:
    """Return where the metadata of a Parquet file of `size` bytes begin."""
    return int(size - metadata.serialized_size - len(b"PAR1") - 4)  # and their length, 4 bytes


def _schema(classes: list[str]) -> pa.Schema:
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    return pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
