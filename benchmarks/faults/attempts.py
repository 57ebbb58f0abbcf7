"""Faults of ranks: killed, frozen, asleep, slow, crashing, or no longer right."""

import re
import threading
import time
from contextlib import suppress

import psutil

from benchmarks.faults.matrix import Figures, fault, goes_on, half_way, mends_itself, runs_again
from benchmarks.faults.processes import Missed
from benchmarks.faults.runs import EVERY, STALL_SECONDS, Site

STUCK = STALL_SECONDS + 2.0
SLICE_SECONDS = 0.25


def _killed(site: Site, rank: int) -> Figures:
    launch, ranks = half_way(site)
    time.sleep(0.1)  # into the next step
    hit = time.monotonic()
    ranks[rank].kill()
    return mends_itself(site, launch, hit, ranks, lost=rank)


@fault("kill-rank", detected=1.0, of_cold=1.0, replayed=EVERY)
def kill_rank(site: Site) -> Figures:
    """kill -9 of a rank that is not rank 0, in mid-step."""
    return _killed(site, 1)


@fault("kill-rank-0", detected=1.0, of_cold=1.0, replayed=EVERY)
def kill_rank_0(site: Site) -> Figures:
    """kill -9 of rank 0, in mid-step."""
    return _killed(site, 0)


@fault("warm-restart", detected=1.0, of_cold=0.5, replayed=EVERY)
def warm_restart(site: Site) -> Figures:
    """kill -9 of a rank while warm processes stand by: half of a cold start is the bound."""
    seconds = 2.0
    site.break_ranks("dawdle", seconds=seconds)
    launch, ranks = half_way(site, "cluster.standby_after=0")
    launch.await_line("standby ready")
    site.let_go()
    hit = time.monotonic()
    ranks[1].kill()
    # A step is told once the next one has been launched, so the first of them waited twice.
    return mends_itself(site, launch, hit, ranks, lost=1, dawdled=2 * seconds)


@fault("freeze-rank", detected=STUCK, replayed=EVERY)
def freeze_rank(site: Site) -> Figures:
    """SIGSTOP of a rank, for ever."""
    launch, ranks = half_way(site)
    hit = time.monotonic()
    ranks[1].suspend()
    return mends_itself(site, launch, hit, ranks, lost=1)


@fault("sleeping-rank", detected=STUCK, replayed=EVERY)
def sleeping_rank(site: Site) -> Figures:
    """A rank that sleeps for ever in a step, while its process answers."""
    site.break_ranks("sleep", rank=1, step=EVERY + 2)
    launch = site.launch()
    hit = site.await_fault(launch)
    return mends_itself(site, launch, hit, site.ranks(), lost=None)


@fault("slow-rank", bound=300)
def slow_rank(site: Site) -> Figures:
    """A rank that has its core a fifth of the time: named, and not restarted."""
    launch = site.launch()
    launch.await_step(1)
    end = threading.Event()
    hit = time.monotonic()
    throttle = threading.Thread(target=_throttle, args=(site.ranks()[1], end))
    throttle.start()
    try:
        named = launch.await_line("rank 1 is slow")
    finally:
        end.set()
        throttle.join()
    figures = goes_on(site, launch, "same model; named, not restarted")
    figures.detected = round(named - hit, 2)
    return figures


def _throttle(process: psutil.Process, end: threading.Event) -> None:
    """Let a process run one slice in five."""
    with suppress(psutil.NoSuchProcess):
        while not end.is_set():
            process.suspend()
            end.wait(4 * SLICE_SECONDS)
            process.resume()
            end.wait(SLICE_SECONDS)


@fault("crash-at-start", stopped=120)
def crash_at_start(site: Site) -> Figures:
    """Ranks that die as soon as they begin, every time: a clear stop after a few attempts."""
    site.break_ranks("crash")
    launch = site.launch()
    launch.expect(1)
    attempts = len(re.findall(r"Horovod workers", launch.output))
    if "its process died" not in str(launch):
        raise Missed(f"no clear reason: {launch}")
    stopped = round(time.monotonic() - launch.started, 2)
    return Figures(stopped=stopped, result=f"clear stop after {attempts} attempts")


@fault("poisoned-batch", replayed=EVERY)
def poisoned_batch(site: Site) -> Figures:
    """Pixels that are not numbers, on one rank: a stop by policy before they reach a checkpoint."""
    site.break_ranks("poison", rank=1, step=EVERY + 2)
    launch = site.launch()
    hit = site.await_fault(launch)
    launch.expect(1)
    stopped = round(time.monotonic() - hit, 2)
    if "not finite" not in str(launch):
        raise Missed(f"no clear reason: {launch}")
    figures = runs_again(site, launch)
    figures.stopped, figures.result = stopped, "clear stop; same model, run again"
    return figures


@fault("perturbed-replica", replayed=EVERY)
def perturbed_replica(site: Site) -> Figures:
    """One weight of one replica off by its lowest bits: a stop at the next comparison."""
    site.break_ranks("perturb", rank=1, step=EVERY + 1)
    launch = site.launch()
    hit = site.await_fault(launch)
    launch.expect(1)
    stopped = round(time.monotonic() - hit, 2)
    if "is not that of the others" not in str(launch):
        raise Missed(f"no clear reason: {launch}")
    figures = runs_again(site, launch)
    figures.stopped, figures.result = stopped, "clear stop; same model, run again"
    return figures
