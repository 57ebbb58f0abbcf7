"""Checkpoints in an S3 store that fails, with writers that were left behind."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from alexnet.archive import open_archive
from alexnet.background_writer import BackgroundWriter
from alexnet.checkpoint import Best, Checkpoint, read, state_sha256
from alexnet.config import CheckpointConfig
from alexnet.data.storage import Location
from alexnet.errors import AlexnetError, DataError
from alexnet.store_archive import StoreArchive, StoreDesk
from tests.s3 import FlakyS3, flaky_s3

PARTS = ("state.safetensors", "checkpoint.json", "manifest.json")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyS3]:
    with flaky_s3(monkeypatch) as server:
        yield server


@pytest.fixture
def archive(s3: FlakyS3) -> StoreArchive:
    found = open_archive(Path(), s3.uri("checkpoints"))
    assert isinstance(found, StoreArchive)
    return found


def state(step: int) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(step)
    return {"kernel": rng.normal(size=(30, 20)).astype(np.float32), "count": np.array(step)}


def begun(archive: StoreArchive, name: str) -> tuple[StoreDesk, int]:
    """A new writer's desk, and the step that it goes on from."""
    desk = archive.take_over(name)
    saved = desk.newest()
    desk.begin(saved.step if saved else 0)
    return desk, saved.step if saved else 0


def save(desk: StoreDesk, *steps: int, keep: int = 9) -> None:
    for step in steps:
        desk.write(step, state(step), {"a": "ü"})
        desk.tidy(step, keep)


def steps(archive: StoreArchive) -> list[int]:
    return list(archive.finished(archive.lineage()))


def newest(archive: StoreArchive) -> Checkpoint:
    found = archive.newest()
    assert found is not None
    assert state_sha256(found.state) == state_sha256(state(found.step))
    return found


def of(archive: StoreArchive, step: int) -> Location:
    return archive.finished(archive.lineage())[step]


def damage(place: Location) -> None:
    data = bytearray(place.read())
    data[len(data) // 2] ^= 1
    place.write(bytes(data))


def test_what_is_written_is_read_in_every_bit(archive: StoreArchive) -> None:
    assert archive.newest() is None
    assert archive.best() is None
    desk, first = begun(archive, "1-a")
    assert first == 0
    save(desk, 4, 8)
    found = newest(archive)
    assert found.step == 8
    assert found.facts == {"a": "ü", "step": 8}
    assert str(found.path).endswith("region=us-east-1")
    assert "/generation-000001-1-a/step-00000008?" in str(found.path)
    assert archive.read_step(4).step == 4
    with pytest.raises(DataError, match="no checkpoint of step 5"):
        archive.read_step(5)


def test_the_latest_is_the_newest_of_the_lineage_and_its_age(archive: StoreArchive) -> None:
    assert archive.latest() is None
    desk, _ = begun(archive, "1-a")
    save(desk, 4, 8)
    (of(archive, 8) / "manifest.json").delete()
    again, first = begun(archive, "2-b")
    left_behind = archive.place / desk.generation / "step-00000012"
    (left_behind / "manifest.json").write(b"{}")
    found = archive.latest()
    assert found is not None
    assert (found.step, first) == (4, 4)
    assert abs(found.at - time.time()) < 60
    save(again, 8)
    found = archive.latest()
    assert found is not None and found.step == 8


@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_one_is_walked_back_over(archive: StoreArchive, part: str) -> None:
    desk, _ = begun(archive, "1-a")
    save(desk, 4, 8)
    damage(of(archive, 8) / part)
    assert newest(archive).step == 4
    again, first = begun(archive, "2-b")
    assert first == 4
    save(again, 8)
    assert newest(archive).step == 8


def test_one_without_its_manifest_is_none(archive: StoreArchive) -> None:
    desk, _ = begun(archive, "1-a")
    save(desk, 4, 8)
    (of(archive, 8) / "manifest.json").delete()
    assert steps(archive) == [4]
    save(desk, 12)
    assert not any("step-00000008" in name for name in archive.place.files())


def test_what_a_writer_left_behind_adds_is_never_restored(archive: StoreArchive) -> None:
    old, _ = begun(archive, "1-a")
    save(old, 4)
    new, first = begun(archive, "2-b")
    assert first == 4
    # As if it had looked who is there before the new one came.
    old_place = archive.place / old.generation
    for step in (8, 12):
        for part in PARTS:
            (old_place / f"step-{step:08d}" / part).write((of(archive, 4) / part).read())
    assert newest(archive).step == 4
    save(new, 8)
    assert newest(archive).step == 8
    assert steps(archive) == [4, 8]
    assert new.generation in str(of(archive, 8))
    assert not any("step-00000012" in name for name in archive.place.files())


def test_a_writer_left_behind_is_told_and_deletes_nothing(archive: StoreArchive) -> None:
    old, _ = begun(archive, "1-a")
    save(old, 4, 8)
    archive.take_over("2-b")
    before = archive.place.files()
    assert old.is_taken()
    for change in (
        lambda: old.write(12, state(12), {}),
        lambda: old.tidy(8, 1),
        lambda: old.mark_best(Best(step=8, top1=0.5)),
    ):
        with pytest.raises(AlexnetError, match="taken over by another attempt or job"):
            change()
    assert archive.place.files() == before


def test_an_attempt_that_ends_before_it_begins_changes_nothing(archive: StoreArchive) -> None:
    desk, _ = begun(archive, "1-a")
    save(desk, 4)
    archive.take_over("2-b")
    assert newest(archive).step == 4
    assert begun(archive, "3-c")[1] == 4


def test_a_lineage_goes_on_through_attempts(archive: StoreArchive) -> None:
    for attempt in range(1, 5):
        desk, first = begun(archive, f"{attempt}-x")
        assert first == 4 * (attempt - 1)
        save(desk, 4 * attempt, keep=3)
    assert steps(archive) == [8, 12, 16]
    lineage = json.loads((archive.place / desk.generation / "lineage.json").read())
    assert list(lineage.values()) == [12, 8, 4]


@pytest.mark.parametrize("damaged", [(5, 6), (6,), (4, 5, 6), ()])
def test_the_newest_that_verifies_is_kept(archive: StoreArchive, damaged: tuple[int, ...]) -> None:
    desk, _ = begun(archive, "1-a")
    save(desk, *range(1, 7))
    for step in damaged:
        damage(of(archive, step) / "state.safetensors")
    desk.tidy(6, keep=2)
    assert newest(archive).step == max({*range(1, 7)} - {*damaged})
    assert len(steps(archive)) == (3 if {5, 6} <= {*damaged} else 2)


def test_the_best_is_kept_and_known_to_later_attempts(archive: StoreArchive) -> None:
    desk, _ = begun(archive, "1-a")
    for step in range(1, 6):
        save(desk, step, keep=2)
        if step in (2, 3):
            desk.mark_best(Best(step=step, top1=step / 10))
    assert steps(archive) == [3, 4, 5]
    again, _ = begun(archive, "2-b")
    assert again.best() == archive.best() == Best(step=3, top1=0.3)
    save(again, 6, 7, keep=2)
    assert steps(archive) == [3, 6, 7]
    assert archive.read_step(3).step == 3


def test_a_best_that_the_run_has_gone_back_from_is_forgotten(archive: StoreArchive) -> None:
    desk, _ = begun(archive, "1-a")
    save(desk, 4, 8)
    desk.mark_best(Best(step=8, top1=0.5))
    damage(of(archive, 8) / "manifest.json")
    again, first = begun(archive, "2-b")
    assert first == 4
    assert again.best() is None
    assert archive.best() is None


def test_clear_leaves_what_is_not_a_run_s(archive: StoreArchive) -> None:
    (archive.place / "notes.txt").write(b"of somebody")
    (archive.place / "generation-of-others/x").write(b"of somebody")
    desk, _ = begun(archive, "1-a")
    save(desk, 4)
    archive.clear()
    assert set(archive.place.files()) == {"notes.txt", "generation-of-others/x"}
    assert begun(archive, "1-b")[1] == 0


def test_a_store_that_fails_a_fifth_of_requests_gets_it_all(
    s3: FlakyS3, archive: StoreArchive
) -> None:
    s3.failing = 0.2
    told: list[int] = []
    desk = archive.take_over("1-a")
    desk.newest()
    writer = BackgroundWriter(desk, 2, told.append)
    for step in (4, 8, 12):
        writer.submit(step, state(step), {})
        writer.mark_best(step, step / 100)
    writer.finish()
    assert told == [4, 8, 12]
    assert s3.failures > 5
    assert newest(archive).step == 12
    assert archive.best() == Best(step=12, top1=0.12)


def test_a_store_that_is_away_ends_the_run_after_so_many_failures(
    s3: FlakyS3, archive: StoreArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alexnet.data.storage.ATTEMPTS", 1)
    desk, _ = begun(archive, "1-a")
    failed: list[int] = []
    writer = BackgroundWriter(
        desk, 2, lambda step: None, lambda step, reason: failed.append(step), max_failures=2
    )
    s3.failing = 1.0
    writer.submit(4, state(4), {})
    writer.submit(8, state(8), {})
    with pytest.raises(AlexnetError, match="no checkpoint of step 8"):
        writer.finish()
    assert failed == [4, 8]


def test_a_store_that_is_away_is_no_reason_to_start_from_nothing(
    s3: FlakyS3, archive: StoreArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alexnet.data.storage.ATTEMPTS", 1)
    desk, _ = begun(archive, "1-a")
    save(desk, 4)
    place = of(archive, 4)
    s3.failing = 1.0
    with pytest.raises(OSError, match="AWS Error"):
        archive.newest()
    with pytest.raises(AlexnetError, match=r"step-00000004.*cannot be read") as caught:
        read(place)
    assert not isinstance(caught.value, DataError)


@pytest.mark.parametrize("name", ["checkpoints", "/data/x", "file:///data/x"])
def test_a_path_on_a_disk_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not in an object store"):
        CheckpointConfig(path=name)
