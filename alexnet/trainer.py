"""The training loop. What happens around it is in hooks, who else trains is in the exchange."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from alexnet.evaluation import Evaluation
from alexnet.step import StepResult, TrainStep

PHASES = ("data", "compute", "exchange", "checkpoint", "eval")


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """A step that has ended."""

    step: int  # steps taken, this one included, skipped ones as well
    rate: float
    result: StepResult
    training_seconds: float  # of this rank until the step was launched, see `Phases`


class Hook:
    """Something that happens around the steps. A hook with collective calls is on every rank."""

    def on_step(self, event: StepEvent) -> None:
        """After every step; told while the next one may be running already."""

    def wants_state(self, step: int) -> bool:
        """Whether to be called once the variables hold exactly `step` steps."""
        return False

    def on_state(self, step: int) -> None:
        """The variables hold exactly `step` steps."""

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """The held-out split was scored after `step` steps."""

    def on_end(self, step: int, stopped: bool) -> None:
        """No more steps; `stopped`: because some rank asked for it. Variables as in `on_state`."""


class Phases:
    """Seconds spent in each phase of the loop, by the clock of this rank."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start at zero."""
        self._clock = clock
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @property
    def training_seconds(self) -> float:
        """Time in all phases but evaluation."""
        return sum(self.seconds.values()) - self.seconds["eval"]

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the block's time as `phase`."""
        start = self._clock()
        try:
            yield
        finally:
            self.seconds[phase] += self._clock() - start

    def move(self, seconds: float, from_phase: str, to_phase: str) -> None:
        """Count time that was counted as one phase as another."""
        self.seconds[from_phase] -= seconds
        self.seconds[to_phase] += seconds


class _Launched(NamedTuple):
    """A step whose result is still to be read."""

    step: int
    rate: float
    training_seconds: float
    result: tf.Tensor


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Takes steps until the last one, or until any rank asks to stop."""

    step: TrainStep
    batches: Callable[[int], Iterable[tuple[tf.Tensor, tf.Tensor]]]  # from a step on
    rate: Callable[[int], float]  # of a step, counted from 0
    total_steps: int
    hooks: Sequence[Hook]
    phases: Phases
    stop_requested: Callable[[], bool]

    def run(self, first_step: int) -> tuple[int, bool]:
        """Train from `first_step` steps on; return the steps taken in all, and whether stopped.

        A step's result is read while the next one runs, so that a device never waits for Python;
        only a hook that wants the state makes the loop catch up. Ranks agree when to stop without
        a further message: a wish that step k carried ends the run after step k + 1, everywhere.
        """
        running: deque[_Launched] = deque()
        stop_at, done = self.total_steps, first_step
        batches = iter(self.batches(first_step)) if first_step < self.total_steps else iter(())
        while done < stop_at:
            with self.phases("data"):
                images, labels = next(batches)
            with self.phases("compute"):
                rate = self.rate(done)
                result = self.step(images, labels, done, rate, self.stop_requested())
            done += 1
            running.append(_Launched(done, rate, self.phases.training_seconds, result))

            waiting = [hook for hook in self.hooks if hook.wants_state(done)]
            stop_at = min(stop_at, self._settle(running, leave=0 if waiting else 1))
            for hook in waiting:
                hook.on_state(done)
        self._settle(running, leave=0)
        stopped = done < self.total_steps
        for hook in self.hooks:
            hook.on_end(done, stopped)
        return done, stopped

    def _settle(self, running: deque[_Launched], leave: int) -> int:
        """Read results until `leave` are left; return the step to stop at, if one asked for it."""
        stop_at = self.total_steps
        while len(running) > leave:
            step, rate, training_seconds, tensor = running.popleft()
            with self.phases("compute"):
                result = self.step.read(tensor)
            self.phases.move(result.exchange_seconds, "compute", "exchange")
            event = StepEvent(
                step=step, rate=rate, result=result, training_seconds=training_seconds
            )
            for hook in self.hooks:
                hook.on_step(event)
            if result.stop:
                stop_at = min(stop_at, step + 1)
        return stop_at
