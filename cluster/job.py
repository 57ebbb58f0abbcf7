"""The driver: one run from launch to summary, whatever happens to its ranks."""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "token")  # before Ray reads it

import ray
from ray.exceptions import RayError

from alexnet.config import dump
from alexnet.data.prepare import prepare
from alexnet.data.shards import MANIFEST, ShardSet
from alexnet.data.storage import Location
from alexnet.errors import EXIT_FAILED, EXIT_OK, EXIT_STOPPED, AlexnetError, ConfigError
from cluster.board import RankResult
from cluster.config import JobConfig
from cluster.rendezvous import Rendezvous
from cluster.screen import Screen
from cluster.watch import AttemptFailedError, History, Stop, Watch
from cluster.workers import WorkerGroup

RUN_ENTRIES = {
    "config.yaml",
    "checkpoints",
    "logs",
    "metrics.jsonl",
    "tensorboard",
    "summary.json",
    ".summary.json.partial",
}


def run_job(config: JobConfig, replace: bool, screen: Screen) -> dict[str, Any]:
    """Train as configured, in the run directory, and return what `summary.json` says.

    A run directory with checkpoints is gone on with; `replace` starts it from nothing instead.

    Raises:
        AlexnetError: in one line, with its exit code, why there is no trained model.
    """
    config = config.with_absolute_paths()
    if isinstance(config.cluster.workers, int):
        config.check_workers(config.cluster.workers)
    _prepare_data(config, screen)
    _open_run(config, replace)
    history = History()
    try:
        with _ray(screen), Stop() as stop:  # in this order: Ray sets handlers of its own
            workers, gpus_per_worker = plan_workers(config, ray.cluster_resources())
            screen.start(config, workers, gpus_per_worker)
            result = _until_done(config, workers, gpus_per_worker, history, stop, screen)
    except BaseException as error:
        code = error.exit_code if isinstance(error, AlexnetError) else EXIT_FAILED
        failed = {"status": "failed", "exit_code": code, "error": str(error)}
        reached = {"steps": history.furthest, "eval": None}
        _write_summary(config, history, {**failed, **reached})
        raise
    return _write_summary(config, history, _outcome(config, history, workers, result))


def plan_workers(config: JobConfig, resources: dict[str, float]) -> tuple[int, int]:
    """Return the number of ranks and the GPUs of each, given what the cluster has.

    Raises:
        ConfigError: more ranks than micro-batches.
    """
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    wanted, wanted_gpus = config.cluster.workers, config.cluster.gpus_per_worker
    automatic = min(gpus or min(2, max(1, cpus)), config.train.virtual_workers)
    workers = automatic if wanted == "auto" else wanted
    config.check_workers(workers)
    return workers, int(gpus >= workers) if wanted_gpus == "auto" else wanted_gpus


def _prepare_data(config: JobConfig, screen: Screen) -> None:
    path = config.data.path
    if config.data.source and not (Location.of(path) / MANIFEST).exists():
        screen.say(f"preparing {config.data.source} into {path}")
        prepare(config.data.source, path)
    dataset = ShardSet.open(path)
    rows = {name: split.rows for name, split in dataset.splits.items()}
    rejected = f", {dataset.rejected} rejected" if dataset.rejected else ""
    screen.say(f"data {path}: {rows} images in {len(dataset.classes)} classes{rejected}")


def _open_run(config: JobConfig, replace: bool) -> None:
    run, record = config.run_path, config.run_path / "config.yaml"
    strange = sorted({path.name for path in run.glob("*")} - RUN_ENTRIES)
    if strange:
        raise ConfigError(f"{run}: not a run directory, it holds {strange[0]!r}; name another")
    if replace and run.exists():
        shutil.rmtree(run)
    run.mkdir(parents=True, exist_ok=True)
    (run / "summary.json").unlink(missing_ok=True)  # of the launch before
    record.write_text(dump(config))


@contextmanager
def _ray(screen: Screen) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, or start one here for as long as this lasts."""
    address = os.environ.get("RAY_ADDRESS", "local")
    screen.say("starting Ray here" if address == "local" else f"joining Ray at {address}")
    try:
        own = {"include_dashboard": False} if address == "local" else {}
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING, **own)
    except (RayError, ConnectionError, RuntimeError) as error:
        raise AlexnetError(f"Ray at {address}: {_refusal(error)}") from error
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # GPUs are the workers'
    try:
        yield
    finally:
        ray.shutdown()


def _refusal(error: Exception) -> str:
    if "InvalidAuthToken" in f"{error} {error.__cause__}":
        return (
            "refused: the token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token is "
            "missing or not that cluster's"
        )
    return " ".join(str(error).split())


def _until_done(
    config: JobConfig,
    workers: int,
    gpus_per_worker: int,
    history: History,
    stop: Stop,
    screen: Screen,
) -> RankResult:
    """Start the group, again where it is lost, until it has trained or been stopped.

    Two attempts in a row that get no further than the ones before are enough: it is no accident.
    """
    barren = 0
    while True:
        history.attempts += 1
        before = history.furthest
        try:
            with (
                WorkerGroup(config, workers, gpus_per_worker) as group,
                Rendezvous(group.meeting_address, group.slots) as rendezvous,
            ):
                return Watch(config, group, stop, screen, history).until_done(
                    group.train(rendezvous)
                )
        except AttemptFailedError as failure:
            barren = barren + 1 if history.furthest == before else 0
            spent = history.attempts > config.cluster.max_restarts
            if spent or barren == 2 or stop.wanted.is_set():
                raise
            screen.say(f"{failure}; starting again from the newest checkpoint")


def _outcome(
    config: JobConfig, history: History, workers: int, result: RankResult
) -> dict[str, Any]:
    seconds = time.monotonic() - history.clock
    trained = (result.step - result.first_step) * config.train.global_batch
    return {
        "status": "preempted" if result.stopped else "completed",
        "exit_code": EXIT_STOPPED if result.stopped else EXIT_OK,
        "world_size": workers,
        "virtual_workers": config.train.virtual_workers,
        "steps": result.step,
        "images_seen": result.step * config.train.global_batch,
        "eval": result.evaluation,
        "images_per_second": round(trained / max(result.training_seconds, 1e-9), 2),
        "goodput_ratio": round(history.phase_seconds["compute"] / seconds, 4),
        "weights_sha256": result.weights_sha256,
        "wire_bytes_per_step": result.wire_bytes_per_step,
    }


def _write_summary(config: JobConfig, history: History, outcome: dict[str, Any]) -> dict[str, Any]:
    summary = {
        **outcome,
        "attempts": history.attempts,
        "phase_seconds": {k: round(v, 3) for k, v in history.phase_seconds.items()},
        "started_at": history.started_at.isoformat(timespec="seconds"),
        "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    partial = config.run_path / ".summary.json.partial"
    partial.write_text(json.dumps(summary, indent=1) + "\n")
    partial.rename(config.run_path / "summary.json")
    return summary
