"""The run directory as the driver keeps it: its settings, its summary, and what does not belong."""

import json
import shutil
from pathlib import Path
from typing import Any

from alexnet.config import dump
from alexnet.errors import ConfigError
from alexnet.records import read_records
from cluster.config import JobConfig
from cluster.lease import LEASE

CONFIG, SUMMARY, METRICS = "config.yaml", "summary.json", "metrics.jsonl"
ENTRIES = {CONFIG, SUMMARY, METRICS, LEASE, "checkpoints", "logs", "tensorboard", "report.html"}


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
        self._write(CONFIG, dump(config))

    def skipped_steps(self, until: int | None = None) -> int:
        """Return how many steps (of the first `until`) were left out for bad numbers."""
        records = read_records(self._path / METRICS)
        steps = {record["step"] for record in records if record.get("kind") == "skipped"}
        return sum(until is None or step <= until for step in steps)

    def end(self, summary: dict[str, Any]) -> None:
        """Leave the summary of the launch."""
        self._write(SUMMARY, json.dumps(summary, indent=1) + "\n")

    def _write(self, name: str, text: str) -> None:
        partial = self._path / f".{name}.partial"
        partial.write_text(text)
        partial.rename(self._path / name)
