"""Runs as their directories tell of them, whoever runs them, and on which machine."""

import logging
import os
import socket
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from alexnet.archive import open_archive
from alexnet.config import differences, flat
from alexnet.errors import AlexnetError, ConfigError
from alexnet.records import read_records
from cluster.lease import LEASE, Record, is_held, read_lease
from cluster.run_directory import CONFIG, ENTRIES, METRICS, SUMMARY, read_summary

STALE_SECONDS = 3600.0  # no clocks of two machines are so far apart
SCORES = ("top1", "top5", "loss", "images")
AT_ONCE = 32  # runs looked at

Pairs = dict[str, tuple[Any, Any]]
log = logging.getLogger(__name__)


def is_run(path: Path) -> bool:
    """Return whether `path` is a run directory: a config alone makes none."""
    others = ENTRIES - {CONFIG, LEASE}
    has_begun = (path / CONFIG).is_file() and any((path / name).exists() for name in others)
    return has_begun or (path / LEASE).is_file()


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run directory holds. A file that is missing or damaged leaves its part empty."""

    path: Path
    settings: Mapping[str, Any]  # by their full keys; not checked: it may be of another version
    summary: Mapping[str, Any]  # of the launch before, if it has ended
    lease: Record | None
    is_held: bool  # by a driver that lives

    @staticmethod
    def open(path: Path) -> "Run":
        """Read a run directory; if it is another machine's, see for seconds whether it goes on.

        Raises:
            ConfigError: it is none.
        """
        if not is_run(path):
            raise ConfigError(f"{path}: not a run directory")
        lease = read_lease(path)
        held = _is_held(path, lease)
        settings, summary = _settings(path), read_summary(path)
        return Run(path=path, settings=settings, summary=summary, lease=lease, is_held=held)

    @property
    def status(self) -> str:
        """In a word: the summary's, or what a run without one is doing or has come to."""
        has_begun = (self.path / CONFIG).exists()
        if self.is_held:
            return "running" if has_begun and not self.summary else "starting"
        if self.summary:
            return str(self.summary.get("status"))
        return "died" if has_begun else "not begun"

    @property
    def has_ended(self) -> bool:
        """Whether there is a summary of all that it has done."""
        return bool(self.summary) and not self.is_held

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_records(self.path / METRICS)

    @property
    def last(self) -> Mapping[str, Any]:
        """The last logged step."""
        return next((r for r in reversed(self.records) if r.get("kind") == "step"), {})

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """All that were logged."""
        logged = [r for r in self.records if r.get("kind") == "evaluation"]
        return [record for record in logged if _is_number(record.get("top1"))]

    @property
    def evaluation(self) -> Mapping[str, Any] | None:
        """The last one."""
        return next(reversed(self.evaluations), None) or self.summary.get("eval")

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The first evaluation of those that scored highest."""
        return max(self.evaluations, key=lambda record: record["top1"], default=None)

    @property
    def steps(self) -> int:
        """Steps taken, as far as has been told."""
        told = self.summary.get("steps") if self.has_ended else None
        return int(told) if _is_number(told) else max((r["step"] for r in self.records), default=0)

    @property
    def images_per_second(self) -> float | None:
        """Of the last launch, if it has ended; otherwise of the last steps."""
        told = self.summary if self.has_ended else self.last
        return _number(told.get("images_per_second"))

    @property
    def phase_seconds(self) -> dict[str, float]:
        """Of the last launch, if it has ended; otherwise of this attempt."""
        told = self.summary if self.has_ended else self.last
        return dict(told.get("phase_seconds") or {})

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the last steps; evaluations take their share as before."""
        total, batch = self.last.get("total_steps"), self.settings.get("train.global_batch")
        rate, phases = self.images_per_second, self.phase_seconds
        training = sum(phases.values()) - phases.get("eval", 0.0)
        if self.status != "running" or not (rate and training > 0):
            return None
        if not (_is_number(total) and _is_number(batch)):
            return None
        images = max(0, total - self.steps) * batch
        return images / rate * sum(phases.values()) / training

    @property
    def seen_at(self) -> float:
        """When it ended, or last gave a sign of life."""
        try:
            if self.has_ended:
                return datetime.fromisoformat(self.summary["ended_at"]).timestamp()
        except (KeyError, TypeError, ValueError):
            pass
        files = [self.path / name for name in (CONFIG, LEASE, METRICS, SUMMARY)]
        return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)

    def row(self) -> dict[str, Any]:
        """Return what a list of runs says of this one."""
        return {
            "run": str(self.path),
            "status": self.status,
            "model": self.settings.get("model.name"),
            "data": self.settings.get("data.path"),
            "steps": self.steps,
            "top1": (self.evaluation or {}).get("top1"),
            "images_per_second": self.images_per_second,
            "seen_at": _iso(self.seen_at),
        }

    def state(self) -> dict[str, Any]:
        """Return all that can be said of this run now."""
        phases, lease = self.phase_seconds, self.lease or {}
        spent = sum(phases.values())
        numbers = ("epoch", "loss", "accuracy", "learning_rate")
        return {
            **self.row(),
            "process": lease.get("pid") if self.is_held else None,
            "host": lease.get("host") if self.is_held else None,
            "attempts": lease.get("generation"),  # of all launches
            "total_steps": _number(self.last.get("total_steps")),
            **{name: _number(self.last.get(name)) for name in numbers},
            "seconds_left": self.seconds_left,
            "evaluation": _scores(self.evaluation),
            "best": _scores(self.best),
            "checkpoint": self._checkpoint(),
            "phases": {name: s / spent for name, s in phases.items()} if spent > 0 else {},
            "exit_code": self.summary.get("exit_code") if self.has_ended else None,
            "error": self.summary.get("error") if self.has_ended else None,
        }

    def results(self) -> dict[str, Any]:
        """Return what this run is compared with others by."""
        seconds = self.summary.get("wall_seconds") or {}
        return {
            **{name: (self.evaluation or {}).get(name) for name in ("top1", "top5", "loss")},
            "images_per_second": self.images_per_second,
            "steps": self.steps,
            "wall_seconds": round(sum(seconds.values()), 3) if seconds else None,
            "goodput_ratio": self.summary.get("goodput_ratio"),
            "weights_sha256": self.summary.get("weights_sha256"),
        }

    def _checkpoint(self) -> dict[str, Any] | None:
        """Which is the newest; one in a store may be out of reach from here."""
        store = self.settings.get("checkpoint.path")
        try:
            written = open_archive(self.path, store).latest()
        except (OSError, AlexnetError) as error:
            log.warning("%s: no answer: %s", store or self.path, error)
            return None
        if written is None:
            return None
        return {"step": written.step, "age_seconds": max(0.0, round(time.time() - written.at, 3))}


def find_runs(folder: Path) -> list[Path]:
    """Return the run directories below `folder`, or `folder` itself if it is one.

    Raises:
        ConfigError: no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    found = []
    for name, below, _ in os.walk(folder):
        if is_run(Path(name)):
            found.append(Path(name))
            below.clear()
        below[:] = [each for each in below if not each.startswith(".")]
    return found


def open_runs(paths: Iterable[Path]) -> list[Run]:
    """Return these runs, the newest first."""
    with ThreadPoolExecutor(AT_ONCE) as pool:  # those of other machines take seconds each
        return sorted(pool.map(Run.open, paths), key=lambda run: run.seen_at, reverse=True)


def compared(a: Run, b: Run) -> tuple[Pairs, Pairs]:
    """Return the settings of two runs that are not the same, and their results.

    Raises:
        ConfigError: one has no settings that can be read.
    """
    for run in (a, b):
        if not run.settings:
            raise ConfigError(f"{run.path}: nothing to compare, it has no readable {CONFIG}")
    settings = differences(a.settings, b.settings)
    settings.pop("run_dir", None)
    left, right = a.results(), b.results()
    return settings, {name: (left[name], right[name]) for name in left}


def _is_held(path: Path, lease: Record | None) -> bool:
    """Whether a driver lives; one elsewhere that has not renewed for an hour is not waited for."""
    if lease is None:
        return False
    silent = time.time() - (path / LEASE).stat().st_mtime
    is_elsewhere = lease["host"] != socket.gethostname()
    return not (is_elsewhere and silent > STALE_SECONDS) and is_held(path, lease)


def _settings(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load((path / CONFIG).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return flat(tree) if isinstance(tree, dict) else {}


def _scores(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """An evaluation's figures, and its step if that is told."""
    if record is None:
        return None
    return {name: record[name] for name in ("step", *SCORES) if name in record}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float)


def _number(value: Any) -> Any:
    return value if _is_number(value) else None


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")
