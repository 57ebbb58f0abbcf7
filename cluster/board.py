"""What a rank and the driver tell each other while the rank trains."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Status:
    """A look at a rank from outside."""

    step: int | None  # None: not training yet
    idle_seconds: float  # since the last sign of progress
    records: list[dict[str, Any]]  # logged since the last look
    phase_seconds: dict[str, float]  # so far


@dataclass(frozen=True, kw_only=True)
class RankResult:
    """What a rank has to say at the end of an attempt that succeeded."""

    step: int
    stopped: bool
    first_step: int
    evaluation: dict[str, Any] | None
    phase_seconds: dict[str, float]
    weights_sha256: str
    wire_bytes_per_step: int


@dataclass(kw_only=True)
class Board:
    """Where a training thread leaves word for the control thread, and the other way round."""

    stop: threading.Event = field(default_factory=threading.Event)
    phase_seconds: Mapping[str, float] = field(default_factory=dict)  # that the trainer adds to
    wall_seconds: Mapping[str, float] = field(default_factory=dict)  # as the driver has told
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _step: int | None = None
    _bad_rows: int = 0
    _progress_at: float = field(default_factory=time.monotonic)
    _records: list[dict[str, Any]] = field(default_factory=list)

    def progress(self, step: int | None = None) -> None:
        """Say that this rank is alive and getting on."""
        with self._lock:
            self._progress_at = time.monotonic()
            self._step = self._step if step is None else step

    def record(self, record: dict[str, Any]) -> None:
        """Leave a record for the driver."""
        with self._lock:
            self._records.append(record)

    def bad_row(self, reason: str) -> None:
        """Count an image that was skipped, and leave word of it."""
        with self._lock:
            self._bad_rows += 1
            self._records.append({"kind": "bad_row", "step": self._step or 0, "reason": reason})

    @property
    def bad_rows(self) -> int:
        """Images skipped so far."""
        return self._bad_rows

    def look(self) -> Status:
        """Take the records left so far."""
        with self._lock:
            records, self._records = self._records, []
            idle = time.monotonic() - self._progress_at
            return Status(
                step=self._step,
                idle_seconds=idle,
                records=records,
                phase_seconds=dict(self.phase_seconds),
            )
