"""Single rows of a split: straight out of local files, or out of row groups that are kept a while.

Where the manifest says at which byte each image lies, the system's page cache is all the memory
that is needed: row groups are asked for in advance, images read as they come. Sets of others, and
far ones, are read a row group at a time.
"""

import bisect
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import accumulate

from alexnet.data.images import Encoded
from alexnet.data.order import Rows
from alexnet.data.shards import Chunk, Split, row_checksum
from alexnet.errors import DataError

READERS = 4  # row groups read at the same time


class BadRowError(Exception):
    """A row that is not what it was when the set was made; the message says which."""


class RowReader:
    """Looks up rows. May be called from any thread."""

    def __init__(self, split: Split, capacity: int) -> None:
        """Keep at most `capacity` chunks in memory."""
        self._split = split
        self._first_rows = list(accumulate(split.chunk_rows, initial=0))
        self._chunks = _Chunks(split, capacity)
        self._files = _Files(split)
        self._expected: OrderedDict[int, None] = OrderedDict()
        self._capacity = capacity

    def expect(self, rows: Rows) -> None:
        """Begin to read the chunks of rows that will be asked for."""
        for row in rows.tolist():
            chunk = self._chunk_of(row)
            if not self._files.hold(chunk):
                self._chunks.get(chunk)
            elif chunk not in self._expected:
                self._files.expect(chunk)
                self._expected[chunk] = None
                if len(self._expected) > self._capacity:
                    self._expected.popitem(last=False)

    def row(self, row: int) -> tuple[Encoded, int]:
        """Return the encoded image and the label of a row.

        Raises:
            BadRowError: it cannot be read, or is not what it was.
        """
        chunk = self._chunk_of(row)
        within = row - self._first_rows[chunk]
        try:
            kept = self._files if self._files.hold(chunk) else self._chunks
            return kept.row(chunk, within)
        except DataError as error:
            raise BadRowError(f"{self.name_of(row)}: {error}") from None

    def in_place_of(self, row: int) -> Iterator[int]:
        """Yield `row`, and then all others: those of its chunk first, then chunk after chunk."""
        own, chunks = self._chunk_of(row), len(self._first_rows) - 1
        within = row - self._first_rows[own]
        for chunk in (*range(own, chunks), *range(own)):
            first, end = self._first_rows[chunk : chunk + 2]
            for step in range(end - first):
                yield first + (within + step) % (end - first)

    def name_of(self, row: int) -> str:
        """Say where a row is, for people."""
        chunk = self._chunk_of(row)
        return self._split.name_of(chunk, row - self._first_rows[chunk])

    def close(self) -> None:
        """Read no more."""
        self._chunks.close()
        self._files.close()

    def _chunk_of(self, row: int) -> int:
        return bisect.bisect_right(self._first_rows, row) - 1


class _Chunks:
    """Row groups read ahead; the ones not used for longest go first."""

    def __init__(self, split: Split, capacity: int) -> None:
        self._split = split
        self._capacity = capacity
        self._chunks: OrderedDict[int, Future[Chunk]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="read")

    def get(self, chunk: int) -> Future[Chunk]:
        with self._lock:
            if chunk in self._chunks:
                self._chunks.move_to_end(chunk)
            else:
                self._chunks[chunk] = self._pool.submit(self._split.read_chunk, chunk)
                if len(self._chunks) > self._capacity:
                    self._chunks.popitem(last=False)
            return self._chunks[chunk]

    def row(self, chunk: int, within: int) -> tuple[Encoded, int]:
        found = self.get(chunk).result()
        image = found.images[within]
        if image is None:
            raise DataError(found.bad[within])
        return image, int(found.labels[within])

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class _Files:
    """Local shards in which images lie plainly, at bytes that the manifest tells."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._lock = threading.Lock()
        self._descriptors: dict[str, int] = {}
        self._labels = cache(split.read_labels)

    def hold(self, chunk: int) -> bool:
        return self._split.folder.is_local and bool(self._split.places[chunk][0].extents)

    def expect(self, chunk: int) -> None:
        """Have the system read a row group in the background."""
        shard, at = self._split.places[chunk]
        group = shard.row_groups[at]
        try:
            descriptor = self._open(shard.file)
        except DataError:  # told when a row of it is asked for
            return
        os.posix_fadvise(descriptor, group.offset, group.bytes, os.POSIX_FADV_WILLNEED)

    def row(self, chunk: int, within: int) -> tuple[Encoded, int]:
        shard, at = self._split.places[chunk]
        offset, length = map(int, shard.row_extents[at][within])
        label = int(self._labels(chunk)[within])
        image = self._read(shard.file, shard.row_groups[at].offset + offset, length)
        if row_checksum(image, label) != shard.row_checksums[at][within]:
            raise DataError("its checksum is not the manifest's")
        return image, label

    def close(self) -> None:
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def _read(self, file: str, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._open(file), length, offset)
        except OSError as error:
            raise DataError(f"it cannot be read: {error.strerror}") from None

    def _open(self, file: str) -> int:
        with self._lock:
            if file not in self._descriptors:
                try:
                    path = (self._split.folder / file).local
                    self._descriptors[file] = os.open(path, os.O_RDONLY)
                except FileNotFoundError:
                    raise DataError("the file is missing") from None
                except OSError as error:
                    raise DataError(f"it cannot be read: {error.strerror}") from None
            return self._descriptors[file]
