"""Parquet shards and their manifest: written once, checked at every read.

The layout is the Hugging Face image convention (`image: struct<bytes, path>`, `label: int64`),
plain encoded, with page checksums. `manifest.json` is written last: a folder without one is no set.
A chunk is a row group: the unit that is read, and that `alexnet.data.order` permutes.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from alexnet.errors import DataError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ROW_GROUP_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image on its way into a shard."""

    image: bytes
    path: str
    label: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file as the manifest lists it; `row_groups` are row counts."""

    file: str
    bytes: int
    sha256: str
    row_groups: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Split:
    """The shards of one split and how to read them, a chunk at a time."""

    name: str
    folder: Path
    shards: tuple[Shard, ...]

    @cached_property
    def chunk_rows(self) -> tuple[int, ...]:
        """Rows of each chunk, in manifest order."""
        return tuple(rows for shard in self.shards for rows in shard.row_groups)

    @property
    def rows(self) -> int:
        """Images in the split."""
        return sum(self.chunk_rows)

    @cached_property
    def _places(self) -> list[tuple[Shard, int]]:
        return [(shard, group) for shard in self.shards for group in range(len(shard.row_groups))]

    def read_chunk(self, chunk: int) -> tuple[list[bytes], npt.NDArray[np.int64]]:
        """Return the encoded images and the labels of one chunk.

        Raises:
            DataError: the file is missing, truncated, or fails a page checksum.
        """
        shard, group = self._places[chunk]
        path = self.folder / shard.file
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read_row_group(group, columns=["image.bytes", "label"])
            images = table["image"].combine_chunks().field("bytes").to_pylist()
            labels = table["label"].to_numpy()
        except (OSError, pa.ArrowException, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: row group {group} cannot be read: {reason}") from None
        if len(images) != shard.row_groups[group] or None in images:
            raise DataError(
                f"{path}: row group {group} holds {len(images)} rows, "
                f"the manifest says {shard.row_groups[group]}"
            )
        return images, labels


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """A prepared dataset."""

    classes: tuple[str, ...]
    mean: tuple[float, ...]  # of R, G, B over all training pixels, in 0..255
    std: tuple[float, ...]
    rejected: int  # images of the source that could not be decoded
    sha256: str  # of the manifest: names the exact set
    splits: dict[str, Split]

    @staticmethod
    def open(folder: Path) -> "ShardSet":
        """Read the manifest in `folder`.

        Raises:
            DataError: no manifest, or one that this version cannot read.
        """
        path = folder / MANIFEST
        try:
            text = path.read_bytes()
        except OSError:
            raise DataError(f"{folder}: no such dataset (no {MANIFEST}); run prepare") from None
        try:
            tree = json.loads(text)
            if tree["schema_version"] != SCHEMA_VERSION:
                raise DataError(
                    f"{path}: schema_version {tree['schema_version']}, expected {SCHEMA_VERSION}"
                )
            return ShardSet(
                classes=tuple(tree["classes"]),
                mean=tuple(tree["statistics"]["mean"]),
                std=tuple(tree["statistics"]["std"]),
                rejected=tree["rejected"],
                sha256=hashlib.sha256(text).hexdigest(),
                splits={
                    name: Split(name=name, folder=folder, shards=_shards(split["shards"]))
                    for name, split in tree["splits"].items()
                },
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a manifest: {error!r}") from None


def _shards(trees: list[dict[str, Any]]) -> tuple[Shard, ...]:
    return tuple(Shard(**{**tree, "row_groups": tuple(tree["row_groups"])}) for tree in trees)


def write_shard(path: Path, rows: list[Row], classes: list[str]) -> Shard:
    """Write one shard under a temporary name, then move it into place."""
    schema = _schema(classes)
    partial = path.with_name(f".{path.name}.partial")
    groups = [rows[at : at + ROW_GROUP_ROWS] for at in range(0, len(rows), ROW_GROUP_ROWS)]
    with pq.ParquetWriter(
        partial, schema, use_dictionary=False, compression="none", write_page_checksum=True
    ) as writer:
        for group in groups:
            images = [{"bytes": row.image, "path": row.path} for row in group]
            labels = [row.label for row in group]
            writer.write_table(
                pa.table([pa.array(images, schema.field("image").type), labels], schema=schema),
                row_group_size=ROW_GROUP_ROWS,
            )
    with partial.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    partial.rename(path)
    return Shard(
        file=path.name,
        bytes=path.stat().st_size,
        sha256=digest,
        row_groups=tuple(len(group) for group in groups),
    )


def _schema(classes: list[str]) -> pa.Schema:
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    return pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
