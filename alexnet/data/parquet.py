"""One row group of a Parquet file, whoever wrote it, from a disk or from a far store."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from alexnet.data.images import Encoded
from alexnet.data.storage import Location, RangeCache
from alexnet.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where image and label are: `image` is a struct's field (`image.bytes`) or a plain column."""

    image: str
    label: str


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """A row group's place in its file."""

    index: int
    rows: int
    offset: int
    bytes: int

    @staticmethod
    def of(metadata: pq.RowGroupMetaData, index: int) -> "RowGroup":
        """Return the place of a row group, all of its columns together."""
        columns = [metadata.column(at) for at in range(metadata.num_columns)]
        begins = [
            min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
            for column in columns
        ]
        ends = [
            begin + column.total_compressed_size
            for begin, column in zip(begins, columns, strict=True)
        ]
        first = min(begins)
        return RowGroup(index=index, rows=metadata.num_rows, offset=first, bytes=max(ends) - first)


class File(Protocol):
    """What must be known of a file to read parts of it."""

    @property
    def bytes(self) -> int:
        """Its size."""

    @property
    def sha256(self) -> str:
        """Its hash: the name under which parts of it are cached."""

    @property
    def footer(self) -> int:
        """Where its metadata begin."""


def read_row_group(
    path: Location,
    file: File,
    group: RowGroup,
    columns: Columns,
    classes: tuple[str, ...],
    cache: RangeCache | None,
) -> tuple[list[Encoded | None], npt.NDArray[np.int64]]:
    """Return the encoded images and the labels, int64 [rows], of one row group.

    Raises:
        DataError: the file is missing, has another size, or makes no sense there. The message
            leaves out which file that is.
    """
    with _told():
        table = _read(path, file, group, [columns.image, columns.label], cache)
        name, _, field = columns.image.partition(".")
        images = table[name].combine_chunks()
        images = images.field(field) if field else images
        labels = labels_of(table[columns.label].combine_chunks(), classes)
        return images_of(images), labels


def read_labels(
    path: Location, file: File, group: RowGroup, columns: Columns, classes: tuple[str, ...]
) -> npt.NDArray[np.int64]:
    """Return the labels, int64 [rows], of one row group of a local file.

    Raises:
        DataError: as `read_row_group` does.
    """
    with _told():
        table = _read(path, file, group, [columns.label], None)
        return labels_of(table[columns.label].combine_chunks(), classes)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError("the file is missing") from None
    except (OSError, pa.ArrowException, ValueError, KeyError, IndexError) as error:
        raise DataError(f"it cannot be read: {' '.join(str(error).split())}") from None


def _read(
    path: Location, file: File, group: RowGroup, columns: list[str], cache: RangeCache | None
) -> pa.Table:
    with _open(path, file, group, cache) as parquet:
        table = parquet.read_row_group(group.index, columns=columns, use_threads=False)
    if len(table) != group.rows:
        raise ValueError(f"it holds {len(table)} rows, the manifest says {group.rows}")
    return table


def _open(path: Location, file: File, group: RowGroup, cache: RangeCache | None) -> pq.ParquetFile:
    if path.is_local:
        stat = path.local.stat()
        if stat.st_size != file.bytes:
            raise ValueError(f"the file has {stat.st_size} bytes, the manifest says {file.bytes}")
        return pq.ParquetFile(path.path, metadata=_metadata(path.path, stat.st_mtime_ns))
    footer = _fetch(path, file, file.footer, file.bytes - file.footer, cache)
    metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + footer))
    rows = _fetch(path, file, group.offset, group.bytes, cache)
    return pq.ParquetFile(_Part(rows, group.offset, file.bytes), metadata=metadata)


@lru_cache(maxsize=64)
def _metadata(path: str, changed: int) -> pq.FileMetaData:
    """The footer of a local file that was last `changed` then."""
    return pq.read_metadata(path)


def images_of(column: pa.Array) -> list[Encoded | None]:
    """Return each row's bytes, without copying them, of a binary or a list-of-bytes column."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if not (kind.value_type.bit_width == 8 and pa.types.is_integer(kind.value_type)):
            raise ValueError(f"images are lists of {kind.value_type}, not of bytes")
        data = column.values.buffers()[1]
        offsets = column.offsets.to_numpy() + column.values.offset
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        width = np.int32 if pa.types.is_binary(kind) else np.int64
        _, starts, data = column.buffers()
        offsets = np.frombuffer(starts, width)[column.offset : column.offset + len(column) + 1]
    else:
        raise ValueError(f"images are {kind}, not binary, a list of bytes or a struct with bytes")
    whole = memoryview(data or b"").cast("B")
    images: list[Encoded | None] = [whole[begin:end] for begin, end in pairwise(offsets.tolist())]
    for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)):
        images[row] = None
    return images


def labels_of(column: pa.Array, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Return class numbers, int64 [rows], of a column of numbers or of class names."""
    if column.null_count:
        raise ValueError("a label is missing")
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        number = {name: label for label, name in enumerate(classes)}
        labels = np.array([number.get(name, -1) for name in column.to_pylist()], np.int64)
    elif pa.types.is_integer(column.type):
        labels = column.to_numpy().astype(np.int64)
    else:
        raise ValueError(f"labels are {column.type}, neither integers nor strings")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        wrong = column[int(np.flatnonzero((labels < 0) | (labels >= len(classes)))[0])]
        raise ValueError(f"label {wrong} is none of the {len(classes)} classes")
    return labels


class _Part(io.RawIOBase):
    """A file of which one part is here."""

    def __init__(self, data: bytes, offset: int, size: int) -> None:
        self._data = data
        self._offset = offset
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        begin = self._at - self._offset
        end = len(self._data) if size < 0 else begin + size
        if not 0 <= begin <= end <= len(self._data):
            raise OSError(f"bytes {self._at} to {self._at + size} are not in the row group")
        self._at += end - begin
        return self._data[begin:end]


def forget_row_group(file: File, group: RowGroup, cache: RangeCache) -> None:
    """Drop what is cached of a row group, and of its file's metadata."""
    cache.forget(_key(file, group.offset))
    cache.forget(_key(file, file.footer))


def _fetch(path: Location, file: File, offset: int, length: int, cache: RangeCache | None) -> bytes:
    def fetch() -> bytes:
        return path.read_range(offset, length)

    return cache.get(_key(file, offset), fetch) if cache else fetch()


def _key(file: File, offset: int) -> str:
    return f"{file.sha256[:32]}-{offset}"
