"""Faults of a launch as a whole: its driver, its Ray, its ports, its clock, and rivals."""

import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.faults.matrix import (
    Figures,
    Skipped,
    fault,
    goes_on,
    half_way,
    mends_itself,
    runs_again,
    until_gone,
)
from benchmarks.faults.processes import Missed, await_ends, marked, named
from benchmarks.faults.runs import EVERY, ROOT, WORK, Site
from tests.clusters import ray_cluster, ray_node

GRACE_SECONDS = 30.0
GCS_SECONDS = 240.0
AN_HOUR = 3600


@fault("kill-driver", stopped=30, replayed=EVERY)
def kill_driver(site: Site) -> Figures:
    """kill -9 of the driver: nobody is left after 30 s, and the rerun goes on."""
    launch, _ = half_way(site)
    everybody = marked(site.folder)
    hit = time.monotonic()
    launch.driver.kill()
    ends = await_ends(everybody, timeout=60)
    figures = runs_again(site, launch)
    figures.stopped = round(max(ends.values()) - hit, 2)
    return figures


@fault("stop-driver", stopped=GRACE_SECONDS, replayed=1)
def stop_driver(site: Site) -> Figures:
    """SIGTERM to the driver: a last checkpoint and 75 inside the grace time."""
    return _stopped(site, signal.SIGTERM)


@fault("interrupt-driver", stopped=GRACE_SECONDS, replayed=1)
def interrupt_driver(site: Site) -> Figures:
    """Ctrl-C, as a terminal sends it to the driver."""
    return _stopped(site, signal.SIGINT)


def _stopped(site: Site, number: signal.Signals) -> Figures:
    launch, _ = half_way(site)
    hit = time.monotonic()
    launch.driver.send_signal(number)
    launch.expect(75)
    stopped = until_gone(launch, hit)
    figures = runs_again(site, launch)
    figures.stopped = stopped
    return figures


@fault("two-jobs")
def two_jobs(site: Site) -> Figures:
    """A second job on a run, which asks to replace it: refused, and the first undisturbed."""
    launch, _ = half_way(site)
    hit = time.monotonic()
    rival = site.launch("--replace")
    rival.expect(2)
    if "in use by another job" not in str(rival):
        raise Missed(f"no clear reason: {rival}")
    if launch.driver.poll() is not None:
        raise Missed("the first job had ended before the second was refused")
    detected = round(time.monotonic() - hit, 2)
    figures = goes_on(site, launch, "rival refused with 2; same model, undisturbed")
    figures.detected = detected
    return figures


@fault("port-taken")
def port_taken(site: Site) -> Figures:
    """Somebody else listens where the ranks are to be scraped: it costs the figures."""
    with ExitStack() as stack:
        for port in (site.port, site.port + 1):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        figures = goes_on(site, site.launch())
    for log in (site.run / "logs").glob("rank-*.log"):
        if "no metrics: cannot listen" not in log.read_text():
            raise Missed(f"{log.name} does not say that there are no metrics")
    return figures


@fault("clock-back")
def clock_back(site: Site) -> Figures:
    """The wall clock goes back by an hour in every process of the launch, in mid-run."""
    flag = site.folder / "clock-back"
    site.environment |= {
        "LD_PRELOAD": str(compiled("clock")),
        "ALEXNET_CHAOS_CLOCK": f"{flag}:{AN_HOUR}",
    }
    launch, _ = half_way(site)
    flag.touch()
    figures = goes_on(site, launch)
    spent = sum(site.summary["wall_seconds"].values())
    took = time.monotonic() - launch.started
    if not 0 < spent < took:
        raise Missed(f"wall_seconds add up to {spent:.0f} s of {took:.0f} s")
    return figures


@fault("kill-gcs", bound=2 * GCS_SECONDS, stopped=GCS_SECONDS)
def kill_gcs(site: Site) -> Figures:
    """kill -9 of Ray's global control store: the run ends, either way, and the rerun completes."""
    launch, _ = half_way(site)
    hit = time.monotonic()
    named(site.folder, "gcs_server").kill()
    code = launch.end()
    stopped = round(time.monotonic() - hit, 2)
    if code == 0:
        figures = goes_on(site, launch)
        figures.stopped = stopped
        return figures
    await_ends(marked(site.folder), timeout=60)
    said = str(launch)
    if code != 1 or "Ray" not in said:
        raise Missed(f"no clear stop: exit code {code}, last words {said!r}")
    figures = runs_again(site, launch)
    figures.stopped, figures.result = stopped, "clear stop; same model, run again"
    return figures


@fault("kill-raylet", bound=300, detected=15, replayed=EVERY)
def kill_raylet(site: Site) -> Figures:
    """kill -9 of the raylet of one of two nodes: goes on, smaller, with the node that is left."""
    auto = ("cluster.workers=auto", "cluster.max_workers=3")
    with ray_cluster(2, site.folder) as cluster:
        site.environment |= {
            name: value for name, value in cluster.environment().items() if name.startswith("RAY_")
        }
        with ray_node(cluster, 1, site.folder) as raylet:
            launch, ranks = half_way(site, *auto)
            beyond = {rank for rank, process in ranks.items() if process.ppid() == raylet.pid}
            if len(ranks) != 3 or len(beyond) != 1:
                raise Missed(f"ranks {sorted(ranks)}, of which on the second node {sorted(beyond)}")
            hit = time.monotonic()
            raylet.kill()
            figures = mends_itself(site, launch, hit, ranks, lost=beyond.pop())
    if (size := site.summary["world_size"]) != 2:
        raise Missed(f"ended with {size} ranks, not 2")
    figures.result = "same model, by itself, on 2 ranks of 3"
    return figures


def compiled(name: str) -> Path:
    """Return the library made from NAME.c, to be loaded before all others."""
    source = ROOT / "benchmarks/faults" / f"{name}.c"
    library = WORK / f"{name}.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-o", str(library), str(source), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise Skipped("no gcc here") from None
    except subprocess.CalledProcessError as error:
        raise Missed(f"{source.name}: {error.stderr}") from None
    return library
