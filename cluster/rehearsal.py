"""`--dry-run`: what a run is going to be, and how long its steps take. Nothing of it is kept."""

from typing import Any

import ray

from alexnet.archive import open_archive
from alexnet.data.shards import ShardSet
from alexnet.errors import AlexnetError
from cluster.config import JobConfig
from cluster.connection import connected
from cluster.dataset import prepared_data
from cluster.fit import fitted, reserve_little
from cluster.plan import Plan, plan_workers
from cluster.preview import preview
from cluster.rendezvous import Rendezvous
from cluster.run_directory import RunDirectory
from cluster.screen import Screen
from cluster.stop import Stop
from cluster.worker import RankFailure
from cluster.worker_group import WorkerGroup


def rehearse(config: JobConfig, screen: Screen, stop: Stop, fit_memory: bool) -> None:
    """Show what a run is going to be, and what a few steps of it take on the ranks it would have.

    Raises:
        AlexnetError: in one line, with its exit code, what would be in its way.
    """
    config = config.with_absolute_paths()
    RunDirectory(config.run_path)
    dataset = prepared_data(config, screen, stop)
    if fit_memory:
        reserve_little()
    with connected(config, screen, stop):
        plan = plan_workers(config, ray.cluster_resources())
        with WorkerGroup(config, plan, stop, lambda: plan) as group:
            _rehearse(config, dataset, plan, group, screen, fit_memory)


def _rehearse(
    config: JobConfig,
    dataset: ShardSet,
    plan: Plan,
    group: WorkerGroup,
    screen: Screen,
    fit_memory: bool,
) -> None:
    if fit_memory:
        config, words = fitted(config, dataset, plan.workers, group.room(), None)
        screen.say(words)
    archive = open_archive(config.run_path, config.checkpoint.path)
    found = preview(config, dataset, plan, archive)
    screen.preview(found)
    with Rendezvous(group.meeting_address, group.slots) as rendezvous:
        told: list[Any] = ray.get(group.rehearse(config, rendezvous))
    for failure in told:
        if isinstance(failure, RankFailure):
            raise failure.error or AlexnetError(failure.message)
    screen.expect(max(told), found.total_steps)
