"""Faults of nodes: lost, asked to leave, cut off from the others, added and taken away."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil

from alexnet.records import EVENTS, read_records
from benchmarks.faults.matrix import Figures, fault, half_way, mends_itself, runs_again
from benchmarks.faults.networks import joined, plug, pull
from benchmarks.faults.processes import Missed, await_ends, is_alive, marked
from benchmarks.faults.runs import EVERY, Launch, Site
from tests.clusters import HERE, Host, RayCluster, ray_cluster, ray_node

GRACE_SECONDS = 30.0
AUTO = ("cluster.workers=auto", "cluster.max_workers=3")
NEAR = Host(address="10.77.0.2", namespace="chaos-near")
FAR = Host(address="10.77.0.1", namespace="chaos-far")  # the lower address has rank 0
LOOKS = {  # how a head finds out within 15 s that a node does not answer; by default a minute
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}


@fault("kill-raylet", bound=300, detected=15, replayed=EVERY)
def kill_raylet(site: Site) -> Figures:
    """kill -9 of the raylet of one of two nodes: goes on, smaller, with the node that is left."""
    with _two_nodes(site) as raylet:
        launch, ranks = half_way(site, *AUTO)
        lost = _on(raylet, ranks)
        hit = time.monotonic()
        raylet.kill()
        figures = mends_itself(site, launch, hit, ranks, lost)
    _expect_size(site, 2)
    figures.result = "same model, by itself, on 2 ranks of 3"
    return figures


@fault("stop-raylet", bound=300, stopped=GRACE_SECONDS, replayed=EVERY)
def stop_raylet(site: Site) -> Figures:
    """SIGTERM to a node's raylet, as when the node is drained: 75, or goes on with the others."""
    with _two_nodes(site) as raylet:
        launch, ranks = half_way(site, *AUTO)
        lost = _on(raylet, ranks)
        hit = time.monotonic()
        raylet.terminate()
        ends = await_ends(ranks.values(), timeout=120)
        if launch.goes_on():
            figures = mends_itself(site, launch, hit, ranks, lost)
        else:
            launch.expect(75)
            figures = runs_again(site, launch, *AUTO)
            figures.stopped = round(max(ends.values()) - hit, 2)
    _expect_size(site, 2)
    figures.result += " on 2 ranks of 3"
    return figures


@contextmanager
def _cluster(site: Site, cpus: int, host: Host = HERE, **variables: str) -> Iterator[RayCluster]:
    """A cluster that the site's launches join, and whose ranks have what is to go wrong."""
    path = site.environment["PYTHONPATH"]
    with ray_cluster(cpus, site.folder, host, PYTHONPATH=path, **variables) as cluster:
        site.join(cluster, host)
        yield cluster


@contextmanager
def _two_nodes(site: Site) -> Iterator[psutil.Process]:
    """A cluster of a node for two ranks and one for another; yields the raylet of that."""
    with _cluster(site, 2) as cluster, ray_node(cluster, 1, site.folder) as raylet:
        yield raylet


def _on(raylet: psutil.Process, ranks: dict[int, psutil.Process]) -> int:
    """Return the one rank of three that is on the raylet's node."""
    found = {rank for rank, process in ranks.items() if process.ppid() == raylet.pid}
    if len(ranks) != 3 or len(found) != 1:
        raise Missed(f"ranks {sorted(ranks)}, of which on the second node {sorted(found)}")
    return found.pop()


def _expect_size(site: Site, size: int) -> None:
    if (was := site.summary["world_size"]) != size:
        raise Missed(f"ended with {was} ranks, not {size}")


@fault("network-cut", bound=400, detected=15, replayed=EVERY)
def network_cut(site: Site) -> Figures:
    """The node of rank 0 is cut off, and comes back: a checkpoint it still writes is refused."""
    site.break_ranks("hold-write", step=2 * EVERY)  # of rank 0, when the cable is pulled
    with (
        joined(NEAR, FAR),
        _cluster(site, 1, NEAR, **LOOKS) as cluster,
        ray_node(cluster, 1, site.folder, FAR) as raylet,
    ):
        launch = site.launch("cluster.workers=auto")
        site.await_fault(launch)
        ranks = site.ranks()
        if len(ranks) != 2 or ranks[0].ppid() != raylet.pid:
            raise Missed(f"ranks {sorted(ranks)}, and rank 0 is not on the far side")
        hit = time.monotonic()
        pull(FAR)
        figures = _mends_without(site, launch, hit, ranks)
        plug(FAR)
        left = [process for process in marked(site.folder) if process.ppid() == raylet.pid]
        await_ends([ranks[0], *left], timeout=60)
        launch.expect(0)
    site.check_model()
    _expect_size(site, 1)
    figures.goodput = site.summary["goodput_ratio"]
    return figures


def _mends_without(
    site: Site, launch: Launch, hit: float, ranks: dict[int, psutil.Process]
) -> Figures:
    """Follow a launch until it goes on without rank 0, and have that try to commit."""
    reached = max(step for _, step in launch.steps())
    said = launch.await_line("starting again", after=hit)
    again = launch.await_step(1, after=said)
    first = min(step for _, step in launch.steps(after=said))
    if not is_alive(ranks[0]):
        raise Missed("the rank that was cut off has ended: nothing was left to be refused")
    site.let_go()
    if (came := site.await_word("wrote", launch)) != "nothing":
        raise Missed(f"TORN RUN: the rank that was cut off has {came}")
    return Figures(
        detected=round(said - hit, 2),
        restored=round(again - hit, 2),
        replayed=max(0, reached - first + 1),
        result="old rank 0's checkpoint refused; same model, by itself, on 1 rank of 2",
    )


@fault("nodes-come-and-go", bound=700)
def nodes_come_and_go(site: Site) -> Figures:
    """Nodes for 2, 3, 1 and again 2 ranks within one launch."""
    site.break_ranks("dawdle", seconds=15)  # until the last node has come
    with _cluster(site, 1) as cluster, ExitStack() as nodes:
        added = [_add(nodes, cluster, site)]
        # Ranks dawdle twice before their first step is told, and three of them start on few cores.
        launch = site.launch(*AUTO, "cluster.grow_after=1", "cluster.stall_timeout=90")
        _await_ranks(launch, 2, 0.0)
        added.append(_add(nodes, cluster, site))
        grown = launch.await_line("room for")
        lost = _await_ranks(launch, 3, grown)
        for raylet in added:
            raylet.kill()
        shrunk = _await_ranks(launch, 1, lost)
        _add(nodes, cluster, site)
        grown = launch.await_line("room for", after=shrunk)
        _await_ranks(launch, 2, grown)
        site.let_go()
        launch.expect(0)
    site.check_model()
    _expect_size(site, 2)
    lost = [event for event in read_records(site.run / EVENTS) if event["kind"] == "lost"]
    if not all("its process died" in event["reason"] for event in lost):
        raise Missed(f"growing has cost an attempt: {lost}")
    return Figures(
        goodput=site.summary["goodput_ratio"], result="same model, by itself, on 2, 3, 1, 2 ranks"
    )


def _add(nodes: ExitStack, cluster: RayCluster, site: Site) -> psutil.Process:
    return nodes.enter_context(ray_node(cluster, 1, site.folder))


def _await_ranks(launch: Launch, count: int, after: float) -> float:
    """Return when that many ranks, started since `after`, have taken a step."""
    return launch.await_step(1, after=launch.await_line(f": {count} Horovod workers", after))
