"""The lines of `metrics.jsonl` and `events.jsonl`: what a run tells of itself as it goes."""

import json
import logging
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

# Files of a run directory.
CONFIG, SUMMARY, METRICS = "config.yaml", "summary.json", "metrics.jsonl"
EVENTS, EVALUATION, REPORT = "events.jsonl", "evaluation.json", "report.html"

log = logging.getLogger(__name__)


class JsonLines:
    """A sink that appends records to a file; those after the restored step are dropped first."""

    def __init__(self, path: Path, restored_step: float = math.inf) -> None:
        """Go on in `path` after the records of `restored_step` steps."""
        kept = [json.dumps(r) + "\n" for r in read_records(path) if r["step"] <= restored_step]
        write_whole(path, "".join(kept))
        self._file = path.open("ab", buffering=0)
        self._broken = False  # the last line has no end

    def __call__(self, record: dict[str, Any]) -> None:
        """Append one record, with its time. A disk that is full costs the record, never the run."""
        line = json.dumps({"time": round(time.time(), 3), **record}) + "\n"
        text = ("\n" * self._broken + line).encode()
        try:
            self._broken = self._file.write(text) < len(text)
        except OSError as error:
            log.error("%s: a record is lost: %s", self._file.name, error.strerror)


def write_whole(path: Path, text: str) -> None:
    """Write a file that whoever reads it sees as it was, or as it is to be."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a `JsonLines` file; what is no record, half a line say, is left out."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    records = []
    for line in lines:
        with suppress(ValueError):
            record = json.loads(line)
            if line.endswith(b"\n") and isinstance(record, dict) and _is_step(record.get("step")):
                records.append(record)
    if len(records) < len(lines):
        log.warning("%s: %d damaged lines left out", path, len(lines) - len(records))
    return records


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
