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
        moments = [10.0, 10.5, 10.75, 12.0]
        figures = [float(step), rate, step + 1 == self.stop_at, 1.0, 0.0, *moments]
        return tf.constant(figures, tf.float64)

    read = staticmethod(TrainStep.read)


@dataclass
class Recorder(Hook):
    """Writes down what it is told; wants the state after every `every` steps."""

    every: int = 0
    told: list[Any] = field(default_factory=list)

    def on_step(self, event: StepEvent) -> None:
        assert event.result == StepResult(
            event.step - 1,
            event.rate,
            event.result.stop,
            skipped=False,
            exchange_seconds=0.25,
            compute_seconds=0.5,
            update_seconds=1.25,
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


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Log(Hook):
    """Steps and a hook in one, that write down in which order they are called, and take time."""

    clock: Clock = field(default_factory=Clock)
    wants: tuple[int, ...] = ()
    log: list[str] = field(default_factory=list)
    given: list[tuple[Any, ...]] = field(default_factory=list)
    training_seconds: list[float] = field(default_factory=list)

    def __call__(self, *given: Any) -> int:
        self.clock.seconds += 3
        self.given.append(given)
        self.log.append(f"launch {given[2] + 1}")
        return int(given[2])

    def read(self, step: int) -> StepResult:
        self.clock.seconds += 4
        self.log.append(f"read {step + 1}")
        return StepResult(0.0, 0.0, stop=False, skipped=False, exchange_seconds=2.5)

    def on_step(self, event: StepEvent) -> None:
        self.training_seconds.append(event.training_seconds)
        self.log.append(f"told {event.step}")

    def wants_state(self, step: int) -> bool:
        return step in self.wants

    def on_state(self, step: int) -> None:
        self.log.append(f"state {step}")

    def trainer(self, total: int, wishes: Sequence[bool] = (), *hooks: Hook) -> Trainer:
        def batches(first: int) -> Iterator[Any]:
            for step in count(first):
                self.clock.seconds += 1
                yield f"images {step}", f"labels {step}"

        wish = iter([*wishes, *[False] * total])
        return Trainer(
            step=cast(TrainStep, self),
            batches=batches,
            rate=lambda step: step / 8,
            total_steps=total,
            hooks=[self, *hooks],
            phases=Phases(self.clock),
            stop_requested=lambda: next(wish),
        )


def test_a_result_is_read_while_the_next_step_runs() -> None:
    log = Log()
    log.trainer(3).run(0)
    assert " ".join(log.log) == (
        "launch 1 launch 2 read 1 told 1 launch 3 read 2 told 2 read 3 told 3"
    )


def test_who_wants_a_state_makes_the_loop_catch_up() -> None:
    log = Log(wants=(2,))
    log.trainer(3).run(0)
    assert " ".join(log.log) == (
        "launch 1 launch 2 read 1 told 1 read 2 told 2 state 2 launch 3 read 3 told 3"
    )


def test_each_step_has_its_batch_its_rate_and_the_wish_of_its_moment() -> None:
    log = Log()
    log.trainer(5, [False, True]).run(2)
    assert log.given == [
        ("images 2", "labels 2", 2, 0.25, False),
        ("images 3", "labels 3", 3, 0.375, True),
        ("images 4", "labels 4", 4, 0.5, False),
    ]


def test_phases_of_a_run_add_up_to_its_time() -> None:
    log, taken = Log(), list[Trainer]()

    class Saves(Hook):
        def wants_state(self, step: int) -> bool:
            return step == 2

        def on_state(self, step: int) -> None:
            with taken[0].phases("checkpoint"):
                log.clock.seconds += 10

        def on_end(self, step: int, stopped: bool) -> None:
            with taken[0].phases("eval"):
                log.clock.seconds += 20

    taken.append(log.trainer(4, (), Saves()))
    taken[0].run(0)
    assert taken[0].phases.seconds == {
        "data": 4 * 1,
        "compute": 4 * (3 + 4 - 2.5),
        "exchange": 4 * 2.5,
        "checkpoint": 10,
        "eval": 20,
    }
    assert sum(taken[0].phases.seconds.values()) == log.clock.seconds


def test_an_event_tells_the_training_time_at_its_launch() -> None:
    log = Log()
    log.trainer(3).run(0)
    # data takes 1 and a launch 3; the first result, 4, is read after the second launch
    assert log.training_seconds == [4, 8, 16]


def test_time_counts_where_a_phase_ends_in_an_error() -> None:
    clock = Clock()
    phases = Phases(clock)
    with pytest.raises(KeyError), phases("data"):
        clock.seconds += 5
        raise KeyError
    assert phases.seconds["data"] == 5


def test_an_error_of_a_step_is_not_held_back() -> None:
    class Breaks(Steps):
        @staticmethod
        def read(result: tf.Tensor) -> StepResult:
            raise RuntimeError("a rank is gone")

    recorder = Recorder()
    with pytest.raises(RuntimeError, match="a rank is gone"):
        run(cast(Steps, Breaks()), [recorder])
    assert recorder.told == []
