"""A run has one writer. The drivers are real processes: killed, frozen, and as if elsewhere."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Timer

import pytest

from alexnet.errors import AlexnetError, ConfigError
from alexnet.folder_archive import FolderArchive, FolderDesk
from cluster.lease import Lease
from tests.clusters import ROOT, wait_until


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def hold(processes: ExitStack, run: Path, *host: str) -> "subprocess.Popen[str]":
    """Start a driver that holds the lease of `run`."""
    holder = start(processes, run, *host)
    assert holder.stdout
    assert "desk" in holder.stdout.readline()
    return holder


def start(processes: ExitStack, run: Path, *host: str) -> "subprocess.Popen[str]":
    holder = subprocess.Popen(
        [sys.executable, ROOT / "tests/programs/holder.py", run, *host],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    processes.callback(holder.wait)
    processes.callback(holder.kill)
    return holder


def lease(run: Path) -> Lease:
    return Lease(run, FolderArchive(run / "checkpoints"), renew=0.2, expire=2.0)


def desks(run: Path) -> list[FolderDesk]:
    return [FolderDesk(path) for path in (run / "checkpoints").glob(".desk-*")]


def test_a_lease_is_given_back(tmp_path: Path) -> None:
    for generation in (1, 2, 3):
        with lease(tmp_path) as mine:
            desk = mine.next_desk()
            assert desks(tmp_path) == [desk]
            assert desks(tmp_path)[0].path.name.startswith(f".desk-{generation}-")
        assert desks(tmp_path) == []


def test_attempts_begin_while_the_lease_is_renewed(tmp_path: Path) -> None:
    """Both write it; neither takes the other's half-written one away."""
    archive = FolderArchive(tmp_path / "checkpoints")
    with Lease(tmp_path, archive, renew=1e-5) as mine:
        for _ in range(500):
            mine.next_desk()
    assert json.loads((tmp_path / "lease.json").read_text())["generation"] == 500


def test_each_attempt_takes_the_desk_of_the_one_before(tmp_path: Path) -> None:
    with lease(tmp_path) as mine:
        first, second = mine.next_desk(), mine.next_desk()
        assert desks(tmp_path) == [second]
        assert first != second


@pytest.mark.parametrize("host", [[], ["elsewhere"]], ids=["here", "elsewhere"])
def test_a_second_job_is_refused_while_the_first_lives(
    tmp_path: Path, processes: ExitStack, host: list[str]
) -> None:
    holder = hold(processes, tmp_path, *host)
    with pytest.raises(ConfigError) as refused, lease(tmp_path):
        pass
    assert f"in use by another job, process {holder.pid} on" in str(refused.value)
    assert len(desks(tmp_path)) == 1


@pytest.mark.parametrize("host", [[], ["elsewhere"]], ids=["here", "elsewhere"])
def test_a_killed_job_leaves_the_run_to_the_next(
    tmp_path: Path, processes: ExitStack, host: list[str]
) -> None:
    holder = hold(processes, tmp_path, *host)
    holder.kill()
    holder.wait()
    with lease(tmp_path) as mine:
        desk = mine.next_desk()
        assert desks(tmp_path) == [desk]


def test_a_frozen_job_finds_the_run_taken_over(tmp_path: Path, processes: ExitStack) -> None:
    holder = hold(processes, tmp_path, "elsewhere")
    holder.send_signal(signal.SIGSTOP)
    with lease(tmp_path) as mine:
        desk = mine.next_desk()
        holder.send_signal(signal.SIGCONT)
        said, _ = holder.communicate(timeout=10)
        assert holder.returncode == 1
        assert said.strip() == f"{tmp_path}: another job has taken this run over"
        assert mine.held
        assert desks(tmp_path) == [desk]


def test_of_many_that_start_at_once_one_gets_it(tmp_path: Path, processes: ExitStack) -> None:
    holders = [start(processes, tmp_path) for _ in range(5)]
    wait_until(lambda: sum(h.poll() is None for h in holders) <= 1, 60, "four refusals")
    refused = [holder for holder in holders if holder.poll() is not None]
    assert [holder.returncode for holder in refused] == [2] * 4
    assert len(desks(tmp_path)) == 1


def test_a_lease_that_is_no_longer_its_own_is_not_given_back(tmp_path: Path) -> None:
    with lease(tmp_path) as mine:
        record = json.loads((tmp_path / "lease.json").read_text())
        (tmp_path / "lease.json").write_text(json.dumps({**record, "holder": "other"}))
        wait_until(lambda: mine._lost, 5, "the loss")
        with pytest.raises(AlexnetError, match="taken this run over"):
            mine.next_desk()
    assert json.loads((tmp_path / "lease.json").read_text())["holder"] == "other"


def test_a_lease_that_is_given_back_while_another_waits_is_free(tmp_path: Path) -> None:
    with lease(tmp_path):
        pass
    given_back = json.loads((tmp_path / "lease.json").read_text())
    held = {**given_back, "holder": "other", "machine": "elsewhere"}
    (tmp_path / "lease.json").write_text(json.dumps(held))
    Timer(0.3, (tmp_path / "lease.json").write_text, [json.dumps(given_back)]).start()
    with lease(tmp_path) as mine:
        assert mine.held


@pytest.mark.parametrize("content", ["", "{", "[]", '{"holder": "x"}'])
def test_a_damaged_lease_is_nobody_s(tmp_path: Path, content: str) -> None:
    (tmp_path / "lease.json").write_text(content)
    with lease(tmp_path) as mine:
        assert mine.held
