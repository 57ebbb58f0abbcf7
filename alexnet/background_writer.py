"""Writes checkpoints while training goes on."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from safetensors import SafetensorError

from alexnet.archive import Desk
from alexnet.checkpoint import Best, State
from alexnet.errors import AlexnetError, BadNumbersError, CheckpointError

LEAST_URGENT = 19  # a nice value: what the steps leave of a processor, unless they wait

log = logging.getLogger(__name__)


class BackgroundWriter:
    """Writes checkpoints behind the training, at most one at a time.

    A disk that fails is put up with until it has done so `max_failures` times in a row. That, and
    any other error of the writer's thread, is raised in the caller by `check`.
    """

    def __init__(
        self,
        desk: Desk,
        keep: int,
        written: Callable[[int], None],
        failed: Callable[[int, str], None] = lambda step, reason: None,
        max_failures: int = 1,
        restored_step: int = 0,
        waits: bool = False,
    ) -> None:
        """Write on `desk`, keep the newest `keep`, and tell what has become of each step.

        A run that was restored has its checkpoint of `restored_step` there. With `waits` training
        goes on once a checkpoint is written, so that its copy is gone before the next step.
        """
        desk.begin(restored_step)
        self._desk = desk
        self._keep = keep
        self._written = written
        self._failed = failed
        self._max_failures = max_failures
        self._waits = waits
        self._newest = restored_step
        marked = desk.best()
        self._best_top1 = marked.top1 if marked else -1.0
        self._failures: list[CheckpointError] = []  # in a row
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def waits(self) -> bool:
        """Whether what was submitted is not needed any more when `submit` returns."""
        return self._waits

    def submit(self, step: int, state: State, facts: Mapping[str, Any]) -> None:
        """Start writing; wait for the one before if that still runs, or for this one's end.

        Until it is written, see `wait`, nobody may change `state`.
        """
        self.wait()
        self.check()
        self._thread = threading.Thread(
            target=self._write, args=(step, state, facts), name="checkpoint"
        )
        self._thread.start()
        if self._waits:
            self.wait()

    @property
    def best_top1(self) -> float:
        """The score of the best checkpoint so far; less than any if there is none."""
        return self._best_top1

    def mark_best(self, step: int, top1: float) -> None:
        """Mark the newest checkpoint as the best, once it is there; if it got there.

        A disk that does not take the mark leaves that of the best before.
        """
        self.wait()
        self.check()
        if self._newest == step:
            with self._doing_without(f"step {step} is not marked as the best"):
                self._desk.mark_best(Best(step=step, top1=top1))
                self._best_top1 = top1

    def check(self) -> None:
        """Raise what has kept the writer from going on, once."""
        error, self._error = self._error, None
        if error:
            raise error

    def finish(self) -> None:
        """Return once nothing is being written; raise unless the last one is on the disk."""
        self.wait()
        self.check()
        if self._failures:
            raise self._failures[-1]

    def wait(self) -> None:
        """Return once nothing is being written, whatever has become of it."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def _write(self, step: int, state: State, facts: Mapping[str, Any]) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_URGENT)  # of this thread
        try:
            _refuse_bad_numbers(step, state)
            self._desk.write(step, state, facts)
            self._newest = step
            self._failures.clear()
            self._written(step)
            with self._doing_without("old checkpoints are still there"):
                self._desk.tidy(step, self._keep)
        except (OSError, SafetensorError) as error:
            self._error = self._disk_failure(step, error)
        except Exception as error:  # raised in the training thread
            self._error = error

    @contextmanager
    def _doing_without(self, what: str) -> Iterator[None]:
        """Go on if the disk fails in something that checkpoints are whole without."""
        try:
            yield
        except OSError as error:
            if taken := self._taken():
                raise taken from error
            log.error("%s: %s", what, " ".join(str(error).split()))

    def _taken(self) -> AlexnetError | None:
        with suppress(OSError):  # a store that does not answer tells nothing
            if self._desk.is_taken():
                return AlexnetError(f"{self._desk}: taken over by another attempt or job")
        return None

    def _disk_failure(self, step: int, error: Exception) -> AlexnetError | None:
        """Return the error to stop at, if it is time to."""
        if taken := self._taken():
            return taken
        reason = " ".join(str(error).split())
        log.error("no checkpoint of step %d: %s", step, reason)
        self._failed(step, reason)
        self._failures.append(CheckpointError(f"no checkpoint of step {step}: {reason}"))
        return self._failures[-1] if len(self._failures) >= self._max_failures else None


def _refuse_bad_numbers(step: int, state: State) -> None:
    for name, array in state.items():
        if array.dtype.kind != "f":
            continue
        # No array of answers is made, as large as a fourth of the state. A NaN is least and most.
        if not np.isfinite([array.min(initial=0), array.max(initial=0)]).all():
            raise BadNumbersError(f"step {step}: {name} is not finite; no checkpoint of that")
