"""The run directory as the driver keeps it: its settings, its summary, and what does not belong."""

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from alexnet.config import dump
from alexnet.errors import ConfigError
from alexnet.records import (
    CONFIG,
    EVALUATION,
    EVENTS,
    METRICS,
    REPORT,
    SUMMARY,
    JsonLines,
    read_records,
    write_whole,
)
from cluster.config import JobConfig
from cluster.lease import LEASE

FILES = {CONFIG, SUMMARY, METRICS, EVENTS, EVALUATION, REPORT}
ENTRIES = FILES | {LEASE, "checkpoints", "logs", "tensorboard"}

log = logging.getLogger(__name__)


def read_summary(run: Path) -> dict[str, Any]:
    """Return the summary of the launch before; empty: it has not ended, or the file is damaged."""
    try:
        summary = json.loads((run / SUMMARY).read_text())
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


class RunDirectory:
    """Nothing in it changes before a launch has its resources, so that a mistake costs nothing."""

    def __init__(self, path: Path) -> None:
        """Look at `path`, which need not exist.

        Raises:
            ConfigError: it holds something that no run leaves behind.
        """
        self._path = path
        self._events: JsonLines | None = None
        self._untold: list[dict[str, Any]] = []
        found = {entry.name for entry in path.glob("*") if not entry.name.startswith(".")}
        if strange := sorted(found - ENTRIES):
            raise ConfigError(f"{path}: not a run directory, it holds {strange[0]!r}; name another")
        self.before = read_summary(path)  # of the launch before, if it has ended

    def clear(self) -> None:
        """Delete what a run has left, all but the lease and an archive elsewhere."""
        for name in sorted(ENTRIES - {LEASE}):
            entry = self._path / name
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        self.before = {}

    def begin(self, config: JobConfig) -> None:
        """Training begins: the settings are these, and the summary is no longer true."""
        (self._path / SUMMARY).unlink(missing_ok=True)
        write_whole(self._path / CONFIG, dump(config))
        self._tell_all()

    def tell(self, kind: str, step: int, **facts: Any) -> None:
        """Keep an event, once training has begun or the launch has ended.

        A disk that is full costs the event, never the run.
        """
        self._untold.append({"kind": kind, "step": step, **facts, "time": round(time.time(), 3)})
        if self._events:
            self._tell_all()

    def skipped_steps(self, until: int | None = None) -> int:
        """Return how many steps (of the first `until`) were left out for bad numbers."""
        records = read_records(self._path / METRICS)
        steps = {record["step"] for record in records if record.get("kind") == "skipped"}
        return sum(until is None or step <= until for step in steps)

    def end(self, summary: dict[str, Any]) -> None:
        """Leave the summary of the launch."""
        write_whole(self._path / SUMMARY, json.dumps(summary, indent=1) + "\n")
        self.tell(summary["status"], summary["steps"], reason=summary.get("error"))
        self._tell_all()

    def _tell_all(self) -> None:
        untold, self._untold = self._untold, []
        try:
            self._events = self._events or JsonLines(self._path / EVENTS)
        except OSError as error:
            log.error("%s: events are lost: %s", self._path / EVENTS, error.strerror)
            return
        for event in untold:
            self._events(event)
