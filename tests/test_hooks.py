import json
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from alexnet.errors import BadNumbersError
from alexnet.evaluation import Evaluation, Evaluator
from alexnet.hooks import (
    IMAGES,
    SAMPLE,
    Evaluate,
    LogLines,
    StopAtBadNumbers,
    TensorBoard,
)
from alexnet.trainer import Hook, Phases
from tests.disks import full_disk
from tests.driven import SCORE, drive, event


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
