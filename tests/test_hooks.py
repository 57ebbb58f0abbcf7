import json
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tensorflow as tf

from alexnet.checkpoint import BackgroundWriter, read
from alexnet.config import OptimizerConfig
from alexnet.evaluation import Evaluation
from alexnet.hooks import Evaluate, JsonLines, LogLines, SaveCheckpoints, TensorBoard
from alexnet.optimizer import Momentum
from alexnet.step import StepResult
from alexnet.trainer import Hook, Phases, StepEvent

SCORE: Evaluation = {"top1": 0.5, "top5": 0.9, "loss": 1.25, "images": 359}


def event(step: int, loss: float = 1.0, accuracy: float = 0.5, seconds: float = 0.0) -> StepEvent:
    result = StepResult(loss=loss, accuracy=accuracy, stop=False, exchange_seconds=0.0)
    return StepEvent(step=step, rate=step / 100, result=result, training_seconds=seconds)


def drive(hook: Hook, steps: Collection[int], stopped: bool = False) -> None:
    """Call the hook as a trainer does that takes `steps`."""
    for step in steps:
        wanted = hook.wants_state(step)
        hook.on_step(event(step))
        if wanted:
            hook.on_state(step)
    hook.on_end(max(steps), stopped)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_keep_each_record_with_its_time(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl", restored_step=0)
    sink({"kind": "step", "step": 10, "loss": 0.1})
    assert [line["loss"] for line in lines(tmp_path / "metrics.jsonl")] == [0.1]  # at once
    sink({"kind": "step", "step": 20, "loss": 0.2})
    found = lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in found] == [10, 20]
    assert found[0]["time"] > 1.7e9
    assert found[0]["time"] <= found[1]["time"]


@pytest.mark.parametrize(
    ("restored_step", "kept"), [(0, []), (10, [10]), (25, [10, 20, 20]), (99, [10, 20, 20, 30])]
)
@pytest.mark.parametrize("half", ["", '{"kind": "step", "st', '{"kind": "step", "step": 5}'])
def test_json_lines_go_on_behind_the_restored_step(
    tmp_path: Path, restored_step: int, kept: list[int], half: str
) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [{"kind": "step", "step": step} for step in (10, 20, 20, 30)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + half)
    sink = JsonLines(path, restored_step)
    assert [line["step"] for line in lines(path)] == kept
    sink({"kind": "step", "step": 11})
    assert [line["step"] for line in lines(path)] == [*kept, 11]


def test_log_lines_are_means_over_the_steps_since_the_last(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    phases = Phases(lambda: 0.0)
    hook = LogLines(3, 20, 64, phases, [records.append, records.append])
    for step in range(1, 8):
        hook.on_step(event(step, loss=step, accuracy=step / 10, seconds=2.0 * step))
    hook.on_evaluation(7, SCORE)
    phases.move(1.23456, "compute", "exchange")
    hook.on_end(7, False)
    hook.on_end(7, False)
    assert records[::2] == records[1::2]  # both sinks
    first, second, evaluation, last = records[::2]
    assert first == {
        "kind": "step",
        "step": 3,
        "epoch": 0.15,
        "loss": 2.0,
        "accuracy": pytest.approx(0.2),
        "learning_rate": 0.03,
        "images_per_second": 3 * 64 / 6,
        "phase_seconds": dict.fromkeys(phases.seconds, 0.0),
    }
    assert (second["step"], second["loss"], second["epoch"]) == (6, 5.0, 0.3)
    assert second["images_per_second"] == 3 * 64 / 6
    assert evaluation == {"kind": "evaluation", "step": 7, "epoch": 0.35, **SCORE}
    assert (last["step"], last["loss"]) == (7, 7.0)  # the one step that no line had told
    assert last["images_per_second"] == 64 / 2
    assert last["phase_seconds"]["exchange"] == 1.235


def test_evaluations_come_every_so_many_steps_and_at_the_end() -> None:
    found = {
        (every, last, stopped): evaluated_at(every, last, stopped)
        for every, last, stopped in [(3, 7, False), (3, 6, False), (0, 7, False), (3, 7, True)]
    }
    assert found == {
        (3, 7, False): [3, 6, 7],
        (3, 6, False): [3, 6],  # the end is not scored twice
        (0, 7, False): [7],
        (3, 7, True): [3, 6],  # who asks to stop does not wait for a score
    }


def evaluated_at(every: int, last: int, stopped: bool) -> list[int]:
    told: list[int] = []

    class Listens(Hook):
        def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
            assert evaluation == SCORE
            told.append(step)

    hook = Evaluate(cast(Any, lambda: SCORE), every, Phases(), tell=[Listens()])
    assert hook.latest is None
    drive(hook, range(1, last + 1), stopped)
    assert hook.latest == SCORE
    return told


def test_an_evaluation_s_time_is_its_own_phase() -> None:
    clock = [0.0]
    phases = Phases(lambda: clock[0])

    def score() -> Evaluation:
        clock[0] += 5
        return SCORE

    drive(Evaluate(cast(Any, score), 1, phases, tell=[]), [1, 2])
    assert phases.seconds["eval"] == 10
    assert sum(phases.seconds.values()) == 10


@pytest.mark.parametrize(
    ("every", "steps", "restored_step", "written"),
    [
        (3, range(1, 8), None, [3, 6, 7]),
        (3, range(1, 7), None, [3, 6]),
        (0, range(1, 6), None, [5]),
        (3, range(5, 9), 4, [6, 8]),
        (5, range(1, 3), None, [2]),
    ],
)
@pytest.mark.parametrize("stopped", [False, True])
def test_checkpoints_are_written_every_so_many_steps_and_at_the_end(
    tmp_path: Path,
    every: int,
    steps: range,
    restored_step: int | None,
    written: list[int],
    stopped: bool,
) -> None:
    told: list[int] = []
    writer = BackgroundWriter(tmp_path, 9, told.append)
    variables = {"x": tf.Variable([1.0, 2.0])}
    hook = SaveCheckpoints(variables, {"seed": 3}, writer, every, Phases(), restored_step)
    drive(hook, steps, stopped)
    assert told == written  # on_end has waited for the last
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{s:08d}" for s in written]
    found = read(tmp_path / f"step-{written[-1]:08d}")
    assert found.facts == {"seed": 3, "step": written[-1]}
    np.testing.assert_array_equal(found.state["x"], [1.0, 2.0])


def test_a_run_that_had_nothing_to_do_writes_nothing(tmp_path: Path) -> None:
    writer = BackgroundWriter(tmp_path, 9, lambda step: None)
    SaveCheckpoints({}, {}, writer, 3, Phases(), restored_step=6).on_end(6, False)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_of_the_moment_though_training_goes_on(tmp_path: Path) -> None:
    """The next step changes the variables in place while the writer has yet to read them."""
    variable = tf.Variable(tf.zeros([1000, 1000]))
    optimizer = Momentum(OptimizerConfig(weight_decay=0), [variable])
    variables = {"x": variable, "v": optimizer.velocities[0]}

    class Late(BackgroundWriter):
        def submit(self, step: int, state: Any, facts: Any) -> None:
            optimizer.apply([tf.ones([1000, 1000])], tf.constant(1.0))
            super().submit(step, state, facts)

    hook = SaveCheckpoints(variables, {}, Late(tmp_path, 9, lambda step: None), 1, Phases(), None)
    drive(hook, [1, 2])
    for step, (x, v) in {1: (0.0, 0.0), 2: (-1.0, 1.0)}.items():
        state = read(tmp_path / f"step-{step:08d}").state
        assert np.ptp(state["x"]) == np.ptp(state["v"]) == 0
        assert (state["x"][0, 0], state["v"][0, 0]) == (x, v)


def test_a_disk_that_fails_ends_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.write_text("not a folder")
    writer = BackgroundWriter(folder, 9, lambda step: None)
    hook = SaveCheckpoints({"x": tf.Variable(1.0)}, {}, writer, 2, Phases(), None)
    hook.on_state(2)
    with pytest.raises(OSError, match="checkpoints"):
        hook.on_state(4)


def test_tensorboard_gets_the_numbers_by_step(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    for step in (10, 20):
        sink({"kind": "step", "step": step, "loss": step / 8, "epoch": 0.5, "phase_seconds": {}})
    sink({"kind": "evaluation", "step": 20, **SCORE})
    (file,) = tmp_path.iterdir()
    found = {
        (value.tag, record.step): tf.make_ndarray(value.tensor).item()
        for record in tf.compat.v1.train.summary_iterator(str(file))
        for value in record.summary.value
    }
    assert found == {
        ("train/loss", 10): 1.25,
        ("train/loss", 20): 2.5,
        ("train/epoch", 10): 0.5,
        ("train/epoch", 20): 0.5,
        ("validation/top1", 20): 0.5,
        ("validation/top5", 20): pytest.approx(0.9),
        ("validation/loss", 20): 1.25,
    }


def test_log_lines_of_a_run_grow_by_step_and_are_json() -> None:
    records: list[dict[str, Any]] = []
    drive(LogLines(2, 5, 8, Phases(), [records.append]), range(1, 10))
    assert all(a["step"] < b["step"] for a, b in pairwise(records))
    assert json.loads(json.dumps(records)) == records
