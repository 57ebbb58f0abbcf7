"""The driver: one run from launch to summary, whatever happens to its ranks."""

from contextlib import ExitStack, suppress
from typing import Any

import ray

from alexnet.archive import Archive, open_archive
from alexnet.data.shards import ShardSet
from alexnet.errors import AlexnetError, ConfigError
from alexnet.memory import Memory
from alexnet.records import REPORT
from alexnet.report.page import write_report
from cluster import summary
from cluster.board import RankResult
from cluster.config import JobConfig
from cluster.connection import connected
from cluster.dataset import prepared_data
from cluster.environment import environment
from cluster.errors import (
    AttemptFailedError,
    NoResourcesError,
    ReplanError,
    StoppedError,
    one_line,
)
from cluster.fit import fitted, reserve_little, with_micro_batch
from cluster.growth import Growth
from cluster.history import History
from cluster.lease import Lease
from cluster.nodes import resources_in_reach
from cluster.plan import Plan, plan_workers
from cluster.preview import preview
from cluster.rendezvous import Rendezvous
from cluster.run_directory import RunDirectory
from cluster.screen import Screen
from cluster.stop import Stop
from cluster.watch import Watch
from cluster.worker_group import WorkerGroup


def run_job(
    config: JobConfig,
    replace: bool,
    screen: Screen,
    stop: Stop,
    fit_memory: bool = False,
    network: bytes | None = None,
) -> dict[str, Any]:
    """Train as configured, in the run directory, and return what `summary.json` says.

    A run directory with checkpoints is gone on with; `replace` starts it from nothing instead.
    With `fit_memory` the micro-batch is the largest that the ranks have memory for. `network`, a
    function as `pack` returns it, builds the model in the place of one of ours.

    Raises:
        AlexnetError: in one line, with its exit code, why there is no trained model.
    """
    if config.model.name == "own" and network is None:
        raise ConfigError("model.name = 'own': needs a network, which cluster.launch is given")
    config = config.with_absolute_paths()
    if isinstance(config.cluster.workers, int):
        config.check_workers(config.cluster.workers)
    history = History()
    directory = RunDirectory(config.run_path)
    dataset = prepared_data(config, screen, stop)
    if fit_memory:
        reserve_little()
    with connected(config, screen, stop):
        archive = open_archive(config.run_path, config.checkpoint.path)
        with Lease(config.run_path, archive) as lease:
            return Job(
                config,
                dataset,
                replace,
                directory,
                archive,
                lease,
                history,
                stop,
                screen,
                fit_memory,
                network,
            ).run()


class Job:
    """One launch of a run that it holds the lease of."""

    def __init__(
        self,
        config: JobConfig,
        dataset: ShardSet,
        replace: bool,
        directory: RunDirectory,
        archive: Archive,
        lease: Lease,
        history: History,
        stop: Stop,
        screen: Screen,
        fit_memory: bool,
        network: bytes | None,
    ) -> None:
        self._config = config
        self._dataset = dataset
        self._fits = fit_memory  # the micro-batch is still to be fitted to the memory
        self._network = network
        self._replace = replace
        self._directory = directory
        self._archive = archive
        self._lease = lease
        self._history = history
        self._stop = stop
        self._screen = screen
        self._trains = False
        self._group: WorkerGroup | None = None  # of the attempt before
        self._groups = ExitStack()  # ends it
        self._gpus: int | None = None  # of a rank, once there has been room
        self._had: int | None = None  # ranks of the last group that there was room for
        self._most: int | None = None  # for the next one: what else the cluster has may be others'

    def run(self) -> dict[str, Any]:
        """Train, and leave a summary and a report."""
        self._directory.tell("launch", 0, environment=environment(ray.cluster_resources()))
        try:
            with self._groups:
                outcome = self._outcome()
            self._lease.check()
        except BaseException as error:
            self._failed(error)
            raise
        self._directory.end(outcome)
        self._report()
        return outcome

    def _outcome(self) -> dict[str, Any]:
        history = self._history
        try:
            result = self._until_done()
        except StoppedError as error:
            if not self._trains:
                raise
            return self._stopped(error)
        history.skipped_steps = self._directory.skipped_steps()
        return summary.ended(self._config, history, result, self._directory.before)

    def _until_done(self) -> RankResult:
        """Start the group, again where it is lost, until it has trained or been stopped.

        Two attempts in a row that get no further than the ones before are enough: it is no
        accident.
        """
        history, limits, failures, barren = self._history, self._config.cluster, 0, 0
        while True:
            before = history.furthest
            try:
                return self._attempt()
            except ReplanError as change:
                self._screen.say(str(change))
                self._directory.tell("growth", history.furthest, reason=str(change))
                self._most = change.most or self._most
                continue
            except AttemptFailedError as failure:
                self._directory.tell("lost", history.furthest, reason=str(failure))
                if self._stop.wanted:
                    raise StoppedError(str(failure)) from failure
                if isinstance(failure, NoResourcesError) and self._gpus is None:
                    raise
                if isinstance(failure, NoResourcesError):
                    self._most = self._had  # what it was to grow into has gone
                failures += 1
                barren = barren + 1 if history.furthest == before else 0
                if failures > limits.max_restarts or barren == 2:
                    raise AttemptFailedError(str(failure)) from failure
                self._screen.say(f"{failure}; starting again from the newest checkpoint")
            if barren:
                self._stop.sleep(limits.restart_delay)
            history.ledger.close("idle")

    def _attempt(self) -> RankResult:
        """Start a group as large as there is room for now, and follow it to its end."""
        saved = self._saved_micro_batch()
        history, plan = self._history, self._next_plan()
        history.workers = plan.workers
        self._screen.start(self._config, plan)
        facts = {"workers": plan.workers, "gpus_per_worker": plan.gpus_per_worker}
        self._directory.tell("attempt", history.furthest, **facts)
        group = self._started(plan)
        if self._fits:
            self._fit(plan.workers, group.room(), saved)
        config = self._config
        if not history.attempts:
            self._screen.preview(preview(config, self._dataset, plan, self._archive))
        history.attempts += 1
        self._gpus = plan.gpus_per_worker
        self._had = self._most = plan.workers
        if self._replace:
            self._directory.clear()
            self._archive.clear()
            self._replace = False
        desk = self._lease.next_desk()
        growth = Growth(plan, self._larger_plan, config.cluster.grow_after)
        with Rendezvous(group.meeting_address, group.slots) as rendezvous:
            watch = Watch(
                config, group, self._lease, self._stop, self._screen, history, self._begin, growth
            )
            return watch.until_done(group.train(config, rendezvous, desk, self._network))

    def _saved_micro_batch(self) -> int | None:
        """Return that of the checkpoint to go on from, for a run whose own is to be fitted."""
        saved = self._archive.newest() if self._fits and not self._replace else None
        if saved is None:
            return None
        images: int = saved.facts["order"]["micro_batch"]
        self._config = with_micro_batch(self._config, images)
        return images

    def _fit(self, ranks: int, room: Memory, saved: int | None) -> None:
        """Settle the micro-batch of this and all later attempts."""
        self._config, words = fitted(self._config, self._dataset, ranks, room, saved)
        self._fits = False
        self._screen.say(words)

    def _started(self, plan: Plan) -> WorkerGroup:
        """Return a group that waits for work: the one before, if its standbys can take over."""
        if self._group is None or not self._group.take_over(plan):
            self._groups.close()
            self._group = None
            group = WorkerGroup(self._config, plan, self._stop, self._next_plan)
            self._group = self._groups.enter_context(group)
        return self._group

    def _next_plan(self) -> Plan:
        """Of nodes that answer: one that was lost just now may still count for Ray."""
        return plan_workers(self._config, resources_in_reach(), self._gpus, self._most)

    def _larger_plan(self) -> Plan:
        return plan_workers(self._config, ray.cluster_resources(), self._gpus)

    def _begin(self, step: int) -> None:
        if not self._trains:
            self._directory.begin(self._config)
        self._trains = True
        self._directory.tell("training", step)

    def _stopped(self, error: StoppedError) -> dict[str, Any]:
        """Return the summary of a launch that was asked to end, and then lost its ranks."""
        saved = self._archive.newest()
        if saved is None:
            raise AlexnetError(f"stopped without a checkpoint: {error}") from error
        self._screen.say(f"{error}; the newest checkpoint is of step {saved.step}")
        self._history.skipped_steps = self._directory.skipped_steps(saved.step)
        return summary.stopped(self._config, self._history, saved.step)

    def _failed(self, error: BaseException) -> None:
        """Leave the summary of a failure; a launch that could not begin leaves all as it was."""
        not_begun = isinstance(
            error, ConfigError | NoResourcesError | StoppedError | KeyboardInterrupt
        )
        if self._lease.held and (self._trains or not not_begun):
            self._history.skipped_steps = self._directory.skipped_steps()
            reached = self._directory.before.get("steps", 0)
            self._history.furthest = max(self._history.furthest, reached)
            with suppress(OSError):  # the error itself says more
                self._directory.end(summary.failed(self._config, self._history, error))
            self._report()

    def _report(self) -> None:
        """Write it, if that is possible: a run does not end badly for its report."""
        try:
            write_report(self._config.run_path)
        except Exception as error:
            self._screen.say(f"no {REPORT}: {one_line(error)}")
