"""Events of a run: told once it has begun, kept over launches, never the reason that it ends."""

from pathlib import Path

import pytest

from alexnet.errors import ConfigError
from alexnet.records import read_records
from cluster.config import JobConfig
from cluster.run_directory import RunDirectory
from tests.disks import full_disk

CONFIG = JobConfig()
SUMMARY = {"status": "completed", "steps": 20}


def kinds(run: Path) -> list[tuple[str, int]]:
    return [(event["kind"], event["step"]) for event in read_records(run / "events.jsonl")]


def test_nothing_is_told_of_a_launch_that_never_began(tmp_path: Path) -> None:
    RunDirectory(tmp_path).tell("launch", 0)
    assert list(tmp_path.iterdir()) == []


def test_events_of_all_launches_are_kept_until_the_run_is_replaced(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path)
    first.tell("launch", 0)
    first.tell("attempt", 0, workers=2)
    first.begin(CONFIG)
    first.tell("training", 0)
    told = [("launch", 0), ("attempt", 0), ("training", 0)]
    assert kinds(tmp_path) == told  # before its end: a driver may be killed
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"kind": "lo')  # as it was

    second = RunDirectory(tmp_path)
    second.tell("launch", 0)
    second.begin(CONFIG)
    second.end(SUMMARY)
    assert kinds(tmp_path) == [*told, ("launch", 0), ("completed", 20)]

    third = RunDirectory(tmp_path)
    third.tell("launch", 0)
    third.clear()
    third.begin(CONFIG)
    assert kinds(tmp_path) == [("launch", 0)]


def test_a_launch_that_fails_before_training_is_told_of(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.tell("launch", 0)
    directory.end({"status": "failed", "steps": 0, "error": "no"})
    assert kinds(tmp_path) == [("launch", 0), ("failed", 0)]
    assert read_records(tmp_path / "events.jsonl")[1]["reason"] == "no"


def test_a_full_disk_costs_events_and_not_the_run(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.tell("launch", 0)
    directory.begin(CONFIG)
    with full_disk():
        directory.tell("lost", 5, reason="rank 1")
    directory.tell("attempt", 5)
    assert kinds(tmp_path) == [("launch", 0), ("attempt", 5)]


def test_what_a_report_leaves_belongs_to_a_run(tmp_path: Path) -> None:
    for name in ("report.html", "events.jsonl", "evaluation.json"):
        (tmp_path / name).touch()
    RunDirectory(tmp_path).clear()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(ConfigError, match=r"thesis\.doc"):
        RunDirectory(tmp_path)
