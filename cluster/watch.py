"""One attempt under watch: progress is relayed, a stop passed on, the end of a rank noticed."""

import math
import signal
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import FrameType
from typing import Any, cast

import ray
from ray.exceptions import RayError

from alexnet.errors import AlexnetError
from cluster.board import RankResult
from cluster.config import JobConfig
from cluster.screen import Screen
from cluster.workers import RankFailure, WorkerGroup

POLL_SECONDS = 0.25
PEER_GRACE_SECONDS = 2.0


class AttemptFailedError(AlexnetError):
    """The group was lost, for a reason that may be gone when it is started again."""


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


class Stop:
    """Turns SIGTERM and the first Ctrl-C into a wish, and the second Ctrl-C into an end."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
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


class Watch:
    """Looks after one attempt: relays progress, passes on a stop, notices its end."""

    def __init__(
        self, config: JobConfig, group: WorkerGroup, stop: Stop, screen: Screen, history: History
    ) -> None:
        self._config = config
        self._group = group
        self._stop = stop
        self._screen = screen
        self._history = history
        self._deadline = math.inf
        self._phase_seconds: dict[str, float] = {}
        self._progress_at = {slot.rank: time.monotonic() for slot in group.slots}

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
                self._refuse_standstill()
                self._pass_on_stop()
        except AttemptFailedError:
            self._history.add(self._phase_seconds)
            raise
        if len({cast(RankResult, result).weights_sha256 for result in results.values()}) > 1:
            raise AlexnetError("the ranks ended with different weights: do not use this model")
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
        for rank, status in self._group.look().items():
            self._progress_at[rank] = time.monotonic() - status.idle_seconds
            for record in status.records:
                self._history.furthest = max(self._history.furthest, record["step"])
                self._phase_seconds = record.get("phase_seconds", self._phase_seconds)
                self._screen.record(record)

    def _refuse_standstill(self) -> None:
        limit = self._config.cluster.stall_timeout
        rank, progress_at = min(self._progress_at.items(), key=lambda entry: entry[1])
        if time.monotonic() - progress_at > limit:
            raise AttemptFailedError(f"rank {rank}: no progress for {limit:.0f} s")

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
