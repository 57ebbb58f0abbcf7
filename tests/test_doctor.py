"""Conditions made bad for real, and what `alexnet doctor` says of them."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alexnet.config import load
from alexnet.memory import state_bytes
from cluster.config import JobConfig
from cluster.doctor import machine, network, report
from cluster.doctor.checks import CHECKS, bounded
from cluster.doctor.finding import Finding, ok, problem, warning
from cluster.doctor.subject import Subject
from tests.clusters import ROOT, free_ports, ray_cluster
from tests.s3 import FlakyS3, flaky_s3

SMOKE = ROOT / "configs" / "smoke.yaml"
NAMES = [check.name for check in CHECKS]
OF_JOB = [check.name for check in CHECKS if check.of_job]


def job(*overrides: str) -> JobConfig:
    return load(JobConfig, SMOKE, overrides).with_absolute_paths()


def look(name: str, config: JobConfig | None = None) -> Finding:
    """Make one check here; whatever is not ok has a remedy."""
    [check] = [check for check in CHECKS if check.name == name]
    finding = bounded(check.look, Subject(config), check.limit)
    assert bool(finding.remedy) == (finding.status != "ok"), finding
    return finding


def doctor(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-m", "cluster", "doctor", *arguments],
        env={**own, **(environment or {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )


def in_shell(limit: str, expression: str) -> str:
    """Return what `cluster.doctor.machine` makes of a shell's `ulimit`."""
    program = (
        "from cluster.doctor import machine; from cluster.doctor.subject import Subject; "
        f"print(machine.{expression}(Subject(None)))"
    )
    command = f"ulimit {limit} && exec {sys.executable} -c '{program}'"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Software: each with a package of the same name before the real one.


def shadow(folder: Path, horovod: str) -> dict[str, str]:
    """Put `horovod` in the place of Horovod's binding to TensorFlow; all else stays real."""
    package = folder / "horovod"
    (package / "tensorflow").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import pkgutil\n__path__ = pkgutil.extend_path(__path__, __name__)\n"
    )
    (package / "tensorflow" / "__init__.py").write_text(horovod)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.mark.parametrize(
    ("horovod", "said"),
    [
        ("raise ImportError('mpi_lib.so: undefined symbol: _ZN10tensorflow')", "undefined symbol"),
        ("import os\nos.abort()", "ended by SIGABRT"),
    ],
)
def test_a_binary_that_does_not_load_is_told_with_all_else(
    tmp_path: Path, horovod: str, said: str
) -> None:
    done = doctor(environment=shadow(tmp_path, horovod))
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    found = " ".join(done.stdout.split())
    assert "✗ problem Horovod 0.28.1+tf2.21" in found
    assert said in found
    assert "-> .venv/bin/python tools/horovod/build.py" in found
    assert "✓ ok TensorFlow" in found
    assert "✗ problem averaging not tried" in found
    assert re.fullmatch(r"13 checks: \d+ ok, \d+ warnings?, 2 problems", lines[-1])


def test_ranks_that_average_nothing_are_found_out(tmp_path: Path, monkeypatch: Any) -> None:
    """Real ranks, whose allreduce returns what it is given."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if sys.orig_argv[-1] == 'average':\n"
        "    import horovod.tensorflow as hvd\n"
        "    hvd.grouped_allreduce = lambda tensors, **_: tensors\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    finding = look("averaging")
    assert finding.status == "problem"
    assert "weights differ" in finding.found


def test_what_is_well_is_ok_in_json(digits: Path, tmp_path: Path) -> None:
    port = free_ports(2)[0]
    settings = [f"data.path={digits}", f"run_dir={tmp_path / 'run'}"]
    settings.append(f"cluster.metrics_port={port}")
    done = doctor(str(SMOKE), *settings, "--json")
    checks = json.loads(done.stdout)["checks"]
    assert [check["name"] for check in checks] == NAMES
    for check in checks:
        assert check.keys() == {"name", "status", "found", "remedy"}
    by_name = {check["name"]: check for check in checks}
    for name in ("Python", "packages", "TensorFlow", "Horovod", "averaging", *OF_JOB):
        assert by_name[name]["status"] == "ok", by_name[name]
    assert by_name["dataset"]["found"] == "1438 + 359 images, 10 classes"
    assert "21,627,658 equal parameters" in by_name["averaging"]["found"]
    assert done.returncode == any(check["status"] == "problem" for check in checks)
    assert not (tmp_path / "run").exists()  # nothing is left behind


def test_a_mistake_in_the_config_is_one_line() -> None:
    done = doctor(str(SMOKE), "train.micro_bach=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean micro_batch?" in done.stderr


# The machine.


@pytest.mark.parametrize(("most", "status"), [(256, "warning"), (8192, "ok")])
def test_few_open_files(most: int, status: str) -> None:
    told = in_shell(f"-n {most}", "open_files")
    assert f"status='{status}'" in told
    assert ("ulimit -n 8192" in told) == (status == "warning")


def test_few_threads() -> None:
    told = in_shell(f"-S -u {machine.threads() + 300}", "processes")
    assert "status='warning'" in told
    assert "--ulimit nproc=" in told
    assert "status='ok'" in in_shell("-S -u hard", "processes")


def test_a_file_where_ray_wants_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert look("Ray's files").status == "problem"
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "other"))
    assert look("Ray's files").status != "problem"
    monkeypatch.setenv("HOME", str(tmp_path / "ray"))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert "no place for a token" in look("Ray's files").found


# Names, ports, Ray.


@pytest.mark.parametrize(
    ("found", "is_alone", "has_route", "status"),
    [
        (["10.0.0.7"], True, True, "ok"),
        (["10.0.0.7"], False, True, "ok"),
        (["127.0.1.1"], True, True, "ok"),  # as Debian writes it
        (["127.0.1.1"], True, False, "ok"),
        (["127.0.1.1"], False, True, "warning"),
        (["::1", "127.0.0.1"], False, True, "warning"),
        (["10.0.0.8"], True, True, "warning"),
        (["10.0.0.8"], True, False, "problem"),
        ([], True, True, "warning"),
        ([], True, False, "problem"),
    ],
)
def test_where_a_name_leads(found: list[str], is_alone: bool, has_route: bool, status: str) -> None:
    own = {"127.0.0.1", "::1", "10.0.0.7", "fe80::1", "02:42:ac:11:00:02"}
    finding = network.name_leads_to("here", found, own, is_alone=is_alone, has_route=has_route)
    assert finding.status == status
    assert ("`10.0.0.7 here`" in finding.remedy) == (status != "ok")


def test_a_taken_metrics_port_and_one_that_is_free() -> None:
    first = free_ports(2)[0]
    settings = ["cluster.workers=2", "cluster.cpus_per_worker=0.1"]
    with socket.create_server(("127.0.0.1", first + 1)):
        finding = look("metrics ports", job(f"cluster.metrics_port={first}", *settings))
        assert finding.status == "warning"
        assert f"127.0.0.1:{first + 1} is taken" in finding.found
        assert look("metrics ports", job(finding.remedy, *settings)).status == "ok"
    assert look("metrics ports", job(f"cluster.metrics_port={first}", *settings)).status == "ok"


def test_an_address_for_metrics_that_is_elsewhere() -> None:
    finding = look("metrics ports", job("cluster.metrics_host=203.0.113.9"))
    assert (finding.status, finding.remedy) == ("warning", "cluster.metrics_host=127.0.0.1")


def test_ray_at_an_address_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    finding = look("Ray")
    assert time.monotonic() - started < 10  # Ray itself takes two minutes
    assert finding.status == "problem"
    assert finding.found == f"RAY_ADDRESS={address}: Connection refused"
    assert "unset RAY_ADDRESS" in finding.remedy


@pytest.mark.ray
def test_ray_s_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ray_cluster(2, tmp_path) as cluster:
        for token, status in (("0" * 32, "problem"), (None, "ok")):
            for name, value in cluster.environment(token).items():
                monkeypatch.setenv(name, value)
            finding = look("Ray")
            assert finding.status == status, finding
            assert (finding.status == "problem") == ("RAY_AUTH_TOKEN" in finding.remedy)
        assert finding.found.endswith("token accepted: 1 node, 2 CPUs, 0 GPUs")
        assert look("workers", job("cluster.workers=2")).status == "ok"
        asked = look("workers", job("cluster.workers=2", "cluster.cpus_per_worker=2"))
        assert asked.status == "warning"  # the cluster may grow
        assert "the cluster has 2 CPU" in asked.found


# The job.


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["cluster.workers=3"], "1 to 2 workers"),
        (["cluster.workers=2", "cluster.cpus_per_worker=1000"], "this machine has"),
        (["cluster.gpus_per_worker=64"], "64 GPU asked for"),
    ],
)
def test_more_workers_than_there_is_room_for(
    overrides: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    finding = look("workers", job(*overrides))
    assert finding.status == "problem"
    assert said in finding.found


@pytest.fixture
def copied(digits: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    shutil.copytree(digits, folder)
    return folder


def first_shard(folder: Path) -> Path:
    return min(folder.glob("train-*.parquet"))


def test_a_dataset_that_is_not_there(tmp_path: Path) -> None:
    path = f"data.path={tmp_path / 'none'}"
    missing = look("dataset", job(path, "data.source=null"))
    assert missing.status == "problem"
    assert f"alexnet prepare IMAGES {tmp_path}/none" in missing.remedy
    assert look("dataset", job(path)).found.endswith("will be prepared from digits")
    (tmp_path / "file").touch()
    assert look("dataset", job(f"data.path={tmp_path / 'file' / 'set'}")).status == "problem"


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not a manifest"), ("[]", "not a manifest"), ('{"schema_version": 1}', "expected 2")],
)
def test_a_damaged_manifest(copied: Path, text: str, said: str) -> None:
    (copied / "manifest.json").write_text(text)
    finding = look("dataset", job(f"data.path={copied}"))
    assert finding.status == "problem"
    assert said in finding.found
    assert f"alexnet prepare IMAGES {copied}" in finding.remedy


def test_damaged_shards(copied: Path) -> None:
    shard = first_shard(copied)
    whole = shard.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 10] ^= 1
    for bytes_, said in ((whole[:-9], f"of {len(whole)} bytes"), (flipped, "row group 0")):
        shard.write_bytes(bytes_)
        finding = look("dataset", job(f"data.path={copied}"))
        assert finding.status == "problem"
        assert said in finding.found
        assert f"alexnet verify {copied}" in finding.remedy
    shard.unlink()
    assert "is missing" in look("dataset", job(f"data.path={copied}")).found
    shard.write_bytes(whole)
    assert look("dataset", job(f"data.path={copied}")).status == "ok"


def test_fewer_images_than_a_step_takes(digits: Path) -> None:
    sizes = ["train.global_batch=2048", "train.micro_batch=2"]
    finding = look("dataset", job(f"data.path={digits}", *sizes))
    assert (finding.status, finding.remedy) == ("problem", "train.global_batch=1438")


def test_more_memory_than_there_is(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = f"data.path={digits}"
    assert look("memory", job(path, "train.global_batch=2", "train.micro_batch=1")).status == "ok"
    large = ["train.global_batch=1000000", "train.micro_batch=500000"]
    finding = look("memory", job(path, *large))
    assert finding.status == "warning"
    assert "--fit-memory" in finding.remedy


def test_a_run_directory_that_cannot_be_one(tmp_path: Path) -> None:
    assert look("run directory", job(f"run_dir={tmp_path / 'new' / 'run'}")).status == "ok"
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run"), tmp_path):
        finding = look("run directory", job(f"run_dir={path}"))
        assert finding.status == "problem", path
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()
    assert look("run directory", job(f"run_dir={tmp_path / 'run'}")).status == "problem"


def test_more_checkpoints_than_the_disk_holds(digits: Path, tmp_path: Path) -> None:
    settings = [f"data.path={digits}", f"run_dir={tmp_path / 'run'}"]
    finding = look("disk", job(*settings, "checkpoint.keep=100000000"))
    assert finding.status == "problem"
    keep = int(finding.remedy.removeprefix("checkpoint.keep=").split(",")[0])
    assert look("disk", job(*settings, f"checkpoint.keep={keep // 2}")).status == "ok"


def test_the_size_of_a_checkpoint() -> None:
    """What a run of the smoke config has written, in bytes."""
    assert state_bytes(job(), 10) == pytest.approx(173_015_600, rel=1e-3)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyS3]:
    with flaky_s3(monkeypatch) as server:
        yield server


def test_a_store_that_takes_checkpoints_and_one_that_is_not_there(s3: FlakyS3) -> None:
    assert look("checkpoint store", job(f"checkpoint.path={s3.uri('runs/1')}")).status == "ok"
    s3.bucket = "nobodys"
    finding = look("checkpoint store", job(f"checkpoint.path={s3.uri('runs/1')}"))
    assert finding.status == "problem"
    assert "nobodys" in finding.found


# Whatever a check does.


def test_a_check_that_fails_is_a_problem_of_its_own() -> None:
    def fails(subject: Subject) -> Finding:
        raise ZeroDivisionError("division\nby zero")

    finding = bounded(fails, Subject(None), limit=9)
    assert (finding.status, finding.found) == ("problem", "ZeroDivisionError: division by zero")


def test_a_check_that_hangs_is_left_behind() -> None:
    def hangs(subject: Subject) -> Finding:
        time.sleep(60)
        return ok("at last")

    assert bounded(hangs, Subject(None), limit=0.1).found == "no answer within 0 s"


@pytest.mark.parametrize(
    "finding",
    [
        ok("fine"),
        warning("word " * 60, "a remedy " * 30),
        problem("/a/path/without/a/space" * 12, "key=" + "x" * 200),
    ],
)
def test_a_line_is_read_in_80_columns_without_colour(finding: Finding) -> None:
    screen = io.StringIO()
    Console(file=screen, width=80).print(report.line("checkpoint store", finding))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split()[1] == finding.status
    joined = "".join(screen.getvalue().split())
    assert "".join(finding.found.split()) in joined
    assert "".join(finding.remedy.split()) in joined


def test_the_last_line_counts() -> None:
    found = [("a", ok("")), ("b", ok("")), ("c", warning("", "")), ("d", problem("", ""))]
    assert report.total(found) == "4 checks: 2 ok, 1 warning, 1 problem"
    assert report.total(found[:2]) == "2 checks: 2 ok, 0 warnings, 0 problems"
