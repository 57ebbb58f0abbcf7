"""What a launch adds up to: its attempts, and on what each of its seconds was spent."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

SPENT_ON = (
    "productive",  # computing steps that no attempt had taken before
    "data",
    "exchange",
    "checkpoint",
    "evaluation",
    "start_up",  # until the ranks train
    "detection",  # from a lost group's last sign of progress until it was given up
    "replay",  # steps that an earlier attempt had taken already
    "idle",
)
PER_STEP = {"data": "data", "compute": "productive", "exchange": "exchange"}
AROUND_STEPS = {"checkpoint": "checkpoint", "eval": "evaluation"}


class Ledger:
    """Assigns every second since its beginning to one of `SPENT_ON`, by the clock of one process.

    What has not been assigned yet is open. Nothing can be assigned but open time, so the parts
    never add up to more than the whole, and to all of it once it is closed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin now."""
        self._clock = clock
        self._began = clock()
        self.seconds = dict.fromkeys(SPENT_ON, 0.0)

    @property
    def wall_seconds(self) -> float:
        """Time since the beginning."""
        return self._clock() - self._began

    @property
    def open_seconds(self) -> float:
        """Time that is still to be assigned."""
        return self.wall_seconds - sum(self.seconds.values())

    def assign(self, kind: str, seconds: float) -> None:
        """Assign `seconds` of the open time (negative: make some open again)."""
        self.seconds[kind] += min(seconds, self.open_seconds)

    def close(self, kind: str, but: float = 0.0) -> None:
        """Assign all that is open, but for some seconds."""
        self.assign(kind, max(0.0, self.open_seconds - but))


class Training:
    """Accounts for the training of one attempt, from what rank 0's phases add up to."""

    def __init__(self, ledger: Ledger, replay_until: int) -> None:
        """Steps up to `replay_until` have been taken before."""
        self._ledger = ledger
        self._replay_until = replay_until
        self.phase_seconds: dict[str, float] = {}
        self.began = False

    def at(self, step: int, phase_seconds: Mapping[str, float]) -> None:
        """Rank 0 is at `step` and has spent that much so far."""
        since = {k: v - self.phase_seconds.get(k, 0.0) for k, v in phase_seconds.items()}
        if not self.began:
            self._ledger.close("start_up", but=sum(since.values()))
        for phase, kind in (PER_STEP | AROUND_STEPS).items():
            replays = phase in PER_STEP and step < self._replay_until
            self._ledger.assign("replay" if replays else kind, since.get(phase, 0.0))
        self.began, self.phase_seconds = True, dict(phase_seconds)

    def end(self, failed: bool) -> None:
        """The attempt is over."""
        lost = "detection" if self.began else "start_up"
        self._ledger.close(lost if failed else "idle")


@dataclass(kw_only=True)
class History:
    """What the attempts of a launch add up to."""

    workers: int = 0  # of the last attempt
    attempts: int = 0
    furthest: int = 0  # step that any attempt has reached
    evaluation: dict[str, Any] | None = None  # the last one
    images_per_second: float | None = None  # of the last attempt that trained
    phase_seconds: dict[str, float] = field(default_factory=dict)
    skipped_steps: int = 0  # of the whole run
    rows_skipped: int = 0  # bad rows, on all ranks
    checkpoint_failures: int = 0
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ledger: Ledger = field(default_factory=Ledger)

    def add(self, phase_seconds: Mapping[str, float], images: int) -> None:
        """Add an attempt that has ended, and that trained on so many images."""
        for phase, seconds in phase_seconds.items():
            self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + seconds
        training = sum(phase_seconds.values()) - phase_seconds.get("eval", 0.0)
        if images and training > 0:
            self.images_per_second = round(images / training, 2)
