import json
import os
import threading
import time
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from alexnet.background_writer import BackgroundWriter
from alexnet.checkpoint import Best, read
from alexnet.config import OptimizerConfig
from alexnet.errors import AlexnetError, BadNumbersError
from alexnet.evaluation import Evaluation, Evaluator
from alexnet.folder_archive import FolderArchive
from alexnet.hooks import (
    IMAGES,
    SAMPLE,
    Evaluate,
    LogLines,
    SaveCheckpoints,
    StopAtBadNumbers,
    TensorBoard,
)
from alexnet.optimizer import Momentum
from alexnet.step import StepResult
from alexnet.trainer import Hook, Phases, StepEvent
from tests.disks import full_disk

SCORE: Evaluation = {"top1": 0.5, "top5": 0.9, "loss": 1.25, "images": 359}


def event(
    step: int,
    loss: float = 1.0,
    accuracy: float = 0.5,
    seconds: float = 0.0,
    skipped: bool = False,
) -> StepEvent:
    result = StepResult(loss, accuracy, stop=False, skipped=skipped, exchange_seconds=0.0)
    return StepEvent(step=step, rate=step / 100, result=result, training_seconds=seconds)


def drive(hook: Hook, steps: Collection[int], stopped: bool = False) -> None:
    """Call the hook as a trainer does that takes `steps`."""
    for step in steps:
        wanted = hook.wants_state(step)
        hook.on_step(event(step))
        if wanted:
            hook.on_state(step)
    hook.on_end(max(steps), stopped)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


def test_log_lines_are_means_over_the_steps_since_the_last(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    phases = Phases(lambda: 0.0)
    hook = LogLines(3, 20, 64, phases, [records.append, records.append], total_steps=40)
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
        "total_steps": 40,
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

    hook = Evaluate(cast(Any, lambda on_batch: SCORE), every, Phases(), tell=[Listens()])
    assert hook.latest is None
    drive(hook, range(1, last + 1), stopped)
    assert hook.latest == SCORE
    return told


def test_an_evaluation_tells_that_it_goes_on() -> None:
    model = keras.Sequential([keras.Input([2, 2, 3]), keras.layers.Flatten()])
    batch = tf.zeros([3, 1, 2, 2, 3], tf.uint8), tf.zeros([3], tf.int64)
    signs: list[str] = []
    evaluator = Evaluator(model, lambda: [batch] * 4, lambda sums: sums)
    hook = Evaluate(evaluator, 1, Phases(), [], on_batch=lambda scored: signs.append("goes on"))
    hook.on_state(1)
    assert signs == ["goes on"] * 4
    assert hook.latest is not None
    assert hook.latest["images"] == 12


def test_an_evaluation_s_time_is_its_own_phase() -> None:
    clock = [0.0]
    phases = Phases(lambda: clock[0])

    def score(on_batch: Any) -> Evaluation:
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
    writer = BackgroundWriter(FolderArchive(tmp_path).take_over("test"), 9, told.append)
    variables = {"x": tf.Variable([1.0, 2.0])}
    hook = SaveCheckpoints(variables, {"seed": 3}, writer, every, Phases(), restored_step)
    drive(hook, steps, stopped)
    assert told == written  # on_end has waited for the last
    assert checkpoints(tmp_path) == [f"step-{s:08d}" for s in written]
    found = read(tmp_path / f"step-{written[-1]:08d}")
    assert found.facts == {"seed": 3, "step": written[-1]}
    np.testing.assert_array_equal(found.state["x"], [1.0, 2.0])


def test_a_run_that_had_nothing_to_do_writes_nothing(tmp_path: Path) -> None:
    writer = BackgroundWriter(FolderArchive(tmp_path).take_over("test"), 9, lambda step: None)
    SaveCheckpoints({}, {}, writer, 3, Phases(), restored_step=6).on_end(6, False)
    assert checkpoints(tmp_path) == []


def test_a_checkpoint_is_of_the_moment_though_training_goes_on(tmp_path: Path) -> None:
    """The next step changes the variables in place while the writer has yet to read them."""
    variable = tf.Variable(tf.zeros([1000, 1000]))
    optimizer = Momentum(OptimizerConfig(weight_decay=0), [variable])
    variables = {"x": variable, "v": optimizer.velocities[0]}

    class Late(BackgroundWriter):
        def submit(self, step: int, state: Any, facts: Any) -> None:
            optimizer.apply([tf.ones([1000, 1000])], tf.constant(1.0))
            super().submit(step, state, facts)

    writer = Late(FolderArchive(tmp_path).take_over("test"), 9, lambda step: None)
    hook = SaveCheckpoints(variables, {}, writer, 1, Phases(), None)
    drive(hook, [1, 2])
    for step, (x, v) in {1: (0.0, 0.0), 2: (-1.0, 1.0)}.items():
        state = read(tmp_path / f"step-{step:08d}").state
        assert np.ptp(state["x"]) == np.ptp(state["v"]) == 0
        assert (state["x"][0, 0], state["v"][0, 0]) == (x, v)


@pytest.mark.parametrize("waits", [False, True])
def test_a_checkpoint_that_is_still_being_written_is_not_overwritten(
    tmp_path: Path, waits: bool
) -> None:
    """The next one is copied into the same memory, unless memory is to be saved."""
    variable = tf.Variable([1.0, 2.0])

    class Slow(BackgroundWriter):
        def _write(self, step: int, state: Any, facts: Any) -> None:
            time.sleep(0.5)
            super()._write(step, state, facts)

    desk = FolderArchive(tmp_path).take_over("test")
    hook = SaveCheckpoints(
        {"x": variable}, {}, Slow(desk, 9, lambda step: None, waits=waits), 1, Phases(), None
    )
    for step in (1, 2):
        variable.assign([step, step])
        hook.on_step(event(step))
        hook.on_state(step)
    hook.on_end(2, False)
    for step in (1, 2):
        state = read(tmp_path / f"step-{step:08d}").state
        np.testing.assert_array_equal(state["x"], [step, step])


def test_checkpoints_are_written_by_a_thread_that_steps_go_before(tmp_path: Path) -> None:
    found: list[int] = []

    def written(step: int) -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    writer = BackgroundWriter(FolderArchive(tmp_path).take_over("test"), 9, written)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    drive(SaveCheckpoints({"x": tf.Variable([1.0])}, {}, writer, 1, Phases(), None), [1])
    assert found == [19]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before < 19


class Saving:
    """A hook that saves every step, three failures in a row being too many."""

    def __init__(self, folder: Path) -> None:
        self.failed: list[int] = []
        self.writer = BackgroundWriter(
            FolderArchive(folder).take_over("test"),
            keep=9,
            written=lambda step: None,
            failed=lambda step, reason: self.failed.append(step),
            max_failures=3,
        )
        variables = {"x": tf.Variable(np.ones(9, np.float32))}
        self.hook = SaveCheckpoints(variables, {}, self.writer, 1, Phases(), None)

    def save(self, step: int) -> None:
        self.hook.on_state(step)
        self.writer.wait()


def test_training_goes_on_while_a_disk_is_full_now_and_then(tmp_path: Path) -> None:
    saving = Saving(tmp_path)
    for first in (1, 4):
        with full_disk():
            saving.save(first)
            saving.save(first + 1)
            saving.hook.on_step(event(first + 1))
        saving.save(first + 2)
    saving.hook.on_end(6, False)
    assert saving.failed == [1, 2, 4, 5]
    assert checkpoints(tmp_path) == ["step-00000003", "step-00000006"]
    assert list((tmp_path / ".desk-test").iterdir()) == []  # the space is given back


def test_a_disk_that_stays_full_ends_the_run_at_the_next_step(tmp_path: Path) -> None:
    saving = Saving(tmp_path)
    with full_disk():
        for step in (1, 2, 3):
            saving.hook.on_step(event(step))
            saving.save(step)
        with pytest.raises(AlexnetError, match=r"no checkpoint of step 3: .*too large"):
            saving.hook.on_step(event(4))


def test_a_run_without_its_last_checkpoint_is_not_complete(tmp_path: Path) -> None:
    saving = Saving(tmp_path)
    with full_disk():
        saving.save(1)
        with pytest.raises(AlexnetError, match="no checkpoint of step 1"):
            saving.hook.on_end(1, False)


def scored(folder: Path, scores: dict[int, float], restored: int | None = None) -> list[int]:
    """Take six steps, saved every two and scored as told, keeping one; return what is left."""
    writer = BackgroundWriter(
        FolderArchive(folder).take_over("test"), 1, lambda step: None, restored_step=restored or 0
    )
    variables = {"x": tf.Variable([1.0, 2.0])}
    save = SaveCheckpoints(variables, {}, writer, 2, Phases(), restored)
    first = (restored or 0) + 1
    for step in range(first, first + 6):
        variables["x"].assign([step, step])
        save.on_step(event(step))
        if save.wants_state(step):
            save.on_state(step)
        if step in scores:
            save.on_evaluation(step, {**SCORE, "top1": scores[step]})
    save.on_end(first + 5, False)
    if first + 5 in scores:  # scored after the end
        save.on_evaluation(first + 5, {**SCORE, "top1": scores[first + 5]})
    return [int(name.removeprefix("step-")) for name in checkpoints(folder)]


@pytest.mark.parametrize(
    ("scores", "marked", "left"),
    [
        ({}, None, [6]),
        ({3: 0.5}, 3, [3, 6]),  # not a step that is saved anyway
        ({2: 0.5}, 2, [2, 6]),
        ({2: 0.5, 3: 0.5, 4: 0.4}, 2, [2, 6]),  # the earlier of equals
        ({1: 0.0}, 1, [1, 6]),
        ({2: 0.5, 3: 0.6}, 3, [3, 6]),
        ({3: 0.5, 6: 0.6}, 6, [3, 6]),  # the old best goes with the next checkpoint
    ],
)
def test_the_best_is_kept(
    tmp_path: Path, scores: dict[int, float], marked: int | None, left: list[int]
) -> None:
    assert scored(tmp_path, scores) == left
    found = FolderArchive(tmp_path).best()
    if marked is None:
        assert found is None
    else:
        assert found == Best(step=marked, top1=scores[marked])
        state = read(tmp_path / f"step-{marked:08d}").state
        np.testing.assert_array_equal(state["x"], [marked, marked])


def test_the_best_is_known_after_a_restart(tmp_path: Path) -> None:
    scored(tmp_path, {3: 0.5, 6: 0.4})
    assert scored(tmp_path, {9: 0.5}, restored=6) == [3, 12]
    assert FolderArchive(tmp_path).best() == Best(step=3, top1=0.5)


def test_a_best_that_the_disk_did_not_take_is_not_marked(tmp_path: Path) -> None:
    saving = Saving(tmp_path)
    with full_disk():
        saving.hook.on_evaluation(1, SCORE)
    assert FolderArchive(tmp_path).best() is None
    saving.hook.on_evaluation(2, {**SCORE, "top1": 0.1})
    assert FolderArchive(tmp_path).best() == Best(step=2, top1=0.1)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_no_checkpoint_of_numbers_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    writer = BackgroundWriter(FolderArchive(tmp_path).take_over("test"), 9, lambda step: None)
    variables = {"x": tf.Variable([1.0, 2.0])}
    hook = SaveCheckpoints(variables, {}, writer, 1, Phases(), None)
    drive(hook, [1])
    variables["x"].assign([1.0, bad])
    with pytest.raises(BadNumbersError, match="step 2: x is not finite"):
        drive(hook, [2])
    assert checkpoints(tmp_path) == ["step-00000001"]


def test_bad_numbers_stop_a_run_that_does_not_skip_them() -> None:
    StopAtBadNumbers().on_step(event(4))
    with pytest.raises(BadNumbersError, match=r"^step 5: loss or gradients are not finite"):
        StopAtBadNumbers().on_step(event(5, skipped=True))


def test_skipped_steps_are_told_and_are_in_no_mean() -> None:
    records: list[dict[str, Any]] = []
    hook = LogLines(2, 5, 8, Phases(lambda: 0.0), [records.append])
    for step in range(1, 5):
        hook.on_step(event(step, loss=np.nan if step > 1 else 0.5, skipped=step > 1))
    assert [(record["kind"], record["step"]) for record in records] == [
        ("skipped", 2),
        ("step", 2),
        ("skipped", 3),
        ("skipped", 4),
        ("step", 4),
    ]
    assert (records[1]["loss"], records[4]["loss"]) == (0.5, None)


def in_tensorboard(folder: Path) -> dict[tuple[str, int], Any]:
    """Return all that TensorBoard would show, by name and step."""
    (file,) = folder.iterdir()
    return {
        (value.tag, record.step): tf.make_ndarray(value.tensor)
        for record in tf.compat.v1.train.summary_iterator(str(file))
        for value in record.summary.value
    }


def test_tensorboard_gets_the_numbers_by_step(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path, {})
    for step in (10, 20):
        sink({"kind": "step", "step": step, "loss": step / 8, "epoch": 0.5, "phase_seconds": {}})
    sink({"kind": "evaluation", "step": 20, **SCORE})
    assert in_tensorboard(tmp_path) == {
        ("train/loss", 10): 1.25,
        ("train/loss", 20): 2.5,
        ("train/epoch", 10): 0.5,
        ("train/epoch", 20): 0.5,
        ("validation/top1", 20): 0.5,
        ("validation/top5", 20): pytest.approx(0.9),
        ("validation/loss", 20): 1.25,
    }


def test_tensorboard_gets_a_histogram_of_each_variable_at_an_evaluation(tmp_path: Path) -> None:
    ramp = tf.Variable(tf.reshape(tf.range(4 * SAMPLE, dtype=tf.float32), [-1, 64]))
    hook = TensorBoard(tmp_path, {"fc1/kernel": ramp, "fc1/bias": tf.Variable([-1.0, 0.0, 2.0])})
    drive(Evaluate(cast(Any, lambda on_batch: SCORE), 2, Phases(), tell=[hook]), [1, 2, 3])
    found = in_tensorboard(tmp_path)
    assert sorted(found) == [
        (f"weights/fc1/{n}", step) for n in ("bias", "kernel") for step in (2, 3)
    ]
    left, right, counts = found["weights/fc1/bias", 2].T
    assert (left[0], right[-1]) == (-1, 2)
    assert counts[counts > 0].tolist() == [1, 1, 1]
    left, right, counts = found["weights/fc1/kernel", 3].T
    assert SAMPLE / 2 < counts.sum() <= SAMPLE  # not all of a large one
    np.testing.assert_allclose(counts, counts.mean(), atol=1)  # but all parts of it
    assert (left[0], right[-1]) == (0, pytest.approx(4 * SAMPLE, abs=8))


def test_a_histogram_sees_every_column_of_a_large_layer(tmp_path: Path) -> None:
    columns = tf.Variable(tf.tile(tf.range(64, dtype=tf.float32)[None], [4 * SAMPLE // 64, 1]))
    TensorBoard(tmp_path, {"x": columns}).on_evaluation(1, SCORE)
    *_, counts = in_tensorboard(tmp_path)["weights/x", 1].T
    assert counts.min() > 0


def test_tensorboard_gets_the_first_images_as_they_are_trained_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = [
        (rng.integers(0, 256, (2, IMAGES + 1, 9, 7, 3), np.uint8), np.zeros([2, IMAGES + 1]))
        for _ in range(3)
    ]
    asked: list[int] = []

    def batches_from(step: int) -> list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]]:
        asked.append(step)
        return made

    batches = TensorBoard(tmp_path, {}).showing(batches_from)
    passed_on = list(batches(40))
    assert asked == [40]
    assert passed_on == made  # the very same arrays: equal ones cannot be compared so
    (width, height, *images) = in_tensorboard(tmp_path)["images", 40].tolist()
    assert (width, height) == (b"7", b"9")
    shown = [tf.io.decode_png(image).numpy() for image in images]
    np.testing.assert_array_equal(shown, made[0][0][0, :IMAGES])


def test_a_full_disk_does_not_end_a_run_for_its_curves(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path, {"x": tf.Variable([1.0, 2.0])})
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 64, 64, 3), np.uint8)
    with full_disk():
        for step in (1, 2):
            sink({"kind": "step", "step": step, "loss": 0.5})
        sink.on_evaluation(2, SCORE)
        assert len(list(sink.showing(lambda step: [(images, images)] * 3)(2))) == 3
    sink({"kind": "step", "step": 3, "loss": 0.5})


def test_log_lines_of_a_run_grow_by_step_and_are_json() -> None:
    records: list[dict[str, Any]] = []
    drive(LogLines(2, 5, 8, Phases(), [records.append]), range(1, 10))
    assert all(a["step"] < b["step"] for a, b in pairwise(records))
    assert json.loads(json.dumps(records)) == records
