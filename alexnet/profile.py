"""Where the time of a step goes: a trace of a few steps, and a table that adds up to them."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf

from alexnet.trainer import Hook, Phases, StepEvent

WARM_UP = 5  # steps of a run that are not like the rest
log = logging.getLogger(__name__)


class Profile(Hook):
    """Traces `steps` steps after the first few, and tells on what their time was spent.

    The parts are what waited for data, the graph's own moments, and "other": all that was between
    them, down to launching the step and reading what it found. Their sum is the time from the end
    of the step before the first one to the end of the last. TensorFlow's trace slows them a little.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        first_step: int,
        phases: Phases,
        sinks: Sequence[Callable[[dict[str, Any]], None]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Write the trace into `folder` and hand the record to all `sinks`; 0 steps: do nothing."""
        self._folder = folder
        self._steps = steps
        self._begin = first_step + WARM_UP
        self._phases = phases
        self._sinks = sinks
        self._clock = clock
        self._events: list[StepEvent] | None = None  # None: not tracing
        self._told = steps == 0
        self._began = self._data = 0.0

    def wants_state(self, step: int) -> bool:  # noqa: D102 - as in Hook
        return self._steps > 0 and step in (self._begin, self._begin + self._steps)

    def on_state(self, step: int) -> None:  # noqa: D102
        if step > self._begin:
            self._end(step)
            return
        with _whatever_happens():
            tf.profiler.experimental.start(str(self._folder))
        self._events = []
        self._data = self._phases.seconds["data"]
        self._began = self._clock()

    def on_step(self, event: StepEvent) -> None:  # noqa: D102
        if self._events is not None:
            self._events.append(event)

    def on_end(self, step: int, stopped: bool) -> None:  # noqa: D102
        if not self._told:
            self._end(step)

    def _end(self, step: int) -> None:
        """Tell; a run that was too short for it has no steps."""
        whole = self._clock() - self._began
        if self._events is not None:
            with _whatever_happens():
                tf.profiler.experimental.stop()
        results = [event.result for event in self._events or ()]
        self._events, self._told = None, True
        parts = {
            "data": self._phases.seconds["data"] - self._data,
            "forward + backward": sum(result.compute_seconds for result in results),
            "exchange": sum(result.exchange_seconds for result in results),
            "update": sum(result.update_seconds for result in results),
        }
        parts["other"] = whole - sum(parts.values())
        record = {
            "kind": "profile",
            "step": step,
            "steps": len(results),
            "seconds": {k: round(v, 6) for k, v in parts.items()} if results else {},
            "trace": str(self._folder),
        }
        for sink in self._sinks:
            sink(record)


@contextmanager
def _whatever_happens() -> Iterator[None]:
    """A trace that cannot be written costs the trace, never the run."""
    try:
        yield
    except tf.errors.OpError as error:
        log.error("profile: no trace: %s", error.message.splitlines()[0])
