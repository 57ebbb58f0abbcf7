"""Which rows make up which micro-batch: a pure function of (seed, chunks, step, virtual worker).

An epoch permutes the chunks (Parquet row groups), lays their rows end to end and cuts the line
into V equal streams, one a virtual worker. A stream is shuffled inside consecutive windows of rows,
so that a reader holds few chunks at a time and stays almost wholly within its own. Nothing is
stored: any step of any epoch is computed directly, for any number of ranks.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of training rows.

    Rows are numbered through the chunks in manifest order. The tail that does not fill a last
    global batch (fewer than `virtual_workers * micro_batch` rows) is dropped; which rows these are
    changes with the epoch's permutation.
    """

    seed: int
    chunk_rows: tuple[int, ...]
    virtual_workers: int
    micro_batch: int
    window: int

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch; 0 if there are fewer rows than one takes."""
        return sum(self.chunk_rows) // (self.virtual_workers * self.micro_batch)

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 0, that `step`, from 0, belongs to."""
        return step // self.steps_per_epoch

    def rows(self, step: int, virtual_worker: int) -> Rows:
        """Return the row numbers of one micro-batch, int64 of shape [micro_batch]."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        first = step_of_epoch * self.micro_batch
        window, offset = divmod(first, self._window_rows)
        positions = _window(self, epoch, virtual_worker, window)
        return _rows_at(self, epoch, positions[offset : offset + self.micro_batch])

    @cached_property
    def _window_rows(self) -> int:
        """The window as whole micro-batches, so that none straddles two windows."""
        return max(1, self.window // self.micro_batch) * self.micro_batch

    @property
    def _stream_rows(self) -> int:
        return self.steps_per_epoch * self.micro_batch


def share(virtual_workers: int, rank: int, world_size: int) -> range:
    """Return the virtual workers that `rank` computes: contiguous, sizes at most one apart."""
    first = rank * virtual_workers // world_size
    return range(first, (rank + 1) * virtual_workers // world_size)


@lru_cache(maxsize=1024)
def _window(order: Order, epoch: int, virtual_worker: int, window: int) -> Rows:
    """Positions, along the epoch's line of rows, of one shuffled window of one stream."""
    start = window * order._window_rows
    size = min(order._window_rows, order._stream_rows - start)
    rng = np.random.default_rng([order.seed, epoch, 1 + virtual_worker, window])
    return virtual_worker * order._stream_rows + start + rng.permutation(size)


@lru_cache(maxsize=8)
def _line(order: Order, epoch: int) -> tuple[Rows, Rows]:
    """The epoch's line of chunks: where each begins on it, and the row number it begins with."""
    sizes = np.asarray(order.chunk_rows, np.int64)
    permutation = np.random.default_rng([order.seed, epoch, 0]).permutation(len(sizes))
    first_rows = np.cumsum(sizes) - sizes
    laid = sizes[permutation]
    return np.cumsum(laid) - laid, first_rows[permutation]


def _rows_at(order: Order, epoch: int, positions: Rows) -> Rows:
    begins, first_rows = _line(order, epoch)
    place = np.searchsorted(begins, positions, side="right") - 1
    return first_rows[place] + positions - begins[place]
