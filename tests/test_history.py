"""The ledger: every second is assigned once, and all of them are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.history import SPENT_ON, History, Ledger, Training


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def phases(compute: float, data: float = 0.0, eval_: float = 0.0) -> dict[str, float]:
    return {"data": data, "compute": compute, "exchange": 0.0, "checkpoint": 0.0, "eval": eval_}


def test_an_attempt_and_its_replay() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    first = Training(ledger, replay_until=0)
    clock.seconds += 20
    first.at(0, phases(0))
    clock.seconds += 10
    first.at(5, phases(9, data=1))
    clock.seconds += 3  # nothing more is heard
    first.end(failed=True)
    clock.seconds += 2
    ledger.close("idle")

    second = Training(ledger, replay_until=5)
    clock.seconds += 15
    second.at(3, phases(0))
    clock.seconds += 4
    second.at(4, phases(4))
    clock.seconds += 2
    second.at(5, phases(5, data=1))
    clock.seconds += 3
    second.at(6, phases(7, data=1, eval_=1))
    clock.seconds += 1
    second.end(failed=False)
    assert {kind: seconds for kind, seconds in ledger.seconds.items() if seconds} == {
        "productive": 9 + 1 + 2,
        "data": 1 + 1,
        "evaluation": 1,
        "start_up": 20 + 15,
        "detection": 3,
        "replay": 4,
        "idle": 2 + 1,
    }
    assert sum(ledger.seconds.values()) == ledger.wall_seconds


def test_a_group_that_never_trains_was_starting_up() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    clock.seconds += 7
    Training(ledger, 0).end(failed=True)
    assert ledger.seconds["start_up"] == ledger.wall_seconds == 7


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["at", "end", "lost", "pause"]),
            st.floats(0, 50),
            st.lists(st.floats(-1, 60), min_size=5, max_size=5),
        )
    )
)
def test_parts_add_up_to_the_whole_whatever_ranks_say(
    events: list[tuple[str, float, list[float]]],
) -> None:
    clock, said = Clock(), phases(0)
    ledger = Ledger(clock)
    training = Training(ledger, replay_until=3)
    for step, (kind, seconds, more) in enumerate(events):
        clock.seconds += seconds
        if kind == "at":
            said = {k: v + add for (k, v), add in zip(said.items(), more, strict=True)}
            training.at(step, said)
        elif kind == "pause":
            ledger.close("idle")
        else:
            training.end(failed=kind == "lost")
            training, said = Training(ledger, replay_until=step), phases(0)
        assert sum(ledger.seconds.values()) <= ledger.wall_seconds + 1e-6
    ledger.close("idle")
    assert set(ledger.seconds) == set(SPENT_ON)
    assert sum(ledger.seconds.values()) == pytest.approx(ledger.wall_seconds)


def test_a_rate_is_of_the_last_attempt_that_trained() -> None:
    history = History()
    history.add(phases(8, data=2, eval_=5), images=50)
    history.add(phases(0), images=0)
    assert history.images_per_second == 5
    assert history.phase_seconds["compute"] == 8
