"""The driver: one run from launch to summary, whatever happens to its ranks."""

import json
import logging
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, cast

os.environ.setdefault("RAY_AUTH_MODE", "token")  # before Ray reads it

import ray
from ray.exceptions import RayError

from alexnet.config import dump
from alexnet.data.prepare import prepare
from alexnet.data.shards import MANIFEST, ShardSet
from alexnet.errors import EXIT_FAILED, EXIT_OK, EXIT_STOPPED, AlexnetError, ConfigError
from cluster.board import RankResult
from cluster.config import JobConfig
from cluster.rendezvous import Rendezvous
from cluster.screen import Screen
from cluster.workers import RankFailure, WorkerGroup

POLL_SECONDS = 0.25
PEER_GRACE_SECONDS = 2.0
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class History:
    """What the attempts of a run add up to."""

    attempts: int = 0
    furthest: int = 0  # step that any attempt has reached
    phase_seconds: dict[str, float] = field(default_factory=dict)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.monotonic)

    def add(self, phase_seconds: dict[str, float]) -> None:
        """Add the phases of an attempt that has ended."""
        for phase, seconds in phase_seconds.items():
            self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + seconds


class AttemptFailedError(AlexnetError):
    """The group was lost, for a reason that may be gone when it is started again."""


def run_job(config: JobConfig, replace: bool, screen: Screen) -> dict[str, Any]:
    """Train as configured, in the run directory, and return what `summary.json` says.

    A run directory with checkpoints is gone on with; `replace` starts it from nothing instead.

    Raises:
        AlexnetError: in one line, with its exit code, why there is no trained model.
    """
    if isinstance(config.cluster.workers, int):
        config.check_workers(config.cluster.workers)
    _prepare_data(config, screen)
    _open_run(config, replace)
    history = History()
    try:
        with _ray(screen), _Stop() as stop:  # in this order: Ray sets handlers of its own
            workers, gpus_per_worker = plan_workers(config, ray.cluster_resources())
            screen.start(config, workers, gpus_per_worker)
            result = _until_done(config, workers, gpus_per_worker, history, stop, screen)
    except BaseException as error:
        code = error.exit_code if isinstance(error, AlexnetError) else EXIT_FAILED
        _write_summary(
            config, history, {"status": "failed", "exit_code": code, "error": str(error)}
        )
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
    path = Path(config.data.path)
    if config.data.source and not (path / MANIFEST).exists():
        screen.say(f"preparing {config.data.source} into {path}")
        prepare(config.data.source, path)
    dataset = ShardSet.open(path)
    rows = {name: split.rows for name, split in dataset.splits.items()}
    rejected = f", {dataset.rejected} rejected" if dataset.rejected else ""
    screen.say(f"data {path}: {rows} images in {len(dataset.classes)} classes{rejected}")


def _open_run(config: JobConfig, replace: bool) -> None:
    run, record = config.run_path, config.run_path / "config.yaml"
    if replace and run.exists():
        if not record.exists() and any(run.iterdir()):
            raise ConfigError(f"{run}: not a run directory, so it is not replaced")
        shutil.rmtree(run)
    run.mkdir(parents=True, exist_ok=True)
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


class _Stop:
    """Turns SIGTERM and the first Ctrl-C into a wish, and the second Ctrl-C into an end."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Stop":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wanted.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted.set()


def _until_done(
    config: JobConfig,
    workers: int,
    gpus_per_worker: int,
    history: History,
    stop: _Stop,
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
                return _Watch(config, group, stop, screen, history).until_done(
                    group.train(rendezvous)
                )
        except AttemptFailedError as failure:
            barren = barren + 1 if history.furthest == before else 0
            spent = history.attempts > config.cluster.max_restarts
            if spent or barren == 2 or stop.wanted.is_set():
                raise
            screen.say(f"{failure}; starting again from the newest checkpoint")


class _Watch:
    """Looks after one attempt: relays progress, passes on a stop, notices its end."""

    def __init__(
        self, config: JobConfig, group: WorkerGroup, stop: _Stop, screen: Screen, history: History
    ) -> None:
        self._config = config
        self._group = group
        self._stop = stop
        self._screen = screen
        self._history = history
        self._deadline = math.inf
        self._phase_seconds: dict[str, float] = {}

    def until_done(self, running: list[Any]) -> RankResult:
        """Return rank 0's result, or raise for the first rank that failed."""
        pending = list(running)
        results: dict[Any, RankResult | RankFailure] = {}
        try:
            while pending:
                done, pending = ray.wait(pending, timeout=POLL_SECONDS)
                for reference in done:
                    results[reference] = self._result(reference, running.index(reference))
                if any(isinstance(result, RankFailure) for result in results.values()):
                    self._fail(pending, results, running)
                self._relay()
                self._pass_on_stop()
        except AttemptFailedError:
            self._history.add(self._phase_seconds)
            raise
        first = cast(RankResult, results[running[0]])
        self._history.add(first.phase_seconds)
        return first

    def _result(self, reference: Any, rank: int) -> RankResult | RankFailure:
        try:
            result: RankResult | RankFailure = ray.get(reference, timeout=POLL_SECONDS)
        except RayError as error:
            reason = str(error).strip().splitlines()[0]
            return RankFailure(rank=rank, message=f"rank {rank}: its process died: {reason}")
        return result

    def _fail(
        self, pending: list[Any], results: dict[Any, RankResult | RankFailure], running: list[Any]
    ) -> None:
        """Raise the failure that started it: peers of a lost rank fail too, and say so first."""
        late = []
        if pending:
            late, _ = ray.wait(pending, num_returns=len(pending), timeout=PEER_GRACE_SECONDS)
        for reference in late:
            results[reference] = self._result(reference, running.index(reference))
        self._relay()
        failures = [result for result in results.values() if isinstance(result, RankFailure)]
        failures.sort(key=lambda failure: (failure.error is None, failure.of_peers, failure.rank))
        if failures[0].error:
            raise failures[0].error
        raise AttemptFailedError(failures[0].message)

    def _relay(self) -> None:
        for status in (statuses := self._group.look()):
            for record in status.records:
                self._history.furthest = max(self._history.furthest, record["step"])
                self._phase_seconds = record.get("phase_seconds", self._phase_seconds)
                self._screen.record(record)
        limit = self._config.cluster.stall_timeout
        stuck = [rank for rank, status in enumerate(statuses) if status.idle_seconds > limit]
        if stuck:
            raise AttemptFailedError(f"rank {stuck[0]}: no progress for {limit:.0f} s")

    def _pass_on_stop(self) -> None:
        if not self._stop.wanted.is_set():
            return
        if math.isinf(self._deadline):
            self._screen.say("stopping: writing a last checkpoint")
            self._group.stop()
            self._deadline = time.monotonic() + self._config.cluster.stop_timeout
        elif time.monotonic() > self._deadline:
            raise AttemptFailedError(
                f"no checkpoint within {self._config.cluster.stop_timeout:.0f} s of the stop"
            )


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
