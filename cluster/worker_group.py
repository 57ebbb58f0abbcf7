"""Ray: a group of worker processes, one a rank, that starts and ends as a whole."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from alexnet.archive import Desk
from alexnet.memory import Memory, least
from cluster.board import Status
from cluster.config import JobConfig
from cluster.errors import AttemptFailedError, NoResourcesError, ReplanError, one_line
from cluster.nodes import only_in_reach
from cluster.plan import LESS, Plan, amounts
from cluster.rendezvous import Rendezvous, assign_ranks
from cluster.stop import Stop
from cluster.worker import Place, Worker

LOOPBACK = "127.0.0.1"
LOOK_SECONDS = 0.5
ANSWER_SECONDS = 10.0  # of a process that lives
POLL_SECONDS = 0.25
ROOM_SECONDS = 1  # Ray takes whole ones


class WorkerGroup:
    """`workers` processes in a placement group. Leaving the context ends every one of them.

    It may hold a second process for each rank, which has done its imports and waits. After a
    fault these take over, so that nothing of a process that has failed is used again.
    """

    def __init__(
        self, config: JobConfig, plan: Plan, stop: Stop, replan: Callable[[], Plan]
    ) -> None:
        """Reserve the resources; processes start on entering.

        Unless `stop` is wanted before, or `replan` comes to another plan.
        """
        self._config = config
        self._plan = plan
        self._stop = stop
        self._replan = replan
        self._timeout = config.cluster.start_timeout
        self._looks: dict[int, Any] = {}  # references, by rank, that have not been answered yet
        self._workers: list[Any] = []  # by rank, as the next three
        self._bundles: list[int] = []
        self._standbys: list[Any] = []
        self._warm: list[Any] = []  # references, ready once the standby is
        self._reserved = placement_group(
            [plan.bundle] * plan.workers,
            strategy="PACK",
            bundle_label_selector=[only_in_reach()] * plan.workers,
        )

    def __enter__(self) -> "WorkerGroup":
        try:
            self._start()
        except BaseException as error:
            self._end()
            if isinstance(error, RayError):
                raise AttemptFailedError(f"workers did not start: {one_line(error)}") from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def meeting_address(self) -> str:
        """Where the driver must listen for all ranks to reach it."""
        return LOOPBACK if self._on_one_node else ray.util.get_node_ip_address()

    def room(self) -> Memory:
        """Return the memory that any rank may come to use: the least of all."""
        asked = [
            worker.room.remote(slot.local_size)
            for worker, slot in zip(self._workers, self.slots, strict=True)
        ]
        try:
            rooms: list[Memory] = ray.get(asked, timeout=self._timeout)
        except RayError as error:
            raise AttemptFailedError(f"a worker told no memory: {one_line(error)}") from error
        return least(rooms)

    def train(
        self, config: JobConfig, rendezvous: Rendezvous, desk: Desk, network: bytes | None
    ) -> list[Any]:
        """Start training on every rank; return a Ray reference a rank, in order."""
        return [
            worker.train.remote(config, rank, environment, desk, network)
            for rank, worker, environment in self._ranks(config, rendezvous)
        ]

    def rehearse(self, config: JobConfig, rendezvous: Rendezvous) -> list[Any]:
        """Have every rank take a few steps; return a Ray reference a rank, in order."""
        return [
            worker.rehearse.remote(config, rank, environment)
            for rank, worker, environment in self._ranks(config, rendezvous)
        ]

    def _ranks(
        self, config: JobConfig, rendezvous: Rendezvous
    ) -> Iterator[tuple[int, Any, dict[str, str]]]:
        """Each rank, its process, and the variables that it needs."""
        timeout = config.cluster.collective_timeout
        for worker, slot, place in zip(self._workers, self.slots, self._places, strict=True):
            interface = "lo" if self._on_one_node else place.interface
            environment = rendezvous.environment(slot, interface, timeout)
            # Said by us: Ray hides no GPU from a process that asked for none, as standbys do.
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(place.gpus)
            yield slot.rank, worker, environment

    @property
    def _on_one_node(self) -> bool:
        return {place.address for place in self._places} == {ray.util.get_node_ip_address()}

    def look(self, wall_seconds: dict[str, float]) -> dict[int, Status]:
        """Return the status, by rank, of those that have answered.

        A rank is asked again once it has answered: nothing that it says is lost, and one that does
        not answer keeps nobody waiting. `wall_seconds` is for their metrics.
        """
        for rank, worker in enumerate(self._workers):
            if rank not in self._looks:
                self._looks[rank] = worker.look.remote(wall_seconds)
        asked = [*self._looks.values()]
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=LOOK_SECONDS)
        answered = [rank for rank, reference in self._looks.items() if reference in ready]
        statuses = {}
        for rank in answered:
            with suppress(RayError):  # a dead rank's own end says more
                statuses[rank] = ray.get(self._looks.pop(rank))
        return statuses

    def stop(self) -> None:
        """Ask every rank for a checkpoint and an end."""
        for worker in self._workers:
            worker.stop.remote()

    def prepare_standbys(self) -> None:
        """Start a process for each rank that may take its place."""
        self._standbys = [self._worker(bundle, is_standby=True) for bundle in self._bundles]
        self._warm = [standby.warm_up.remote() for standby in self._standbys]

    @property
    def standbys_ready(self) -> bool:
        """Whether each rank has a process that may take its place at once."""
        return len(_ready(self._warm)) == len(self._workers)

    def take_over(self, plan: Plan) -> bool:
        """End the processes that have trained and let the standbys be the ranks.

        Those still at their imports will do: they are ahead of new ones.

        Returns:
            False, and nothing has changed, unless each rank of `plan` has a standby that lives.
        """
        if plan != self._plan or not self._standbys:
            return False
        try:
            ray.get(_ready(self._warm))
            ray.get([each.place.remote() for each in self._standbys], timeout=ANSWER_SECONDS)
        except RayError:
            return False
        _kill(self._workers)
        self._looks = {}
        self._workers, self._standbys, self._warm = self._standbys, [], []
        return True

    def _start(self) -> None:
        self._await_room()
        bundles = range(self._plan.workers)
        self._workers = [self._worker(bundle) for bundle in bundles]
        places = self._await_places()
        # Node by node, so that ranks are numbered as Horovod expects.
        ordered = sorted(bundles, key=lambda bundle: places[bundle].address)
        self._places: list[Place] = [places[bundle] for bundle in ordered]
        self._workers = [self._workers[bundle] for bundle in ordered]
        self._bundles = ordered
        self.slots = assign_ranks(Counter(place.address for place in self._places))

    def _await_room(self) -> None:
        deadline = time.monotonic() + self._timeout
        while not self._reserved.wait(ROOM_SECONDS):
            self._stop.check()
            if self._replan() != self._plan:
                raise ReplanError(f"no room for {self._plan} any more")
            if time.monotonic() > deadline:
                raise NoResourcesError(
                    f"not enough resources: {self._plan} asked for, the cluster has "
                    f"{amounts(ray.cluster_resources())}; waited {self._timeout:.0f} s; {LESS}"
                )

    def _await_places(self) -> list[Place]:
        asked = [worker.place.remote() for worker in self._workers]
        deadline = time.monotonic() + self._timeout
        while ray.wait(asked, num_returns=len(asked), timeout=POLL_SECONDS)[1]:
            self._stop.check()
            if time.monotonic() > deadline:
                raise AttemptFailedError(f"{self._plan} did not start within {self._timeout:.0f} s")
        places: list[Place] = ray.get(asked, timeout=self._timeout)
        return places

    def _worker(self, bundle: int, is_standby: bool = False) -> Any:
        """Start a process. A standby is given what its rank has, once it takes that one's place."""
        strategy = PlacementGroupSchedulingStrategy(self._reserved, bundle)
        actor = ray.remote(max_restarts=0, concurrency_groups={"control": 2})(Worker)
        return actor.options(
            num_cpus=0 if is_standby else self._plan.cpus_per_worker,
            num_gpus=0 if is_standby else self._plan.gpus_per_worker,
            scheduling_strategy=strategy,
        ).remote()

    def _end(self) -> None:
        try:
            _kill([*self._workers, *self._standbys])
        finally:
            with suppress(RayError):
                remove_placement_group(self._reserved)


def _ready(references: list[Any]) -> list[Any]:
    """Return those whose method has returned, or failed."""
    if not references:
        return []
    ready: list[Any] = ray.wait(references, num_returns=len(references), timeout=0)[0]
    return ready


def _kill(workers: list[Any]) -> None:
    for worker in workers:
        with suppress(RayError):
            ray.kill(worker, no_restart=True)
