import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from alexnet.background_writer import BackgroundWriter
from alexnet.checkpoint import Best, Checkpoint, read, state_sha256
from alexnet.errors import EXIT_CONFIG, EXIT_DATA, AlexnetError, ConfigError, DataError
from alexnet.folder_archive import FolderArchive, FolderDesk
from tests.clusters import ROOT, wait_until

State = dict[str, npt.NDArray[Any]]
FILES = ("state.safetensors", "checkpoint.json", "manifest.json")
FACTS = {"model": {"name": "seed", "classes": ["검은 고양이", "dog"]}, "mean": [1.5, 1e-30]}


def state(seed: int = 0) -> State:
    rng = np.random.default_rng(seed)
    return {
        "conv/kernel": rng.normal(size=(3, 3, 2, 4)).astype(np.float32),
        "conv/bias": np.array([0.0, -0.0, np.inf, np.nan, 1e-45], np.float32),
        "momentum/conv/kernel": rng.normal(size=(2, 5)),
        "norm/count": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }


def write(folder: Path, step: int, state: State, facts: dict[str, Any]) -> Path:
    return take_over(folder, "test").write(step, state, facts)


def take_over(folder: Path, name: str) -> FolderDesk:
    return FolderArchive(folder).take_over(name)


def newest(folder: Path) -> Checkpoint | None:
    return FolderArchive(folder).newest()


def best(folder: Path) -> Best | None:
    return FolderArchive(folder).best()


def tidy(folder: Path, keep: int) -> None:
    FolderDesk(folder / ".desk-test").tidy(step=10**7, keep=keep)


def finite(seed: int = 0) -> State:
    return {**state(seed), "conv/bias": np.zeros(5, np.float32)}


def assert_same_bits(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert (value.dtype, value.shape) == (other[name].dtype, other[name].shape)
        assert value.tobytes() == other[name].tobytes()


def names(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name != ".desk-test")  # noqa: PTH208


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_is_written_is_read_in_every_bit(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoints", 400, state(), FACTS)
    assert path == tmp_path / "checkpoints/step-00000400"
    assert names(path) == sorted(FILES)
    assert names(path.parent) == [path.name]
    found = read(path)
    assert (found.path, found.step) == (path, 400)
    assert found.facts == {**FACTS, "step": 400}
    assert_same_bits(found.state, state())


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = (write(tmp_path / name, 1, state(), FACTS) for name in "ab")
    assert [(one / file).read_bytes() for file in FILES] == [
        (other / file).read_bytes() for file in FILES
    ]


@pytest.mark.parametrize("file", FILES)
def test_any_flipped_bit_is_found(tmp_path: Path, file: str) -> None:
    path = write(tmp_path, 1, state(), FACTS)
    whole = (path / file).read_bytes()
    for at in range(len(whole)):
        (path / file).write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert caught.value.exit_code == EXIT_DATA
    (path / file).write_bytes(whole)
    assert_same_bits(read(path).state, state())


@pytest.mark.parametrize("file", FILES)
def test_a_file_cut_short_or_too_long_is_found(tmp_path: Path, file: str) -> None:
    path = write(tmp_path, 1, state(), FACTS)
    whole = (path / file).read_bytes()
    for damaged in (b"", whole[:1], whole[: len(whole) // 2], whole[:-1], whole + b"}"):
        (path / file).write_bytes(damaged)
        with pytest.raises(DataError, match=path.name):
            read(path)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_found(tmp_path: Path, file: str) -> None:
    path = write(tmp_path, 1, state(), FACTS)
    (path / file).unlink()
    with pytest.raises(DataError, match=file):
        read(path)


def test_the_files_of_two_checkpoints_do_not_mix(tmp_path: Path) -> None:
    one, other = (write(tmp_path, step, state(step), FACTS) for step in (1, 2))
    shutil.copy(one / "state.safetensors", other)
    with pytest.raises(DataError, match="SHA-256"):
        read(other)


@pytest.mark.parametrize("content", ["[]", "{}", "null", '"x"', '{"state.safetensors": 5}'])
def test_a_manifest_of_another_kind_is_no_checkpoint(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, 1, state(), FACTS)
    (path / "manifest.json").write_text(content)
    with pytest.raises(DataError):
        read(path)


def test_a_damaged_one_is_named_with_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, 1, state(), FACTS)
    damage(path / "state.safetensors")
    with pytest.raises(DataError, match=r"step-00000001/state\.safetensors: damaged"):
        read(path)


def test_a_disk_that_does_not_answer_is_no_reason_to_walk_back(tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path, step, state(), FACTS)
    (tmp_path / "step-00000002/state.safetensors").unlink()
    (tmp_path / "step-00000002/state.safetensors").symlink_to("state.safetensors")  # ELOOP
    with pytest.raises(AlexnetError, match="step-00000002: cannot be read"):
        newest(tmp_path)


def test_newest_is_the_last_one_that_verifies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [write(tmp_path, step, state(step), FACTS) for step in (9, 10, 200, 1000)]

    def newest_step() -> int | None:
        found = newest(tmp_path)
        return found.step if found else None

    assert newest_step() == 1000
    damage(paths[3] / "state.safetensors")
    assert newest_step() == 200
    assert "step-00001000/state.safetensors: damaged" in caplog.text
    (paths[2] / "manifest.json").unlink()
    assert newest_step() == 10
    shutil.rmtree(paths[1])
    assert newest_step() == 9
    damage(paths[0] / "checkpoint.json")
    assert newest_step() is None


def test_what_is_no_finished_checkpoint_is_passed_over(tmp_path: Path) -> None:
    assert newest(tmp_path / "nothing") is None
    assert newest(tmp_path) is None
    path = write(tmp_path, 5, state(), FACTS)
    for name in (".step-00000006.partial", "step-00000007.old", "step-8", "best"):
        shutil.copytree(path, tmp_path / name)
    (tmp_path / "step-00000009").write_text("a file")
    found = newest(tmp_path)
    assert found is not None
    assert found.path == path


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    write(tmp_path, 5, state(), FACTS)
    for left in (".step-00000006.partial", ".desk-old/step-00000006", ".gone-1/step-00000001"):
        (tmp_path / left).mkdir(parents=True)
        (tmp_path / left / "state.safetensors").write_bytes(b"half")
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 5
    take_over(tmp_path, "test")
    assert names(tmp_path) == ["step-00000005"]


def frozen_writer(folder: Path, desk: Path, at: str) -> "subprocess.Popen[str]":
    """A process that writes step 6, keeping 1, and has been stopped just before the rename `at`."""
    writer = subprocess.Popen(
        [sys.executable, ROOT / "tests/programs/frozen_writer.py", desk, at],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
    )
    wait_until(lambda: psutil.Process(writer.pid).status() == psutil.STATUS_STOPPED, 30, at)
    return writer


@pytest.mark.parametrize("at", ["step-00000006 -> step-00000006", "step-00000005 -> gone"])
@pytest.mark.parametrize("taken", [False, True])
def test_a_writer_that_wakes_up_late_changes_nothing(tmp_path: Path, at: str, taken: bool) -> None:
    for step in (4, 5):
        write(tmp_path, step, state(step), FACTS)
    writer = frozen_writer(tmp_path, take_over(tmp_path, "old").path, at)
    before = names(tmp_path)
    if taken:
        take_over(tmp_path, "new")
    writer.send_signal(signal.SIGCONT)
    said, _ = writer.communicate(timeout=30)
    if taken:
        assert "taken over by another attempt or job" in said
        left = [name for name in before if name.startswith("step")]
        assert [name for name in names(tmp_path) if name.startswith("step")] == left
    else:
        assert said.strip() == "written 6"
        assert names(tmp_path) == [".desk-old", "step-00000006"]


def test_the_same_step_may_be_written_again(tmp_path: Path) -> None:
    path = write(tmp_path, 5, state(1), FACTS)
    damage(path / "state.safetensors")
    (path / "strange").write_text("left over")
    assert write(tmp_path, 5, state(2), FACTS) == path
    assert_same_bits(read(path).state, state(2))
    assert names(path) == sorted(FILES)


@pytest.mark.parametrize(
    ("keep", "left"), [(1, [1000]), (3, [30, 200, 1000]), (9, [5, 30, 200, 1000])]
)
def test_prune_keeps_the_newest(tmp_path: Path, keep: int, left: list[int]) -> None:
    for step in (1000, 30, 5, 200):
        write(tmp_path, step, state(), FACTS)
    (tmp_path / "best").mkdir()
    tidy(tmp_path, keep)
    assert names(tmp_path) == ["best", *(f"step-{step:08d}" for step in left)]


def test_prune_does_not_delete_what_was_just_written(tmp_path: Path) -> None:
    """Restored from 100, because 300 is damaged, and now at 200."""
    write(tmp_path, 100, state(), FACTS)
    damage(write(tmp_path, 300, state(), FACTS) / "state.safetensors")
    writer = BackgroundWriter(take_over(tmp_path, "test"), 1, lambda step: None)
    writer.submit(200, finite(), FACTS)
    writer.finish()
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 200


def best_step(folder: Path) -> int | None:
    found = best(folder)
    return found.step if found else None


def test_prune_keeps_the_best(tmp_path: Path) -> None:
    desk = take_over(tmp_path, "test")
    for step in range(1, 7):
        desk.write(step, state(), FACTS)
        if step in (2, 3):
            desk.mark_best(Best(step=step, top1=step / 10))
        desk.tidy(step, 2)
    assert names(tmp_path) == ["best.json", *(f"step-{step:08d}" for step in (3, 5, 6))]
    assert best(tmp_path) == Best(step=3, top1=0.3)
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 3, "top1": 0.3}


@pytest.mark.parametrize("damaged", [(5, 6), (6,), (4, 5, 6), ()])
def test_prune_keeps_the_last_one_that_verifies(tmp_path: Path, damaged: tuple[int, ...]) -> None:
    for step in range(1, 7):
        path = write(tmp_path, step, state(), FACTS)
        if step in damaged:
            damage(path / "state.safetensors")
    tidy(tmp_path, 2)
    found = newest(tmp_path)
    assert found is not None
    assert found.step == max(set(range(1, 7)) - {*damaged})
    assert len(names(tmp_path)) == (3 if {5, 6} <= {*damaged} else 2)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": 5}', '{"step": "x", "top1": 1}'])
def test_a_damaged_mark_is_forgotten(tmp_path: Path, content: str) -> None:
    write(tmp_path, 5, state(), FACTS)
    FolderDesk(tmp_path / ".desk-test").mark_best(Best(step=5, top1=0.5))
    assert best_step(tmp_path) == 5
    (tmp_path / "best.json").write_text(content)
    assert best(tmp_path) is None


def test_a_best_that_is_gone_is_none(tmp_path: Path) -> None:
    path = write(tmp_path, 5, state(), FACTS)
    FolderDesk(tmp_path / ".desk-test").mark_best(Best(step=5, top1=0.5))
    shutil.rmtree(path)
    assert best(tmp_path) is None


def test_a_best_that_was_deleted_is_not_that_of_its_step_written_again(tmp_path: Path) -> None:
    write(tmp_path, 8, state(), FACTS)
    desk = take_over(tmp_path, "test")
    desk.mark_best(Best(step=8, top1=0.9))
    shutil.rmtree(tmp_path / "step-00000008")
    write(tmp_path, 4, state(), FACTS)
    BackgroundWriter(take_over(tmp_path, "again"), 2, lambda step: None, restored_step=4)
    write(tmp_path, 8, state(1), FACTS)
    assert best(tmp_path) is None


class Stubborn(FolderDesk):
    """A desk on a disk that writes checkpoints, but neither deletes nor marks any."""

    def tidy(self, step: int, keep: int) -> None:
        raise PermissionError(errno.EACCES, "Access denied")

    def mark_best(self, found: Best) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_checkpoint_counts_whatever_becomes_of_old_ones_and_of_marks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[int] = []
    desk = Stubborn(take_over(tmp_path, "test").path)
    writer = BackgroundWriter(desk, 1, told.append)
    for step in (1, 2):
        writer.submit(step, finite(step), FACTS)
        writer.mark_best(step, step / 10)
    writer.finish()
    assert told == [1, 2]
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert writer.best_top1 == -1
    assert "old checkpoints are still there: " in caplog.text
    assert "step 2 is not marked as the best: " in caplog.text


def test_the_best_score_is_known_without_asking_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is away when the held-out images are scored ends no attempt."""
    writer = BackgroundWriter(take_over(tmp_path, "test"), 2, lambda step: None)
    writer.submit(1, finite(), FACTS)
    writer.mark_best(1, 0.5)

    def away(desk: FolderDesk) -> Best:
        raise OSError(errno.ETIMEDOUT, "Connection timed out")

    monkeypatch.setattr(FolderDesk, "best", away)
    assert writer.best_top1 == 0.5


@pytest.mark.parametrize(("restored", "known"), [(0, None), (7, None), (8, 8), (12, 8)])
def test_a_run_knows_its_best_but_forgets_one_that_it_has_gone_back_from(
    tmp_path: Path, restored: int, known: int | None
) -> None:
    write(tmp_path, 8, state(), FACTS)
    desk = take_over(tmp_path, "test")
    desk.mark_best(Best(step=8, top1=0.5))
    writer = BackgroundWriter(desk, 2, lambda step: None, restored_step=restored)
    assert best_step(tmp_path) == known
    assert writer.best_top1 == (0.5 if known else -1)


def test_a_writer_that_was_left_behind_marks_nothing(tmp_path: Path) -> None:
    write(tmp_path, 5, state(), FACTS)
    old = BackgroundWriter(take_over(tmp_path, "old"), 2, lambda step: None, restored_step=5)
    take_over(tmp_path, "new")
    with pytest.raises(AlexnetError, match="taken over by another attempt or job"):
        old.mark_best(5, 0.9)
    assert best(tmp_path) is None


def other(name: str, value: npt.NDArray[Any]) -> State:
    return {**state(), name: value}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            other("conv/bias", np.zeros(6)),
            "holds (5,) for conv/bias, the configured model has (6,)",
        ),
        (other("extra", np.zeros(2)), "holds nothing for extra, the configured model has (2,)"),
        ({}, "the configured model has nothing"),
        (
            other("norm/count", np.zeros(1)),
            "holds () for norm/count, the configured model has (1,)",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(variables: State, words: str) -> None:
    found = Checkpoint(path=Path("runs/x/step-1"), step=1, facts={}, state=state())
    found.check_fits(state(seed=9))
    with pytest.raises(ConfigError) as caught:
        found.check_fits(variables)
    assert words in str(caught.value)
    assert str(caught.value).startswith("runs/x/step-1: a checkpoint of another model")
    assert caught.value.exit_code == EXIT_CONFIG


CHANGES: dict[str, Callable[[], State]] = {
    "value": lambda: other("conv/bias", np.array([0.0, -0.0, np.inf, np.nan, 3e-45], np.float32)),
    "sign of zero": lambda: other("conv/bias", np.abs(state()["conv/bias"])),
    "type": lambda: other("norm/count", np.array(7, np.uint64)),
    "shape": lambda: other("momentum/conv/kernel", state()["momentum/conv/kernel"].reshape(5, 2)),
    "empty shape": lambda: other("empty", np.zeros((3, 0), np.float32)),
    "more": lambda: other("more", np.zeros(0)),
    "less": lambda: {k: v for k, v in state().items() if k != "empty"},
    "name": lambda: {k.replace("bias", "beta"): v for k, v in state().items()},
    "exchanged": lambda: {
        **state(),
        "conv/kernel": state()["conv/kernel"][::-1],
    },
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_hash_changes_with_anything(change: Callable[[], State]) -> None:
    assert state_sha256(change()) != state_sha256(state())


def test_a_hash_changes_with_every_bit() -> None:
    kernel = state()["conv/kernel"]
    hashes = {state_sha256(state())}
    for at in range(kernel.nbytes * 8):
        changed = bytearray(kernel.tobytes())
        changed[at // 8] ^= 1 << at % 8
        value = np.frombuffer(bytes(changed), np.float32).reshape(kernel.shape)
        hashes.add(state_sha256(other("conv/kernel", value)))
    assert len(hashes) == kernel.nbytes * 8 + 1


def test_a_hash_is_of_values_not_of_their_place_in_memory() -> None:
    backwards = dict(reversed(state().items()))
    assert state_sha256(backwards) == state_sha256(state())
    columns = {name: np.asfortranarray(value) for name, value in state().items()}
    columns["norm/count"] = state()["norm/count"]
    assert state_sha256(columns) == state_sha256(state())


def test_a_state_in_any_memory_order_is_written_alike(tmp_path: Path) -> None:
    columns = {"kernel": np.asfortranarray(np.arange(12.0).reshape(3, 4))}
    found = read(write(tmp_path, 1, columns, {})).state["kernel"]
    np.testing.assert_array_equal(found, np.arange(12.0).reshape(3, 4))


def test_a_background_writer_writes_prunes_and_tells(tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    writer = BackgroundWriter(
        take_over(tmp_path, "test"),
        2,
        lambda step: told.append((step, threading.current_thread().name)),
    )
    for step in (1, 2, 3):
        writer.submit(step, finite(step), FACTS)
    writer.finish()
    assert told == [(step, "checkpoint") for step in (1, 2, 3)]
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    assert_same_bits(read(tmp_path / "step-00000003").state, finite(3))
    writer.finish()  # again, with nothing to wait for


def test_only_one_is_written_at_a_time(tmp_path: Path) -> None:
    go_on, events = threading.Event(), list[str]()

    def written(step: int) -> None:
        go_on.wait(timeout=30)
        events.append(f"written {step}")

    writer = BackgroundWriter(take_over(tmp_path, "test"), 5, written)
    writer.submit(1, finite(), FACTS)
    events.append("training goes on")
    go_on.set()
    writer.submit(2, finite(), FACTS)
    events.append("submitted 2")
    writer.finish()
    assert events[:2] == ["training goes on", "written 1"]
    assert set(events[2:]) == {"submitted 2", "written 2"}


@pytest.mark.parametrize("ask", ["submit", "check", "finish"])
def test_an_error_of_the_writer_is_raised_once_where_it_is_next_called(
    tmp_path: Path, ask: str
) -> None:
    desk = take_over(tmp_path, "test")
    writer = BackgroundWriter(desk, 5, lambda step: None)
    writer.submit(1, finite(), {"not": {"JSON"}})
    writer.wait()
    with pytest.raises(TypeError, match="JSON"):
        writer.submit(2, finite(), FACTS) if ask == "submit" else getattr(writer, ask)()
    writer.submit(3, finite(), FACTS)
    writer.finish()
    assert names(tmp_path) == ["step-00000003"]


def test_checkpoints_are_json_and_safetensors(tmp_path: Path) -> None:
    path = write(tmp_path, 12, {"x": np.arange(3, dtype=np.float32)}, {"z": 1, "a": "ü"})
    assert json.loads((path / "checkpoint.json").read_text()) == {"a": "ü", "step": 12, "z": 1}
    assert stat.S_ISREG((path / "state.safetensors").stat().st_mode)
    data = (path / "state.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["x"]["shape"] == [3]
    assert header["x"]["dtype"] == "F32"
