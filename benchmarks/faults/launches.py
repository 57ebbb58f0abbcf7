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
    runs_again,
    stops_in_time,
)
from benchmarks.faults.processes import Missed, await_ends, marked, named
from benchmarks.faults.runs import EVERY, ROOT, WORK, Site

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
    launch, _ = half_way(site)
    return stops_in_time(site, launch, launch.driver)


@fault("interrupt-driver", stopped=GRACE_SECONDS, replayed=1)
def interrupt_driver(site: Site) -> Figures:
    """Ctrl-C, as a terminal sends it to the driver."""
    launch, _ = half_way(site)
    return stops_in_time(site, launch, launch.driver, signal.SIGINT)


@fault("stop-rank", stopped=GRACE_SECONDS, replayed=1)
def stop_rank(site: Site) -> Figures:
    """SIGTERM to a rank, as to a pod of its own: all ranks stop at the same step, and 75."""
    launch, ranks = half_way(site)
    return stops_in_time(site, launch, ranks[1])


@fault("two-jobs")
def two_jobs(site: Site) -> Figures:
    """A second job on a run, which asks to replace it: refused, and the first undisturbed."""
    site.break_ranks("dawdle", seconds=3)  # until the second has got that far
    launch, _ = half_way(site)
    hit = time.monotonic()
    rival = site.launch("--replace")
    rival.expect(2)
    if "in use by another job" not in str(rival):
        raise Missed(f"no clear reason: {rival}")
    if launch.driver.poll() is not None:
        raise Missed("the first job had ended before the second was refused")
    detected = round(time.monotonic() - hit, 2)
    site.let_go()
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
    site.break_ranks("dawdle", seconds=2)  # not all steps are taken before Ray ends the driver
    launch, _ = half_way(site)
    hit = time.monotonic()
    named(site.folder, "gcs_server").kill()
    code = launch.end()
    stopped = round(time.monotonic() - hit, 2)
    if code == 0:
        figures = goes_on(site, launch)
        figures.stopped = stopped
        return figures
    await_ends(marked(site.folder), timeout=GRACE_SECONDS)
    said = launch.output
    if code != 1 or "connect to GCS" not in said:
        raise Missed(f"no clear stop: exit code {code}, last words {str(launch)!r}")
    site.let_go()
    figures = runs_again(site, launch)
    figures.stopped, figures.result = stopped, "clear stop; same model, run again"
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
