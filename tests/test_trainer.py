"""The loop: what is told when, and how ranks agree on the last step without talking about it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

import pytest
import tensorflow as tf

from alexnet.step import StepResult, TrainStep
from alexnet.trainer import Hook, Phases, StepEvent, Trainer


@dataclass
class Steps:
    """Stands for the graph: its results are ready at once, and some carry a wish to stop."""

    stop_at: int | None = None  # the step, counted from 1, in which some rank asks to stop
    taken: list[int] = field(default_factory=list)

    def __call__(self, images: Any, labels: Any, step: int, rate: float, stop: bool) -> tf.Tensor:
        self.taken.append(step)
        return tf.constant([float(step), rate, step + 1 == self.stop_at, 0.25], tf.float64)

    read = staticmethod(TrainStep.read)


@dataclass
class Recorder(Hook):
    """Writes down what it is told; wants the state after every `every` steps."""

    every: int = 0
    told: list[Any] = field(default_factory=list)

    def on_step(self, event: StepEvent) -> None:
        assert event.result == StepResult(
            event.step - 1, event.rate, event.result.stop, exchange_seconds=0.25
        )
        self.told.append(event.step)

    def wants_state(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def on_state(self, step: int) -> None:
        self.told.append(("state", step))

    def on_end(self, step: int, stopped: bool) -> None:
        self.told.append(("end", step, stopped))


def run(
    steps: Steps, hooks: Sequence[Hook], first_step: int = 0, total: int = 6
) -> tuple[int, bool]:
    def batches(first: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        assert first == first_step
        yield from ((tf.constant(0), tf.constant(0)) for _ in count())

    ticks = count()
    return Trainer(
        step=cast(TrainStep, steps),
        batches=batches,
        rate=lambda step: step / 8,
        total_steps=total,
        hooks=hooks,
        phases=Phases(clock=lambda: float(next(ticks))),
        stop_requested=lambda: False,
    ).run(first_step)


def test_every_step_is_told_once_and_the_state_only_when_it_is_settled() -> None:
    steps, recorder = Steps(), Recorder(every=3)
    assert run(steps, [recorder]) == (6, False)
    assert steps.taken == [0, 1, 2, 3, 4, 5]
    states = [("state", 3), ("state", 6)]
    assert recorder.told == [1, 2, 3, states[0], 4, 5, 6, states[1], ("end", 6, False)]


@pytest.mark.parametrize("wish", [1, 2, 3, 4])
@pytest.mark.parametrize("every", [0, 1, 2, 3])
def test_all_ranks_stop_after_the_same_step_whatever_their_hooks(wish: int, every: int) -> None:
    steps, recorder = Steps(stop_at=wish), Recorder(every=every)
    assert run(steps, [Recorder(), recorder]) == (wish + 1, True)
    assert len(steps.taken) == wish + 1
    assert recorder.told[-1] == ("end", wish + 1, True)


@pytest.mark.parametrize("wish", [5, 6])
def test_a_wish_that_comes_too_late_stops_nothing(wish: int) -> None:
    assert run(Steps(stop_at=wish), [Recorder()]) == (6, False)


def test_a_finished_run_takes_no_step() -> None:
    steps, recorder = Steps(), Recorder(every=1)
    assert run(steps, [recorder], first_step=6) == (6, False)
    assert steps.taken == []
    assert recorder.told == [("end", 6, False)]


def test_a_resumed_run_begins_where_it_was() -> None:
    steps = Steps()
    assert run(steps, [Recorder()], first_step=4) == (6, False)
    assert steps.taken == [4, 5]


def test_phases_add_up_and_a_move_keeps_the_sum() -> None:
    ticks = iter([0.0, 2.0, 10.0, 13.0])
    phases = Phases(clock=lambda: next(ticks))
    with phases("compute"):
        pass
    with phases("eval"):
        pass
    phases.move(0.5, "compute", "exchange")
    assert (phases.seconds["compute"], phases.seconds["exchange"]) == (1.5, 0.5)
    assert phases.training_seconds == 2.0
    assert sum(phases.seconds.values()) == 5.0
