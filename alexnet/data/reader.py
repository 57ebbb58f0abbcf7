"""Single rows of a split, out of row groups that are read ahead and kept for a while."""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate

from alexnet.data.images import Encoded
from alexnet.data.order import Rows
from alexnet.data.shards import Chunk, Split

READERS = 4  # row groups read at the same time


class BadRowError(Exception):
    """A row that is not what it was when the set was made; the message says which."""


class RowReader:
    """Looks up rows and keeps the chunks last used. May be called from any thread."""

    def __init__(self, split: Split, capacity: int) -> None:
        """Keep at most `capacity` chunks in memory."""
        self._split = split
        self._capacity = capacity
        self._first_rows = list(accumulate(split.chunk_rows, initial=0))
        self._chunks: OrderedDict[int, Future[Chunk]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self.chunks_read = 0

    def expect(self, rows: Rows) -> None:
        """Begin to read the chunks of rows that will be asked for."""
        for row in rows.tolist():
            self._chunk(self._chunk_of(row))

    def row(self, row: int) -> tuple[Encoded, int]:
        """Return the encoded image and the label of a row.

        Raises:
            BadRowError: it cannot be read, or is not what it was.
        """
        number = self._chunk_of(row)
        within = row - self._first_rows[number]
        chunk = self._chunk(number).result()
        image = chunk.images[within]
        if image is None:
            raise BadRowError(f"{self.name_of(row)}: {chunk.bad[within]}")
        return image, int(chunk.labels[within])

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
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _chunk_of(self, row: int) -> int:
        return bisect.bisect_right(self._first_rows, row) - 1

    def _chunk(self, chunk: int) -> Future[Chunk]:
        with self._lock:
            if chunk in self._chunks:
                self._chunks.move_to_end(chunk)
            else:
                self._chunks[chunk] = self._pool.submit(self._split.read_chunk, chunk)
                self.chunks_read += 1
                if len(self._chunks) > self._capacity:
                    self._chunks.popitem(last=False)
            return self._chunks[chunk]
