"""Rows to tensors: reading ahead, decoding and augmentation, many images at once.

Python threads share out the work, and every heavy part of it (reading, decoding, resampling) runs
in C and C++ off Python's lock. Images stay uint8 until they are on the device.
"""

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from alexnet.config import DataConfig
from alexnet.data.augment import Fitter
from alexnet.data.images import Pixels
from alexnet.data.order import Order, Rows
from alexnet.data.reader import BadRowError, RowReader
from alexnet.data.shards import ShardSet, Split
from alexnet.data.sources import TRAIN
from alexnet.errors import DataError

Labels = npt.NDArray[np.int64]
Batch = tuple[Pixels, Labels]
Problems = dict[int, str]  # why rows were left out

log = logging.getLogger(__name__)

TASK_ROWS = 32  # images that a thread decodes at a stretch
MOST_STARTED = 8  # batches in the making
NO_LABEL = -1
FREE = 3  # references to an array that only `_Memory` holds, while it looks


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A batch to be made: its rows, in any shape, and the epoch that they are taken in."""

    rows: Rows
    epoch: int = 0


class _Filled(NamedTuple):
    """What became of a row."""

    label: int
    problem: str | None = None  # why it was left out


class _BadRows:
    """What is done about rows that cannot be used: the run fails, or others take their places."""

    def __init__(self, config: DataConfig, rows: int, tell: Callable[[str], None]) -> None:
        """Bear with at most `max_bad_rows` of `rows` different ones, and `tell` of each use."""
        self._tell = tell
        self._fail = config.on_bad_row == "fail"
        self._share = config.max_bad_rows
        self._limit = config.max_bad_rows * rows
        self._seen: set[int] = set()

    def skip(self, row: int, reason: str) -> None:
        """Take note of a row that was left out.

        Raises:
            DataError: none is tolerated, or these are too many.
        """
        if self._fail:
            raise DataError(f"{reason} (data.on_bad_row=skip goes on without such rows)")
        self._tell(reason)
        self._seen.add(row)
        if len(self._seen) > self._limit:
            raise DataError(
                f"{len(self._seen)} bad rows are more than data.max_bad_rows = {self._share:.2%} "
                f"of the split; the last one: {reason}"
            )


class _Started(NamedTuple):
    """A batch in the making."""

    batch: Batch
    tasks: list[Future[Problems]]


class _Memory:
    """Arrays for batches, used again once nobody else holds them: fresh memory costs a copy."""

    def __init__(self) -> None:
        self._arrays: list[Pixels] = []

    def array(self, shape: tuple[int, ...]) -> Pixels:
        """Return an uninitialised array."""
        for array in self._arrays:
            if array.shape == shape and sys.getrefcount(array) == FREE:
                return array
        self._arrays = [a for a in self._arrays if sys.getrefcount(a) > FREE]
        self._arrays.append(np.empty(shape, np.uint8))
        return self._arrays[-1]


class Batches:
    """An iterator over batches, made by threads ahead of being asked for."""

    def __init__(
        self,
        jobs: Iterable[_Job],
        reader: RowReader,
        bad_rows: _BadRows,
        fill: Callable[[int, int, Pixels], _Filled],
        image_shape: tuple[int, ...],
        config: DataConfig,
    ) -> None:
        """Make a batch a job; `fill(row, epoch, out)` writes one image."""
        self._jobs = iter(jobs)
        self._reader = reader
        self._bad_rows = bad_rows
        self._fill = fill
        self._image_shape = image_shape
        self._threads = config.threads or len(os.sched_getaffinity(0))
        self._ahead = config.read_ahead
        self._memory = _Memory()

    def __iter__(self) -> Iterator[Batch]:
        """Yield (images, labels).

        Raises:
            DataError: a row is bad and may not be skipped.
        """
        cv2.setNumThreads(0)  # the threads are these
        expected: deque[_Job] = deque()
        started: deque[_Started] = deque()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        try:
            while True:
                for job in self._more(expected):
                    self._reader.expect(job.rows.ravel())
                    expected.append(job)
                while expected and self._idle(started):
                    started.append(self._start(expected.popleft(), pool))
                if not started:
                    return
                batch, tasks = started.popleft()
                for task in tasks:
                    for row, problem in task.result().items():
                        self._bad_rows.skip(row, problem)
                yield _without_gaps(*batch)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._reader.close()

    def _more(self, expected: deque[_Job]) -> Iterator[_Job]:
        while len(expected) <= self._ahead:
            job = next(self._jobs, None)
            if job is None:
                return
            yield job

    def _idle(self, started: deque[_Started]) -> bool:
        """Whether the threads would run out of work before the next batch is asked for."""
        waiting = sum(not task.done() for _, tasks in started for task in tasks)
        return len(started) < 2 or (waiting < 2 * self._threads and len(started) < MOST_STARTED)

    def _start(self, job: _Job, pool: ThreadPoolExecutor) -> _Started:
        images = self._memory.array((*job.rows.shape, *self._image_shape))
        labels = np.empty(job.rows.shape, np.int64)
        rows, flat = job.rows.ravel(), images.reshape(-1, *self._image_shape)
        tasks = [
            pool.submit(self._fill_some, rows[some], job.epoch, flat[some], labels.ravel()[some])
            for some in _slices(len(rows))
        ]
        return _Started((images, labels), tasks)

    def _fill_some(self, rows: Rows, epoch: int, images: Pixels, labels: Labels) -> Problems:
        problems: Problems = {}
        for at, row in enumerate(rows.tolist()):
            labels[at], problem = self._fill(row, epoch, images[at])
            if problem:
                problems[row] = problem
        return problems


def training_batches(
    dataset: ShardSet,
    order: Order,
    virtual_workers: range,
    config: DataConfig,
    first_step: int,
    on_bad_row: Callable[[str], None] = log.warning,
) -> Batches:
    """Endless batches of one rank, from `first_step` on.

    Each is (images uint8 [k, micro_batch, size, size, 3], labels int64 [k, micro_batch]) for the k
    virtual workers of the rank. What a row becomes depends on (seed, epoch, row) alone. A bad row's
    place is taken by the next good one of its chunk, the same at any number of ranks, and
    `on_bad_row` is told.
    """
    split = dataset.splits[TRAIN]
    stream_rows = 2 * config.window + (config.read_ahead + MOST_STARTED) * order.micro_batch
    reader = RowReader(split, len(virtual_workers) * _chunks_of(split, stream_rows))
    bad_rows = _BadRows(config, split.rows, on_bad_row)
    fitter = Fitter(config, dataset.covariance)
    random = _Random()

    def jobs() -> Iterator[_Job]:
        step = first_step
        while True:
            rows = np.stack([order.rows(step, worker) for worker in virtual_workers])
            yield _Job(rows=rows, epoch=order.epoch_of(step))
            step += 1

    def fill(row: int, epoch: int, out: Pixels) -> _Filled:
        problem = None
        for candidate in reader.in_place_of(row):
            rng = random.of((order.seed << 32) + epoch, row)
            try:
                encoded, label = reader.row(candidate)
                _apply(partial(fitter.train, encoded, rng, out), reader, candidate)
                return _Filled(label, problem)
            except BadRowError as error:
                problem = problem or str(error)
        raise DataError(f"{problem}; and no good row is left")

    size = config.image_size
    return Batches(jobs(), reader, bad_rows, fill, (size, size, 3), config)


def evaluation_batches(
    dataset: ShardSet,
    name: str,
    rows: range,
    config: DataConfig,
    batch: int,
    on_bad_row: Callable[[str], None] = log.warning,
) -> Batches:
    """Every row of `rows` once, in order: (images uint8 [n, views, size, size, 3], labels [n]).

    n is `batch` but for the last, and where bad rows are left out.
    """
    split = dataset.splits[name]
    reader = RowReader(split, _chunks_of(split, (config.read_ahead + MOST_STARTED) * batch))
    bad_rows = _BadRows(config, split.rows, on_bad_row)
    fitter = Fitter(config, dataset.covariance)
    jobs = (
        _Job(rows=np.arange(at, min(at + batch, rows.stop)))
        for at in range(rows.start, rows.stop, batch)
    )

    def fill(row: int, epoch: int, out: Pixels) -> _Filled:
        try:
            encoded, label = reader.row(row)
            _apply(partial(fitter.evaluate, encoded, out), reader, row)
            return _Filled(label)
        except BadRowError as error:
            return _Filled(NO_LABEL, str(error))

    size = config.image_size
    return Batches(jobs, reader, bad_rows, fill, (config.evaluation_crops, size, size, 3), config)


class _Random(threading.local):
    """Philox (Salmon et al. 2011) under any key, without the cost of making one anew."""

    def __init__(self) -> None:
        self._philox = np.random.Philox(key=[0, 0])
        self._generator = np.random.Generator(self._philox)
        self._state = self._philox.state

    def of(self, first: int, second: int) -> np.random.Generator:
        """Return the generator that `Philox(key=[first, second])` begins; valid until the next."""
        self._state["state"]["key"][:] = first, second
        self._philox.state = self._state
        return self._generator


def _apply(fit: Callable[[], None], reader: RowReader, row: int) -> None:
    try:
        fit()
    except DataError as error:
        raise BadRowError(f"{reader.name_of(row)}: {error}") from None


def _without_gaps(images: Pixels, labels: Labels) -> Batch:
    """Leave out what has no label."""
    if (labels != NO_LABEL).all():
        return images, labels
    return images[labels != NO_LABEL], labels[labels != NO_LABEL]


def _slices(rows: int) -> list[slice]:
    return [slice(at, at + TASK_ROWS) for at in range(0, rows, TASK_ROWS)]


def _chunks_of(split: Split, rows: int) -> int:
    """Chunks that so many rows of a stream are at most in, those at both ends included."""
    return rows * len(split.chunk_rows) // max(1, split.rows) + 3
