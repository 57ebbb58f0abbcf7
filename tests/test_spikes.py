"""Jumps of the training loss."""

import math
from typing import Any

import numpy as np
import pytest

from alexnet.spikes import LossSpikes
from alexnet.step import StepResult
from alexnet.trainer import StepEvent


def told(losses: list[float], skipped: frozenset[int] = frozenset()) -> list[dict[str, Any]]:
    """Return the records of a run with these losses, steps being counted from 1."""
    records: list[dict[str, Any]] = []
    hook = LossSpikes([records.append])
    for step, loss in enumerate(losses, start=1):
        bad = step in skipped
        result = StepResult(loss, 0.5, stop=False, skipped=bad, exchange_seconds=0.0)
        hook.on_step(StepEvent(step=step, rate=0.1, result=result, training_seconds=0.0))
    return records


def steps(losses: list[float], skipped: frozenset[int] = frozenset()) -> list[int]:
    return [record["step"] for record in told(losses, skipped)]


def noisy(level: float, count: int) -> list[float]:
    rng = np.random.default_rng(count)
    values: list[float] = (level + 0.1 * level * rng.normal(size=count)).tolist()
    return values


def test_a_jump_is_told_with_what_the_loss_was_before() -> None:
    (record,) = told([*noisy(1.0, 60), 5.0, *noisy(1.0, 60)])
    assert (record["kind"], record["step"], record["loss"]) == ("loss_spike", 61, 5.0)
    assert record["usual"] == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("first", [1, 10, 20])
def test_nothing_is_told_before_there_is_enough_to_compare_with(first: int) -> None:
    assert steps([*noisy(1.0, first - 1), 50.0]) == []


def test_a_jump_at_the_first_step_that_can_be_judged() -> None:
    assert steps([*noisy(1.0, 20), 50.0]) == [21]


def test_a_loss_that_stays_up_is_told_once_and_again_after_it_was_down() -> None:
    high = [5.0, 12.0, 26.0, 60.0]  # each a jump by itself
    assert steps([*noisy(1.0, 60), *high]) == [61]
    assert steps([*noisy(1.0, 60), *high, *noisy(1.0, 60), *high]) == [61, 125]


def test_a_new_level_becomes_the_usual_one() -> None:
    assert steps([*noisy(1.0, 60), *noisy(4.0, 60), 40.0]) == [61, 121]


def test_skipped_steps_are_no_jumps_and_are_not_compared_with() -> None:
    losses = [*noisy(1.0, 60), math.nan, math.inf, 5.0]
    assert steps(losses, frozenset({61, 62})) == [63]


def test_losses_that_are_all_the_same() -> None:
    assert steps([0.5] * 100) == []
    assert steps([*[0.5] * 100, 0.6]) == []
    assert steps([*[0.5] * 100, 1.1]) == [101]
