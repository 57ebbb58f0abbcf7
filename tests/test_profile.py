"""Where a step's time goes: the parts of the table, and that they are the step."""

from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from alexnet.profile import WARM_UP, Profile
from alexnet.records import read_records
from alexnet.step import StepResult
from alexnet.trainer import Phases, StepEvent
from cluster.screen import profile_table
from tests.ranks import run_ranks

CONFIG = """
run_dir: {run}
data: {{path: {data}, image_size: 67}}
train: {{global_batch: 32, micro_batch: 16, max_steps: 14, log_every: 1, profile_steps: {steps}}}
cluster: {{threads_per_worker: 1, metrics_port: 0}}
"""
RESULT = StepResult(
    1.0,
    0.5,
    stop=False,
    skipped=False,
    exchange_seconds=2.0,
    compute_seconds=3.0,
    update_seconds=1.0,
)


def profile_of(folder: Path, steps: int, first_step: int, last_step: int) -> list[dict[str, Any]]:
    """The records of a run whose steps take 8 s, 0.5 of which wait for data."""
    records: list[dict[str, Any]] = []
    now = [0.0]
    phases = Phases()
    hook = Profile(folder, steps, first_step, phases, [records.append], clock=lambda: now[0])
    for step in range(first_step + 1, last_step + 1):
        wanted = hook.wants_state(step)
        now[0] += 8
        phases.seconds["data"] += 0.5
        hook.on_step(StepEvent(step=step, rate=0.1, result=RESULT, training_seconds=8.0 * step))
        if wanted:
            hook.on_state(step)
    hook.on_end(last_step, False)
    return records


def traces(folder: Path) -> list[Path]:
    return [*folder.glob("plugins/profile/*/*.xplane.pb")]


@pytest.mark.parametrize(
    ("steps", "first", "last", "traced"), [(2, 0, 9, 2), (2, 40, 49, 2), (9, 0, 9, 4), (2, 0, 7, 2)]
)
def test_the_parts_of_a_profile_add_up(
    tmp_path: Path, steps: int, first: int, last: int, traced: int
) -> None:
    (record,) = profile_of(tmp_path, steps, first, last)
    parts = {"data": 0.5, "forward + backward": 3, "exchange": 2, "update": 1, "other": 1.5}
    assert record["steps"] == traced
    assert record["step"] == first + WARM_UP + traced
    assert record["seconds"] == {name: spent * traced for name, spent in parts.items()}
    assert len(traces(tmp_path)) == 1
    _, *shown = profile_table(record)
    means = [500, 3000, 2000, 1000, 1500, 8000]
    assert [float(line.split()[-4]) for line in shown] == means
    assert shown[1].split()[-2:] == ["37.5", "%"]
    assert shown[-1].split()[-2:] == ["100.0", "%"]


@pytest.mark.parametrize("last", [WARM_UP, 1])
def test_a_run_that_is_too_short_says_so(tmp_path: Path, last: int) -> None:
    (record,) = profile_of(tmp_path, 3, 0, last)
    assert record["steps"] == 0
    assert profile_table(record) == [f"step {last:>6}  no profile: the run has ended before"]


def test_without_a_wish_for_it_there_is_none(tmp_path: Path) -> None:
    assert profile_of(tmp_path, 0, 0, 9) == []
    assert not tmp_path.joinpath("plugins").exists()


def test_a_trace_that_cannot_be_taken_costs_no_run(tmp_path: Path) -> None:
    tf.profiler.experimental.start(str(tmp_path / "other"))  # there is one at a time
    try:
        (record,) = profile_of(tmp_path, 2, 0, 9)
    finally:
        with pytest.raises(tf.errors.OpError):
            tf.profiler.experimental.stop()  # the hook has ended it
    assert record["steps"] == 2


def test_a_profile_of_real_ranks_adds_up_to_their_steps(digits: Path, tmp_path: Path) -> None:
    config, steps = tmp_path / "config.yaml", 6
    config.write_text(CONFIG.format(run=tmp_path / "run", data=digits, steps=steps))
    run_ranks(2, "profiled.py", [str(config)])
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    (found,) = (record for record in records if record["kind"] == "profile")
    taken = range(WARM_UP + 1, WARM_UP + steps + 1)
    pace = {r["step"]: r["images_per_second"] for r in records if r["kind"] == "step"}
    measured = sum(32 / pace[step] for step in taken)  # by the trainer's own phases
    parts = found["seconds"]
    assert found["steps"] == steps
    assert sum(parts.values()) == pytest.approx(measured, rel=0.05)
    assert all(spent >= 0 for spent in parts.values())
    assert parts["other"] < 0.1 * measured
    assert min(parts["forward + backward"], parts["update"]) > 0.02 * measured
    assert len(traces(tmp_path / "run" / "tensorboard")) == 1
