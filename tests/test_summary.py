"""Every summary has every key of the contract."""

import json
from typing import Any

import pytest

from alexnet.config import RunConfig
from alexnet.errors import DataError
from cluster import summary
from cluster.board import RankResult
from cluster.history import History, Training

CONTRACT = {
    "status",
    "exit_code",
    "world_size",
    "virtual_workers",
    "attempts",
    "steps",
    "images_seen",
    "eval",
    "images_per_second",
    "phase_seconds",
    "goodput_ratio",
    "weights_sha256",
    "wire_bytes_per_step",
    "started_at",
    "ended_at",
}
CONFIG = RunConfig.model_validate({"train": {"global_batch": 64, "micro_batch": 8}})
SCORES = {"top1": 0.5, "top5": 0.9, "loss": 1.0, "images": 359}
PHASES = {"data": 1.0, "compute": 2.0, "exchange": 1.0, "checkpoint": 0.0, "eval": 3.0}


def history() -> History:
    """Two attempts of 3 ranks that have come to step 20; the last one has taken 10 steps."""
    history = History(workers=3, attempts=2, furthest=20, evaluation=SCORES)
    history.add(PHASES, images=640)
    return history


def result(first_step: int, step: int, stopped: bool = False) -> RankResult:
    return RankResult(
        first_step=first_step,
        step=step,
        stopped=stopped,
        evaluation=None if stopped else SCORES,
        phase_seconds=PHASES,
        weights_sha256="ab",
        wire_bytes_per_step=5,
    )


SUMMARIES = {
    "completed": summary.ended(CONFIG, history(), result(10, 20), {}),
    "preempted": summary.ended(CONFIG, history(), result(10, 20, stopped=True), {}),
    "stopped": summary.stopped(CONFIG, history(), 16),
    "failed": summary.failed(CONFIG, history(), DataError("no such file")),
}


@pytest.mark.parametrize("kind", SUMMARIES)
def test_every_summary_has_the_contract_s_keys(kind: str) -> None:
    found = SUMMARIES[kind]
    assert found.keys() >= CONTRACT
    assert found["world_size"] == 3
    assert found["virtual_workers"] == 8
    assert found["images_seen"] == found["steps"] * 64
    assert found["eval"] == SCORES
    assert found["images_per_second"] == 160
    assert json.loads(json.dumps(found)) == found


def test_how_it_ended() -> None:
    assert {kind: (s["status"], s["exit_code"], s["steps"]) for kind, s in SUMMARIES.items()} == {
        "completed": ("completed", 0, 20),
        "preempted": ("preempted", 75, 20),
        "stopped": ("preempted", 75, 16),
        "failed": ("failed", 3, 20),
    }
    assert SUMMARIES["failed"]["error"] == "no such file"


def test_a_launch_with_nothing_to_do_keeps_what_was_measured() -> None:
    before = SUMMARIES["completed"] | {"images_per_second": 123.0, "goodput_ratio": 0.9}
    again = summary.ended(CONFIG, History(workers=2, attempts=1), result(20, 20), before)
    measured: dict[str, Any] = {name: again[name] for name in summary.MEASURED}
    assert measured == {name: before[name] for name in summary.MEASURED}
    assert (again["world_size"], again["attempts"]) == (2, 1)


def test_a_launch_that_trained_tells_its_own_figures() -> None:
    before = {"images_per_second": 123.0}
    found = summary.ended(CONFIG, history(), result(19, 20), before)
    assert found["images_per_second"] == 160


def test_a_launch_whose_last_attempt_had_nothing_to_do_tells_its_own_figures() -> None:
    """A rank that dies in the last evaluation is replaced by one that restores the last step."""
    found = summary.ended(CONFIG, history(), result(20, 20), {"images_per_second": 123.0})
    assert found["images_per_second"] == 160


def test_goodput_is_the_share_of_new_steps() -> None:
    clock = iter([0.0, *[100.0] * 50])
    history = History()
    history.ledger.__init__(lambda: next(clock))  # type: ignore[misc]
    training = Training(history.ledger, replay_until=5)
    training.at(0, dict.fromkeys(PHASES, 0.0))
    history.ledger.seconds["start_up"] = 20
    training.at(4, PHASES | {"compute": 10})
    training.at(9, PHASES | {"compute": 50})
    found = summary.ended(CONFIG, history, result(0, 9), {})
    assert found["goodput_ratio"] == 0.4
    assert sum(found["wall_seconds"].values()) == 100
