"""Whole jobs on a real Ray cluster: submitted, killed, stopped, resumed, refused."""

import json
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from alexnet.folder_archive import FolderArchive
from alexnet.records import METRICS, read_records
from tests.clusters import (
    BIN,
    ROOT,
    RayCluster,
    free_ports,
    ray_cluster,
    ray_node,
    start,
    wait_until,
)

pytestmark = pytest.mark.ray

RAY_JOB = [str(BIN / "ray"), "job"]
STEPS = 12
SUBMIT = [*RAY_JOB, "submit"]
FLOAT32 = ("train.exact_sums=false", "train.max_steps=20")
NO_ROOM = ("cluster.workers=3", "cluster.cpus_per_worker=2")

CONFIG = """
run_dir: {run}
data: {{path: {data}, image_size: 67, augment: {{shift: 0.1}}}}
train: {{global_batch: 24, micro_batch: 8, max_steps: {steps}, log_every: 1, exact_sums: true}}
schedule: {{learning_rate: 0.01, warmup_steps: 5}}
checkpoint: {{every: 4}}
cluster: {{workers: 2, threads_per_worker: 1, metrics_port: {port}, start_timeout: 60}}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(4, tmp_path_factory.mktemp("ray")) as running:
        yield running


class Job:
    """A config of its own, and runs of it."""

    def __init__(self, folder: Path, digits: Path, cluster: RayCluster, log: str = "log") -> None:
        self.folder, self.run, self.cluster = folder, folder / "run", cluster
        self.config = folder / f"config-{log}.yaml"
        self.port = free_ports(2)[0]  # and the next: one for each rank
        self.log = folder / log
        text = CONFIG.format(steps=STEPS, run=self.run, data=digits, port=self.port)
        self.config.write_text(text)

    def start(self, *overrides: str, token: str | None = None) -> "subprocess.Popen[bytes]":
        environment = self.cluster.environment(token)
        return start(["train", str(self.config), *overrides], environment, self.log)

    def train(self, *overrides: str, token: str | None = None) -> int:
        return self.start(*overrides, token=token).wait(timeout=300)

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.run / "summary.json").read_text())
        return summary

    def has_been_run(self) -> dict[str, bytes]:
        """Fill the run directory as an earlier job has left it, and return its files."""
        (self.run / "checkpoints" / "step-00000004").mkdir(parents=True)
        for name in ("config.yaml", "summary.json", "checkpoints/step-00000004/manifest.json"):
            (self.run / name).write_text("{}")
        return contents(self.run)

    def reached(self, step: int) -> bool:
        return any(int(n) >= step for n in re.findall(r"step +(\d+)  epoch", self.output))


Submitted = tuple[Job, list[list[dict[str, float]]], tuple[int, str]]


@pytest.fixture
def job(tmp_path: Path, digits: Path, cluster: RayCluster) -> Job:
    return Job(tmp_path, digits, cluster)


@pytest.fixture(scope="module")
def unbroken(
    tmp_path_factory: pytest.TempPathFactory, digits: Path, cluster: RayCluster
) -> dict[str, Any]:
    """The summary of a run that nothing happened to."""
    job = Job(tmp_path_factory.mktemp("unbroken"), digits, cluster)
    assert job.train() == 0, job.output
    return job.summary


def contents(run: Path) -> dict[str, bytes]:
    """The files of a run, by name, that a launch which never trains must leave alone."""
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and "lease" not in path.name and path.parent.name != "logs"
    }


def rank_processes(run: Path) -> list[psutil.Process]:
    """Processes that write a rank's log of this run."""
    logs = str(run / "logs")
    return [
        process
        for process in psutil.process_iter()
        if any(file.path.startswith(logs) for file in open_files(process))
    ]


def open_files(process: psutil.Process) -> list[Any]:
    try:
        return list(process.open_files())
    except psutil.Error:
        return []


def scrape(port: int) -> dict[str, float]:
    """The samples that a rank serves, read by Prometheus' own parser, by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    return {
        "".join([sample.name, *map(str, sorted(sample.labels.items()))]): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def submitted(
    tmp_path_factory: pytest.TempPathFactory, digits: Path, cluster: RayCluster
) -> Submitted:
    """A job by `ray job submit` with float32 sums, what its ranks served at two moments, and how
    a second job on its run ended meanwhile.
    """
    job = Job(tmp_path_factory.mktemp("submitted"), digits, cluster)
    command = [*SUBMIT, "--address", job.cluster.dashboard, "--working-dir", str(ROOT), "--"]
    command += ["python", "-m", "cluster", "train", str(job.config), *FLOAT32]
    running = submit(job, command)
    first = scrapes_of_more_steps(job, [0, 0])
    later = scrapes_of_more_steps(job, [max(6, rank["alexnet_steps_total"]) for rank in first])
    rival = Job(job.folder, digits, cluster, log="rival")
    refused = rival.train("--replace"), rival.output
    assert running.wait(timeout=300) == 0, job.output
    return job, [first, later], refused


def submit(job: Job, command: list[str]) -> "subprocess.Popen[bytes]":
    """Submit, again for as long as a cluster has only just started."""
    environment = job.cluster.environment()
    while True:
        with job.log.open("wb") as output:
            running = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        wait_until(partial(has_reached_or_ended, job, 1, running), 120, "a step")
        if "No available agent" not in job.output:
            return running
        time.sleep(1)


def scrapes_of_more_steps(job: Job, steps: list[float]) -> list[dict[str, float]]:
    """What each rank serves once each has counted more than so many steps."""
    scrapes: list[dict[str, float]] = []

    def more() -> bool:
        scrapes[:] = [scrape(job.port + rank) for rank in range(len(steps))]
        return all(
            served["alexnet_steps_total"] > before
            for served, before in zip(scrapes, steps, strict=True)
        )

    wait_until(more, 120, f"more than {steps} steps")
    return scrapes


def has_reached_or_ended(job: Job, step: int, running: "subprocess.Popen[bytes]") -> bool:
    return job.reached(step) or running.poll() is not None


def test_submitted_job_trains_and_serves_metrics(submitted: Submitted) -> None:
    job, (first, later), _ = submitted
    for rank, (before, after) in enumerate(zip(first, later, strict=True)):
        for counter in (
            "alexnet_images_total",
            "alexnet_steps_total",
            "alexnet_step_seconds_count",
        ):
            assert after[counter] > before[counter] > 0
        assert after["alexnet_phase_seconds_total('phase', 'compute')"] > 0
        assert after["alexnet_skipped_steps_total"] == 0
        assert after["alexnet_world_size"] == 2
        assert after["alexnet_rank"] == rank
        assert ("alexnet_loss_nats" in after) == (rank == 0)
        assert ("alexnet_checkpoint_failures_total" in after) == (rank == 0)
    assert later[0]["alexnet_checkpoint_step"] >= 4
    assert later[0]["alexnet_wall_seconds('spent_on', 'start_up')"] > 0
    assert job.summary["status"] == "completed"
    assert job.summary["eval"]["images"] == 359


def test_the_log_says_what_was_chosen_for_this_device(submitted: Submitted) -> None:
    said = (submitted[0].run / "logs" / "rank-0.log").read_text()
    chosen = "float32 on the CPU (threads: 1), deterministic kernels, channels last, no XLA"
    assert f"computing in {chosen}" in said
    assert "gradients: fc6, fc7 from factors, sums of the rest" in said


def test_a_second_job_on_a_run_is_refused(submitted: Submitted) -> None:
    _, _, (code, output) = submitted
    assert code == 2, output
    assert "in use by another job" in output.splitlines()[-1]


def test_every_second_is_accounted_for(submitted: Submitted) -> None:
    job = submitted[0]
    spent, took = job.summary["wall_seconds"], job.summary["phase_seconds"]
    started, ended = (datetime.fromisoformat(job.summary[k]) for k in ("started_at", "ended_at"))
    assert sum(spent.values()) == pytest.approx((ended - started).total_seconds(), abs=2)
    assert spent["productive"] == pytest.approx(took["compute"], abs=1)
    assert spent["evaluation"] == pytest.approx(took["eval"], abs=1)
    first = next(line for line in read_records(job.run / METRICS) if line["kind"] == "step")
    until = first["time"] - sum(first["phase_seconds"].values())  # when the ranks began to train
    assert spent["start_up"] == pytest.approx(until - started.timestamp(), abs=2)
    assert spent["replay"] == spent["detection"] == 0


def test_wrong_token_is_refused_and_nothing_lost(job: Job) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{job.cluster.dashboard}/api/jobs/", timeout=10)
    assert refused.value.code == 401
    before = job.has_been_run()
    assert job.train("--replace", token="0" * 32) == 1
    assert "token" in job.output.splitlines()[-1]
    assert contents(job.run) == before


def test_killed_rank_changes_nothing(job: Job, unbroken: dict[str, Any]) -> None:
    driver = job.start()
    wait_until(lambda: job.reached(6), 120, "six steps")
    rank_processes(job.run)[-1].kill()
    assert driver.wait(timeout=300) == 0, job.output
    assert job.summary["attempts"] == 2
    assert job.summary["wall_seconds"]["replay"] > 0
    assert 0 < job.summary["wall_seconds"]["detection"] < 10
    assert job.summary["weights_sha256"] == unbroken["weights_sha256"]
    steps = [json.loads(line)["step"] for line in (job.run / "metrics.jsonl").open()]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    told = [event["kind"] for event in read_records(job.run / "events.jsonl")]
    lost = ["launch", "attempt", "training", "lost"]
    assert told == [*lost, "attempt", "training", "completed"]
    assert re.search(r"rank \d: its process died", (job.run / "report.html").read_text())


def test_standbys_take_the_place_of_a_lost_group(job: Job, unbroken: dict[str, Any]) -> None:
    driver = job.start("cluster.standby_after=0")
    wait_until(lambda: job.reached(6), 120, "six steps")
    killed_at = time.time()
    rank_processes(job.run)[-1].kill()
    wait_until(lambda: "starting again" in job.output, 30, "a second attempt")
    wait_until(lambda: len(rank_processes(job.run)) == 2, 30, "ranks")
    assert all(process.create_time() < killed_at for process in rank_processes(job.run))
    assert driver.wait(timeout=300) == 0, job.output
    assert job.summary["attempts"] == 2
    assert job.summary["weights_sha256"] == unbroken["weights_sha256"]


def test_a_standby_that_has_died_costs_no_attempt(job: Job, unbroken: dict[str, Any]) -> None:
    driver = job.start("cluster.standby_after=0")
    wait_until(lambda: job.reached(6), 120, "six steps")
    ranks = rank_processes(job.run)
    ranks[-1].suspend()
    wait_until(lambda: "standby ready" in job.output, 25, "warm processes")
    [standby, *_] = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "".join(process.info["cmdline"] or ()).startswith("ray::Worker") and process not in ranks
    ]
    standby.kill()
    ranks[-1].kill()
    assert driver.wait(timeout=300) == 0, job.output
    assert job.summary["attempts"] == 2
    assert job.summary["weights_sha256"] == unbroken["weights_sha256"]


def test_sigterm_to_a_rank_stops_all_with_a_checkpoint(job: Job, unbroken: dict[str, Any]) -> None:
    driver = job.start()
    wait_until(lambda: job.reached(6), 120, "six steps")
    rank_processes(job.run)[-1].terminate()
    assert driver.wait(timeout=60) == 75, job.output
    assert job.summary["status"] == "preempted"
    (job.run / "report.html").unlink()
    (job.run / "report.html").mkdir()  # so that it cannot be written
    assert job.train() == 0, job.output
    assert "no report.html" in job.output
    assert job.summary["weights_sha256"] == unbroken["weights_sha256"]


def test_killed_driver_leaves_nobody_and_goes_on_in_float32(job: Job, submitted: Submitted) -> None:
    """With as many workers, sums need not be exact for the same bits."""
    driver = job.start(*FLOAT32)
    wait_until(lambda: job.reached(6), 120, "six steps")
    driver.kill()
    driver.wait()
    wait_until(lambda: not rank_processes(job.run), 30, "the ranks' end")
    assert job.train(*FLOAT32) == 0, job.output
    assert job.summary["weights_sha256"] == submitted[0].summary["weights_sha256"]


def test_interrupted_run_goes_on_with_other_workers(job: Job, unbroken: dict[str, Any]) -> None:
    stop(job, signal.SIGINT)
    assert job.train("cluster.workers=3") == 0, job.output
    assert job.summary["world_size"] == 3
    assert job.summary["weights_sha256"] == unbroken["weights_sha256"]


def test_checkpoint_of_another_model_is_refused(job: Job) -> None:
    stop(job, signal.SIGTERM)
    before = contents(job.run)
    assert job.train("data.image_size=75") == 2
    assert "a checkpoint of another model: image_size is 67 there" in job.output.splitlines()[-1]
    assert contents(job.run) == before


def stop(job: Job, number: signal.Signals) -> None:
    """Start, stop after some steps by a signal to the driver, and check what it left."""
    driver = job.start()
    wait_until(lambda: job.reached(5), 120, "five steps")
    driver.send_signal(number)
    assert driver.wait(timeout=60) == 75, job.output
    assert job.summary["status"] == "preempted"
    assert 5 <= job.summary["steps"] < STEPS
    wait_until(lambda: not rank_processes(job.run), 10, "the ranks' end")


def test_job_stop_leaves_a_checkpoint_and_no_process(job: Job, unbroken: dict[str, Any]) -> None:
    name, address = f"stop-{job.port}", ["--address", job.cluster.dashboard]
    submit = [*SUBMIT, *address, "--submission-id", name, "--no-wait", "--working-dir", str(ROOT)]
    submit += ["--", "python", "-m", "cluster", "train", str(job.config)]
    stop_it = [*RAY_JOB, "stop", *address, name]
    environment = job.cluster.environment()
    subprocess.run(submit, env=environment, check=True, capture_output=True)
    metrics = job.run / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2, 120, "steps")
    subprocess.run(stop_it, env=environment, check=True, capture_output=True)
    assert job.summary["status"] == "preempted"
    wait_until(lambda: not rank_processes(job.run), 10, "the ranks' end")
    assert job.train() == 0, job.output
    assert job.summary["weights_sha256"] == unbroken["weights_sha256"]


def test_more_workers_than_cpus_is_refused_in_time(job: Job) -> None:
    before = job.has_been_run()
    assert job.train(*NO_ROOM, "cluster.start_timeout=3", "--replace") == 2
    last = job.output.splitlines()[-1]
    assert "3 workers x 2 CPU" in last
    assert "4 CPU" in last
    assert contents(job.run) == before


@pytest.mark.parametrize("moment", ["data ", "joining Ray", "3 Horovod workers"])
def test_a_stop_does_not_wait_for_the_start(job: Job, moment: str) -> None:
    before = job.has_been_run()
    driver = job.start(*NO_ROOM)
    wait_until(lambda: moment in job.output, 60, moment)
    asked = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=30) == 75, job.output
    assert time.monotonic() - asked < 10
    assert "run it again" in job.output.splitlines()[-1]
    assert contents(job.run) == before


def test_a_stop_that_loses_the_ranks_goes_on_from_the_checkpoint_before(job: Job) -> None:
    driver = job.start("cluster.stop_timeout=4")
    wait_until(lambda: job.reached(6), 120, "six steps")
    rank_processes(job.run)[-1].suspend()
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=60) == 75, job.output
    assert "no checkpoint within 4 s of the stop; the newest checkpoint is of step 4" in job.output
    assert job.summary["status"] == "preempted"
    assert job.summary["steps"] == 4
    assert job.summary["images_seen"] == 4 * 24
    wait_until(lambda: not rank_processes(job.run), 10, "the ranks' end")


def test_bad_numbers_end_a_run_on_all_ranks(job: Job) -> None:
    assert job.train("schedule.learning_rate=1e30", "checkpoint.every=1") == 1
    assert "loss or gradients are not finite" in job.output.splitlines()[-1]
    assert job.summary["status"] == "failed"
    saved = FolderArchive(job.run / "checkpoints").newest()
    if saved:
        assert all(np.isfinite(value).all() for value in saved.state.values())


def test_frozen_rank_is_noticed_and_replaced(job: Job, unbroken: dict[str, Any]) -> None:
    driver = job.start("cluster.stall_timeout=40")
    wait_until(lambda: job.reached(6), 120, "six steps")
    rank_processes(job.run)[-1].suspend()
    assert driver.wait(timeout=300) == 0, job.output
    assert "no progress for 40 s" in job.output
    assert job.summary["weights_sha256"] == unbroken["weights_sha256"]


@pytest.mark.slow
def test_a_lost_node_is_done_without(
    tmp_path: Path, digits: Path, unbroken: dict[str, Any]
) -> None:
    with ray_cluster(2, tmp_path) as small:
        job = Job(tmp_path, digits, small)
        auto = ("cluster.workers=auto", "cluster.max_workers=3")
        with ray_node(small, 1, tmp_path) as raylet:
            driver = job.start(*auto)
            wait_until(lambda: job.reached(6), 120, "six steps")
            raylet.kill()
            assert driver.wait(timeout=300) == 0, job.output
        workers = re.findall(r"(\d) Horovod workers", job.output)
        assert workers == ["3", "2"]  # nor does it wait until Ray gives the node up
        assert job.summary["world_size"] == 2
        assert job.summary["weights_sha256"] == unbroken["weights_sha256"]


@pytest.mark.slow
def test_a_node_that_joins_is_used(tmp_path: Path, digits: Path, unbroken: dict[str, Any]) -> None:
    with ray_cluster(2, tmp_path) as small:
        job = Job(tmp_path, digits, small)
        auto = ("cluster.workers=auto", "cluster.max_workers=3", "cluster.grow_after=0.1")
        driver = job.start(*auto)
        wait_until(lambda: "2 Horovod workers" in job.output, 60, "a group of two")
        with ray_node(small, 1, tmp_path):
            assert driver.wait(timeout=300) == 0, job.output
        assert "room for 3 workers" in job.output
        assert job.summary["world_size"] == 3
        assert job.summary["attempts"] == 2
        assert job.summary["wall_seconds"]["replay"] == 0
        assert job.summary["weights_sha256"] == unbroken["weights_sha256"]
