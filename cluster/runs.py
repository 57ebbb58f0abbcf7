"""Runs as their directories tell of them, whoever runs them, and on which machine."""

import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from alexnet.config import flat
from alexnet.errors import ConfigError
from alexnet.records import CONFIG, METRICS, SUMMARY, read_records
from cluster.lease import LEASE, Record, is_held, read_lease, this_machine
from cluster.run_directory import ENTRIES, read_summary

STALE_SECONDS = 3600.0  # no clocks of two machines are so far apart
AT_ONCE = 32  # runs looked at


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
        return [record for record in logged if number(record.get("top1")) is not None]

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
        told = number(self.summary.get("steps")) if self.has_ended else None
        return max((r["step"] for r in self.records), default=0) if told is None else int(told)

    @property
    def images_per_second(self) -> float | None:
        """Of the last launch, if it has ended; otherwise of the last steps."""
        told = self.summary if self.has_ended else self.last
        return number(told.get("images_per_second"))

    @property
    def phase_seconds(self) -> dict[str, float]:
        """Of the last launch, if it has ended; otherwise of this attempt."""
        told = self.summary if self.has_ended else self.last
        return dict(told.get("phase_seconds") or {})

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the last steps; evaluations take their share as before."""
        total = number(self.last.get("total_steps"))
        batch = number(self.settings.get("train.global_batch"))
        rate, phases = self.images_per_second, self.phase_seconds
        training = sum(phases.values()) - phases.get("eval", 0.0)
        if self.status != "running" or not (total and batch and rate and training > 0):
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


def _is_held(path: Path, lease: Record | None) -> bool:
    """Whether a driver lives; one elsewhere that has not renewed for an hour is not waited for."""
    if lease is None:
        return False
    silent = time.time() - (path / LEASE).stat().st_mtime
    is_elsewhere = lease.get("machine") != this_machine()
    return not (is_elsewhere and silent > STALE_SECONDS) and is_held(path, lease)


def _settings(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load((path / CONFIG).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return flat(tree) if isinstance(tree, dict) else {}


def number(value: Any) -> float | None:
    """Return a figure; None: it is not there."""
    return value if isinstance(value, int | float) else None
