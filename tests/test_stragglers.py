from collections.abc import Sequence

import pytest

from cluster.board import Status
from cluster.stragglers import STEPS, Stragglers

QUICK, SLOW = (0.1, 1.0), (0.1, 4.9)


def status(step: int | None, data: float, compute: float, exchange: float = 0.0) -> Status:
    phases = {"data": data, "compute": compute, "exchange": exchange, "eval": 99.0}
    return Status(step=step, idle_seconds=0, records=[], phase_seconds=phases)


def look_at(work: Sequence[tuple[float, float]], steps: int, found: Stragglers) -> list[str]:
    """What is said while ranks take `steps` steps with so much data and compute time in each."""
    said = []
    for step in range(steps + 1):
        looks = {
            rank: status(step, 3 + step * data, 9 + step * compute, step * 50)
            for rank, (data, compute) in enumerate(work)
        }
        said += found.look(looks, len(work))
    return said


@pytest.mark.parametrize(
    ("work", "named"),
    [
        ([QUICK, SLOW], [1]),
        ([SLOW, QUICK, QUICK], [0]),
        ([QUICK, (4.9, 0.1), QUICK], [1]),
        ([QUICK, QUICK, QUICK, SLOW, SLOW], [3, 4]),
        ([QUICK, (0.1, 2.0)], []),
        ([SLOW, SLOW, SLOW], []),
        ([SLOW], []),
    ],
)
def test_a_rank_is_named_once_by_its_own_work(
    work: list[tuple[float, float]], named: list[int]
) -> None:
    said = look_at(work, 3 * STEPS, Stragglers())
    assert [line.split(":")[0] for line in said] == [f"rank {rank} is slow" for rank in named]


def test_the_figures_are_a_step_s() -> None:
    (said,) = look_at([QUICK, SLOW], 3 * STEPS, Stragglers())
    assert said == "rank 1 is slow: 5.00 s of its own work a step, 1.10 s on the others"


def test_a_rank_that_has_not_been_heard_of_is_waited_for() -> None:
    found = Stragglers()
    for step in range(3 * STEPS):
        assert found.look({0: status(step, 0, step), 1: status(step, 0, 5 * step)}, 3) == []


def test_too_few_steps_say_nothing() -> None:
    assert look_at([QUICK, SLOW], STEPS, Stragglers()) == []
    assert len(look_at([QUICK, SLOW], STEPS + 1, Stragglers())) == 1
