"""`alexnet runs` and `status RUN`: what run directories tell, whole, damaged and in the making."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from alexnet.errors import ConfigError, DataError
from alexnet.folder_archive import FolderArchive
from alexnet.records import JsonLines
from cluster import summary
from cluster.board import RankResult
from cluster.cli import cli
from cluster.cli.runs import settings_in
from cluster.config import JobConfig
from cluster.history import History
from cluster.lease import Lease
from cluster.run_directory import RunDirectory
from cluster.run_facts import results
from cluster.runs import Run, find_runs, open_runs
from tests.clusters import ROOT, start, wait_until
from tests.test_cli import SMOKE, alexnet
from tests.test_lease import hold

PHASES = {"data": 1.0, "compute": 6.0, "exchange": 1.0, "checkpoint": 0.0, "eval": 2.0}
SCORES = {"top5": 0.9, "loss": 1.5, "images": 359}
TOTAL, BATCH, RATE = 40, 64, 32.0


def line(step: int, **figures: Any) -> dict[str, Any]:
    """A logged step as `alexnet.hooks.LogLines` tells it."""
    record = {"kind": "step", "step": step, "epoch": step / 20, "total_steps": TOTAL}
    record |= {"loss": 2.0, "accuracy": 0.25, "learning_rate": 0.01}
    return record | {"images_per_second": RATE, "phase_seconds": PHASES} | figures


def evaluation(step: int, top1: float) -> dict[str, Any]:
    return {"kind": "evaluation", "step": step, "epoch": step / 20, "top1": top1, **SCORES}


RECORDS = [line(5), line(10), evaluation(10, 0.7), line(15), line(20), evaluation(20, 0.6)]


def begun(path: Path, **settings: Any) -> JobConfig:
    """Make a run directory as it is once its launch was killed after 20 of 40 steps."""
    tree = {"run_dir": str(path), "train": {"global_batch": BATCH}, **settings}
    config = JobConfig.model_validate(tree).with_absolute_paths()
    path.mkdir(parents=True)
    RunDirectory(path).begin(config)
    tell = JsonLines(path / "metrics.jsonl", 0)
    for record in RECORDS:
        tell(record)
    with Lease(path, FolderArchive(path / "checkpoints")) as lease:
        desk = lease.next_desk()
        for step in (10, 20):
            desk.write(step, {"weights": np.zeros(3, np.float32)}, {})
    return config


def history() -> History:
    found = History(workers=2, attempts=1, furthest=20)
    found.add(PHASES, images=20 * BATCH)
    return found


def completed(path: Path, weights: str = "ab", **settings: Any) -> None:
    result = RankResult(
        step=20,
        stopped=False,
        first_step=0,
        evaluation={"top1": 0.6, **SCORES},
        phase_seconds=PHASES,
        weights_sha256=weights,
        wire_bytes_per_step=5,
    )
    config = begun(path, **settings)
    RunDirectory(path).end(summary.ended(config, history(), result, {}))


def failed(path: Path) -> None:
    error = DataError("shard [3] is damaged [/] :boom:")
    RunDirectory(path).end(summary.failed(begun(path), history(), error))


def output(*arguments: str | Path) -> str:
    """Return what a verb prints, no line wider than a terminal."""
    found = CliRunner().invoke(cli, [*map(str, arguments)], catch_exceptions=False)
    assert found.exit_code == 0
    if "--json" not in arguments:
        assert max(map(len, found.stdout.splitlines())) <= 80
    return found.stdout


def state(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output("status", run, "--json"))
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_run_that_has_ended(run: Path) -> None:
    completed(run)
    found = state(run)
    assert found["status"] == "completed"
    assert (found["exit_code"], found["error"], found["process"]) == (0, None, None)
    assert (found["steps"], found["total_steps"], found["epoch"]) == (20, TOTAL, 1.0)
    assert (found["loss"], found["accuracy"], found["learning_rate"]) == (2.0, 0.25, 0.01)
    assert found["images_per_second"] == 20 * BATCH / 8
    assert found["evaluation"] == {"step": 20, "top1": 0.6, **SCORES}
    assert found["best"] == {"step": 10, "top1": 0.7, **SCORES}
    assert found["checkpoint"]["step"] == 20
    assert 0 <= found["checkpoint"]["age_seconds"] < 60
    assert found["attempts"] == 1
    assert found["phases"] == {name: seconds / 10 for name, seconds in PHASES.items()}
    assert found["seconds_left"] is None


def test_what_people_see_of_it(run: Path) -> None:
    completed(run)
    text = output("status", run)
    for words in (
        r"status +completed, exit code 0\n",
        r"step +20 of 40, epoch 1\.00\n",
        r"pace +160\.0 images/s\n",
        r"training +loss 2\.0000  accuracy 0\.250  lr 0\.01\n",
        r"held out +top-1 0\.6000  top-5 0\.9000  loss 1\.5000 at step 20\n",
        r"best +top-1 0\.7000  .* at step 10\n",
        r"checkpoint +step 20, [0-9.]+ s ago\n",
        r"attempts +1\n",
        r"phases +data 10%  compute 60%  exchange 10%  checkpoint 0%  eval 20%\n",
    ):
        assert re.search(words, re.sub(" +\n", "\n", text)), words


def test_a_run_that_has_failed(run: Path) -> None:
    failed(run)
    found = state(run)
    assert (found["status"], found["exit_code"], found["steps"]) == ("failed", 3, 20)
    assert found["error"] == "shard [3] is damaged [/] :boom:"
    assert "shard [3] is damaged [/] :boom:" in output("status", run)


@pytest.mark.parametrize("host", [[], ["elsewhere"]], ids=["here", "elsewhere"])
def test_a_run_in_the_making_and_its_death(
    run: Path, processes: ExitStack, host: list[str]
) -> None:
    begun(run)
    holder = hold(processes, run, *host)
    found = state(run)
    assert (found["status"], found["process"]) == ("running", holder.pid)
    assert (found["exit_code"], found["attempts"]) == (None, 2)
    # 20 steps are left, and an evaluation takes 2 of 10 seconds.
    assert found["seconds_left"] == pytest.approx(20 * BATCH / RATE * 10 / 8)
    assert "50.0 s left" in output("status", run)

    holder.kill()
    holder.wait()
    if host:  # nobody waits for a lease that was last renewed long ago
        long_ago = time.time() - 2 * 3600
        os.utime(run / "lease.json", (long_ago, long_ago))
    began = time.monotonic()
    assert (state(run)["status"], state(run)["process"]) == ("died", None)
    assert time.monotonic() - began < 5


def test_a_launch_that_has_only_the_lease(run: Path, processes: ExitStack) -> None:
    holder = hold(processes, run)
    assert state(run)["status"] == "starting"
    holder.kill()
    holder.wait()
    assert (state(run)["status"], state(run)["checkpoint"]) == ("not begun", None)


def test_a_second_launch_does_not_show_the_end_of_the_first(
    run: Path, processes: ExitStack
) -> None:
    failed(run)
    hold(processes, run)
    found = state(run)
    assert (found["status"], found["exit_code"], found["error"]) == ("starting", None, None)


DAMAGE = {
    "metrics.jsonl": [b"", b'{"kind": "st', b"\xff\n", b'[1]\n{"step": 3}\n', b'{"step": true}\n'],
    "summary.json": [b"", b"{", b"[]", b"\xff"],
    "config.yaml": [b"", b"a: [", b"- 1", b"\xff\xfe"],
    "lease.json": [b"", b"{}", b"[", b"\xff"],
    "checkpoints/step-00000020/manifest.json": [b"{"],
}  # fmt: skip


@pytest.mark.parametrize("file", DAMAGE)
def test_a_file_that_is_missing_or_damaged_costs_its_part(run: Path, file: str) -> None:
    completed(run)
    for content in DAMAGE[file]:
        (run / file).write_bytes(content)
        assert state(run)["run"] == str(run)
        assert output("status", run)
        assert output("runs", run.parent)
    (run / file).unlink()
    found = state(run)
    expected = {"metrics.jsonl": "completed", "summary.json": "died", "config.yaml": "completed"}
    assert found["status"] == expected.get(file, "completed")
    assert found["checkpoint"]["step"] == (10 if "manifest" in file else 20)
    assert output("status", run)
    assert output("runs", run.parent)


def test_lines_that_are_damaged_are_left_out(run: Path) -> None:
    begun(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st\n{"step": 30}\n{"kind": "step", "step": 25, "lo')
    found = state(run)
    assert (found["steps"], found["loss"], found["epoch"]) == (30, 2.0, 1.0)


def test_figures_that_are_not_there(run: Path) -> None:
    """A step whose numbers were all left out, told by a version without `total_steps`."""
    begun(run)
    lost = line(25, loss=None, accuracy=None)
    del lost["total_steps"]
    JsonLines(run / "metrics.jsonl", 20)(lost)
    found = state(run)
    assert (found["steps"], found["loss"], found["total_steps"]) == (25, None, None)
    assert "loss -  accuracy -" in output("status", run)


@pytest.mark.parametrize("name", ["none", "folder", "file", "folder/only-a-config"])
def test_what_is_no_run_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder" / "only-a-config").mkdir(parents=True)
    (tmp_path / "folder" / "only-a-config" / "config.yaml").write_text("seed: 1")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"{name}: not a run directory"):
        output("status", tmp_path / name)


def test_mistakes_are_one_line_with_their_exit_code(tmp_path: Path) -> None:
    completed(tmp_path / "run", data={"path": str(tmp_path / "none")})
    (tmp_path / "run").rename(tmp_path / "moved")
    expected = {
        ("status", "./none"): (2, "not a run directory"),
        ("status", "a-job", "--address=http://127.0.0.1:1"): (1, "no answer from http://127.0.0.1"),
        ("runs", "none"): (2, "none: no such folder"),
        ("runs", "resume", "none"): (2, "none/config.yaml: cannot read the config"),
        ("runs", "resume", "moved", "train.epoch=3"): (2, "did you mean epochs?"),
        ("runs", "resume", "moved"): (3, "none: no such dataset"),
    }
    for arguments, (code, words) in expected.items():
        told = [each if "://" in each else each.replace("none", str(tmp_path / "none"))
                .replace("moved", str(tmp_path / "moved")) for each in arguments]  # fmt: skip
        found = alexnet(*told)
        assert (found.returncode, len(found.stderr.splitlines())) == (code, 1), found.stderr
        assert words in found.stderr
    assert not (tmp_path / "run").exists()


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b/c", "b/.hidden"):
        begun(tmp_path / name)
    begun(tmp_path / "a" / "inside")  # of another run
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "config.yaml").write_text("seed: 1")
    found = [path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)]
    assert sorted(found) == ["a", "b/c"]
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]


def test_the_newest_comes_first(tmp_path: Path) -> None:
    for name, ended_at in (("new", "2026-11-03"), ("old", "2026-11-01"), ("older", "2026-10-31")):
        completed(tmp_path / name)
        told = json.loads((tmp_path / name / "summary.json").read_text())
        told["ended_at"] = f"{ended_at}T12:00:00+00:00"
        (tmp_path / name / "summary.json").write_text(json.dumps(told))
    begun(tmp_path / "died")
    runs = open_runs(find_runs(tmp_path))
    assert [run.path.name for run in runs] == ["died", "new", "old", "older"]
    assert runs[1].seen_at == datetime.fromisoformat("2026-11-03T12:00:00+00:00").timestamp()


def test_a_list_of_runs(tmp_path: Path) -> None:
    completed(tmp_path / "a-run-with-a-name-that-is-longer-than-its-column", model={"name": "bn"})
    failed(tmp_path / "b")
    text = output("runs", tmp_path)
    age = re.compile(r"[0-9.]+ s$", re.M)  # it goes on
    assert age.sub("", text) == age.sub("", output("runs", "list", tmp_path))
    assert re.match("run +status +model +data +steps +top-1 +images/s +ago *\nb ", text)
    assert re.search(r"^b +failed +seed +digits +20 +0\.6000 +160\.0 +[0-9.]+ s$", text, re.M)
    rows = [json.loads(row) for row in output("runs", tmp_path, "--json").splitlines()]
    assert [row["status"] for row in rows] == ["failed", "completed"]
    assert (rows[1]["model"], rows[1]["top1"], rows[1]["steps"]) == ("bn", 0.6, 20)


def test_an_empty_folder_has_no_runs(tmp_path: Path) -> None:
    assert output("runs", tmp_path) == f"{tmp_path}: no runs\n"
    assert output("runs", tmp_path, "--json") == ""


def test_runs_are_compared(tmp_path: Path) -> None:
    completed(tmp_path / "a", optimizer={"momentum": 0.8})
    completed(tmp_path / "b", weights="cd", train={"global_batch": BATCH, "epochs": 3})
    both = json.loads(output("runs", "diff", tmp_path / "a", tmp_path / "b", "--json"))
    assert both["settings"] == {"train.epochs": [10, 3], "optimizer.momentum": [0.8, 0.9]}
    assert both["results"]["top1"] == [0.6, 0.6]
    assert both["results"]["weights_sha256"] == ["ab", "cd"]
    assert both["results"]["steps"] == [20, 20]
    text = output("runs", "diff", tmp_path / "a", tmp_path / "b")
    assert re.search(r"optimizer\.momentum +0\.8 +0\.9", text)
    assert re.search(r"top1 +0\.6000 +0\.6000", text)
    assert "the same" not in text
    assert "ab (the same)" in output("runs", "diff", tmp_path / "a", tmp_path / "a")


def test_a_run_that_goes_on_is_compared_by_what_it_has(tmp_path: Path) -> None:
    completed(tmp_path / "a")
    begun(tmp_path / "b")
    text = output("runs", "diff", tmp_path / "a", tmp_path / "b")
    assert re.search(r"goodput_ratio +0\.\d+ +-", text)
    assert re.search(r"images_per_second +160\.0 +32\.0", text)
    (tmp_path / "b" / "config.yaml").unlink()
    with pytest.raises(
        ConfigError, match=r"b: nothing to compare, it has no readable config\.yaml"
    ):
        output("runs", "diff", tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("name", ["it's moved", 'ünder "quotes": #1', "[a]", "null"])
def test_a_run_that_was_moved_goes_on_where_it_is(tmp_path: Path, name: str) -> None:
    before = begun(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / name)
    found = settings_in(str(tmp_path / name), ["train.epochs=3"])
    assert found.run_dir == str(tmp_path / name)
    assert found.train.epochs == 3
    assert found.model_copy(update={"run_dir": before.run_dir, "train": before.train}) == before


def test_runs_need_neither_ray_nor_tensorflow(run: Path) -> None:
    completed(run)
    program = (
        "import sys\nfrom cluster.cli import cli\n"
        f"for verb in (['runs', {str(run.parent)!r}], ['status', {str(run)!r}],\n"
        f"    ['runs', 'diff', {str(run)!r}, {str(run)!r}]):\n"
        "    cli(verb, standalone_mode=False)\n"
        "heavy = {'ray', 'tensorflow', 'keras', 'scipy', 'sklearn', 'cv2'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_a_real_run_is_looked_at_stopped_moved_and_resumed(tmp_path: Path, digits: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    run, moved, log = tmp_path / "run", tmp_path / "it's moved", tmp_path / "log"
    settings = [f"data.path={digits}", f"run_dir={run}", "train.log_every=1", "train.epochs=1"]
    settings += ["cluster.metrics_port=0", "checkpoint.every=2"]
    driver = start(["train", SMOKE, *settings], environment, log)
    wait_until(lambda: "step      4  checkpoint" in log.read_text(), 180, "a checkpoint")
    found = state(run)
    assert (found["status"], found["process"], found["total_steps"]) == ("running", driver.pid, 22)
    assert found["checkpoint"]["step"] >= 4
    assert found["seconds_left"] > 0
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=60) == 75, log.read_text()
    assert (state(run)["status"], state(run)["exit_code"]) == ("preempted", 75)

    shutil.move(run, moved)
    with log.open("w") as file:
        command = [sys.executable, "-m", "cluster", "runs", "resume", str(moved)]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    assert done.returncode == 0, log.read_text()
    found = state(moved)
    assert (found["status"], found["steps"], found["attempts"]) == ("completed", 22, 2)
    assert not run.exists()
    assert results(Run.open(moved))["weights_sha256"]
