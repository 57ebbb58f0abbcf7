"""One attempt under watch: progress is relayed, a stop passed on, the end of a rank noticed."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import ray
from ray.exceptions import RayError

from alexnet.errors import AlexnetError, CheckpointError
from cluster.board import RankResult, Status
from cluster.config import JobConfig
from cluster.errors import AttemptFailedError, ReplanError, one_line
from cluster.growth import Growth
from cluster.history import History, Training
from cluster.lease import Lease
from cluster.plan import Plan
from cluster.screen import Screen
from cluster.stop import Stop
from cluster.stragglers import Stragglers
from cluster.worker import RankFailure
from cluster.worker_group import WorkerGroup

POLL_SECONDS = 0.25
PEER_GRACE_SECONDS = 2.0
BAD_ROWS_TOLD = 10  # on the screen; all are counted
SCORES = ("top1", "top5", "loss", "images")


class Watch:
    """Looks after one attempt: relays progress, passes on a stop, notices its end."""

    def __init__(
        self,
        config: JobConfig,
        group: WorkerGroup,
        lease: Lease,
        stop: Stop,
        screen: Screen,
        history: History,
        began: Callable[[int], None],
        growth: Growth,
    ) -> None:
        """Call `began` with the step that the ranks have restored, once they have."""
        self._config = config
        self._group = group
        self._lease = lease
        self._stop = stop
        self._screen = screen
        self._history = history
        self._began = began
        self._stepped_at = math.inf  # the first step of this attempt was seen
        self._standbys: Literal["none", "starting", "ready"] = "none"
        self._growth = growth
        self._larger: Plan | None = None
        self._deadline = math.inf
        self._first_step = 0
        self._step = 0
        self._training = Training(history.ledger, replay_until=history.furthest)
        self._stragglers = Stragglers()
        self._progress_at = {slot.rank: time.monotonic() for slot in group.slots}

    def until_done(self, running: list[Any]) -> RankResult:
        """Return rank 0's result, or raise for the first rank that failed."""
        try:
            results = self._follow(running)
        except BaseException:
            self._close(failed=True)
            raise
        if len({result.weights_sha256 for result in results}) > 1:
            raise AlexnetError("the ranks ended with different weights: do not use this model")
        result = results[0]
        self._account(result.step, result.phase_seconds)
        self._close(failed=False)
        if result.stopped and self._larger and not self._stop.wanted:
            larger = self._larger
            raise ReplanError(f"step {result.step}: going on as {larger}", larger.workers)
        return result

    def _follow(self, running: list[Any]) -> list[RankResult]:
        pending = list(running)
        results: dict[Any, RankResult | RankFailure] = {}
        while pending:
            done, pending = ray.wait(pending, timeout=POLL_SECONDS)
            for reference in done:
                results[reference] = self._result(reference, running.index(reference))
            if any(isinstance(result, RankFailure) for result in results.values()):
                self._fail(pending, results, running)
            self._relay()
            self._lease.check()
            self._refuse_standstill()
            self._pass_on_stop()
            self._keep_standbys()
            self._grow()
        return [cast(RankResult, results[reference]) for reference in running]

    def _close(self, failed: bool) -> None:
        images = (self._step - self._first_step) * self._config.train.global_batch
        self._training.end(failed)
        self._history.add(self._training.phase_seconds, images)

    def _result(self, reference: Any, rank: int) -> RankResult | RankFailure:
        try:
            result: RankResult | RankFailure = ray.get(reference, timeout=POLL_SECONDS)
        except RayError as error:
            message = f"rank {rank}: its process died: {one_line(error)}"
            return RankFailure(rank=rank, message=message, died=True)
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
        cause = cause_of(result for result in results.values() if isinstance(result, RankFailure))
        if self._larger and isinstance(cause.error, CheckpointError):
            larger = self._larger
            raise ReplanError(f"{cause.message}; going on as {larger}", larger.workers)
        if cause.error:
            raise cause.error
        raise AttemptFailedError(cause.message)

    def _relay(self) -> None:
        statuses = self._group.look(self._history.ledger.seconds)
        for rank, status in statuses.items():
            self._progress_at[rank] = time.monotonic() - status.idle_seconds
            if rank == 0 and status.step is not None:
                self._account(status.step, status.phase_seconds)
            self._relay_records(status)
        for name in self._stragglers.look(statuses, len(self._group.slots)):
            self._screen.say(name)
        if self._training.began:
            self._screen.at(self._step, self._training.phase_seconds, self._stragglers.slowest)

    def _relay_records(self, status: Status) -> None:
        for record in status.records:
            if record["kind"] == "evaluation":
                self._history.evaluation = {name: record[name] for name in SCORES}
            self._history.checkpoint_failures += record["kind"] == "checkpoint_failure"
            self._history.rows_skipped += record["kind"] == "bad_row"
            if record["kind"] != "bad_row" or self._history.rows_skipped <= BAD_ROWS_TOLD:
                self._screen.record(record)

    def _account(self, step: int, phase_seconds: dict[str, float]) -> None:
        if not self._training.began:
            self._first_step = step
            self._began(step)
        if step > self._first_step:
            self._stepped_at = min(self._stepped_at, time.monotonic())
        self._step = step
        self._training.at(step, phase_seconds)
        self._history.furthest = max(self._history.furthest, step)

    def _refuse_standstill(self) -> None:
        limit = self._config.cluster.stall_timeout
        rank, progress_at = min(self._progress_at.items(), key=lambda entry: entry[1])
        if time.monotonic() - progress_at > limit:
            raise AttemptFailedError(f"rank {rank}: no progress for {limit:.0f} s")

    def _pass_on_stop(self) -> None:
        if self._stop.wanted and math.isinf(self._deadline):
            self._screen.say("stopping: writing a last checkpoint")
            self._group.stop()
            self._deadline = time.monotonic() + self._config.cluster.stop_timeout
        if time.monotonic() > self._deadline:
            raise AttemptFailedError(
                f"no checkpoint within {self._config.cluster.stop_timeout:.0f} s of the stop"
            )

    def _keep_standbys(self) -> None:
        """Start them once training is under way, and tell when they are ready."""
        after = self._config.cluster.standby_after
        if after is None:
            return
        if self._standbys == "none" and time.monotonic() > self._stepped_at + after:
            self._standbys = "starting"
            self._group.prepare_standbys()
        if self._standbys == "starting" and self._group.standbys_ready:
            self._standbys = "ready"
            self._screen.say(f"standby ready: {len(self._group.slots)} warm processes")

    def _grow(self) -> None:
        """Have the ranks write a checkpoint and end, once there is room for more of them."""
        if self._larger or self._stop.wanted or not self._training.began:
            return
        self._larger = self._growth.look()
        if self._larger:
            self._screen.say(f"room for {self._larger}: writing a checkpoint to go on with them")
            self._group.stop()


def cause_of(failures: Iterable[RankFailure]) -> RankFailure:
    """Return the failure that the others follow from, as far as can be told."""

    def place(failure: RankFailure) -> tuple[bool, bool, bool, int]:
        return failure.error is None, not failure.died, failure.of_peers, failure.rank

    return min(failures, key=place)
