"""Checkpoints that training leaves: when, of what, by whom, and what comes of a failing disk."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from alexnet.background_writer import BackgroundWriter
from alexnet.checkpoint import Best, read
from alexnet.config import OptimizerConfig
from alexnet.errors import AlexnetError, BadNumbersError
from alexnet.folder_archive import FolderArchive
from alexnet.hooks import SaveCheckpoints
from alexnet.host_copy import HostCopy
from alexnet.optimizer import Momentum
from alexnet.trainer import Phases
from tests.disks import full_disk
from tests.driven import SCORE, drive, event


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


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


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_copy_is_taken_into_the_memory_of_the_one_before(is_kept: bool) -> None:
    variable = tf.Variable([1.0, 2.0])
    copy = HostCopy({"x": variable}, is_kept)
    copy.prepare()
    copy.prepare()  # once
    first = copy.take()["x"]
    np.testing.assert_array_equal(first, [1.0, 2.0])
    variable.assign([3.0, 4.0])
    second = copy.take()["x"]
    np.testing.assert_array_equal(second, [3.0, 4.0])
    assert np.shares_memory(first, second) == is_kept
    assert not np.shares_memory(second, np.asarray(variable.read_value()))


@pytest.mark.parametrize(("every", "is_touching"), [(5, True), (0, False)])
def test_memory_for_copies_is_had_after_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, is_touching: bool
) -> None:
    """Not before, when the first step is waited for; nor for a single copy at the end."""
    touched = threading.Event()
    monkeypatch.setattr(HostCopy, "_touch", lambda copy: touched.set())
    writer = BackgroundWriter(FolderArchive(tmp_path).take_over("test"), 9, lambda step: None)
    hook = SaveCheckpoints({"x": tf.Variable([1.0])}, {}, writer, every, Phases(), None)
    assert not touched.is_set()
    hook.on_step(event(1))
    assert touched.wait(5 if is_touching else 0.2) == is_touching
