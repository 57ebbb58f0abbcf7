"""What a row of the matrix is: a fault, how long it may take, and the figures it must reach."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from signal import Signals
from subprocess import Popen
from typing import Any

import psutil

from benchmarks.faults.processes import Missed, await_ends, bounded, end_all, is_alive, marking
from benchmarks.faults.runs import EVERY, Launch, Reference, Site

ORPHAN_SECONDS = 30.0


class Skipped(Exception):  # noqa: N818 - no error
    """This machine does not allow the fault."""


@dataclass(kw_only=True)
class Figures:
    """What was measured in a row; seconds count from the fault. None: has no meaning there."""

    detected: float | None = None  # until the driver acted
    stopped: float | None = None  # until the last process of the broken attempt had gone
    restored: float | None = None  # until the next step
    of_cold: float | None = None  # the same, in times from the launch to its own first step
    replayed: int | None = None  # steps taken twice
    goodput: float | None = None  # of the last launch, by its summary
    result: str = ""


UNITS = {
    "detected": "s",
    "stopped": "s",
    "restored": "s",
    "of_cold": "ratio",
    "replayed": "steps",
    "goodput": "ratio",
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A row of the matrix."""

    name: str
    inject: Callable[[Site], Figures]
    bound: float  # seconds that it may take
    most: dict[str, float]  # of a figure


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a row went."""

    name: str
    status: str  # passed, failed or skipped
    reason: str  # in a line
    figures: Figures = field(default_factory=Figures)
    goals: dict[str, float] = field(default_factory=dict)


FAULTS: dict[str, Fault] = {}


def fault(
    name: str, bound: float = 180, **most: float
) -> Callable[[Callable[[Site], Figures]], Callable[[Site], Figures]]:
    """Register a row; `most` bounds its figures."""

    def register(inject: Callable[[Site], Figures]) -> Callable[[Site], Figures]:
        FAULTS[name] = Fault(name=name, inject=inject, bound=bound, most=most)
        return inject

    return register


def run_row(row: Fault, data: Any, reference: Reference) -> Outcome:
    """Do one fault, in time, and leave nobody behind."""
    site = Site(row.name, data, reference)
    figures = Figures()
    status, reason = "failed", ""
    try:
        with marking(site.folder), bounded(row.bound):
            figures = row.inject(site)
        status, reason = "passed", figures.result
    except Skipped as why:
        status, reason = "skipped", str(why)
    except (Missed, OSError, psutil.Error, RuntimeError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
    orphans = end_all(site.folder, ORPHAN_SECONDS if status == "passed" else 0)
    late = [
        f"{name} {getattr(figures, name)} {UNITS[name]}, not <= {goal:g}"
        for name, goal in row.most.items()
        if status == "passed" and not _reached(getattr(figures, name), goal)
    ]
    if status == "passed" and orphans:
        late.append(f"left behind after {ORPHAN_SECONDS:.0f} s: {', '.join(orphans)}")
    if late:
        status, reason = "failed", "; ".join([*late, reason])
    return Outcome(name=row.name, status=status, reason=reason, figures=figures, goals=row.most)


def _reached(value: float | None, goal: float) -> bool:
    return value is not None and value <= goal


def measured(figures: Figures) -> dict[str, float]:
    """Return the figures that were measured, by name."""
    values = {entry.name: getattr(figures, entry.name) for entry in fields(figures)}
    return {name: values[name] for name in UNITS if values[name] is not None}


def mends_itself(
    site: Site,
    launch: Launch,
    hit: float,
    before: dict[int, psutil.Process],
    lost: int | None,
    dawdled: float = 0.0,
) -> Figures:
    """Follow a launch from a fault at `hit` to its end, which must be the unbroken model.

    `before` are the ranks at the fault, of which `lost` was killed or frozen. Their first step had
    been made to come `dawdled` seconds later.
    """
    cold_start = launch.await_step(1) - launch.started - dawdled
    reached = max((step for _, step in launch.steps()), default=0)
    ends = await_ends(before.values(), timeout=120)
    said = launch.await_line("starting again", after=hit)
    acted = [said, *(ends[process.pid] for rank, process in before.items() if rank != lost)]
    again = launch.await_step(1, after=said)
    first = min(step for _, step in launch.steps(after=said))
    launch.expect(0)
    site.check_model()
    return Figures(
        detected=round(min(acted) - hit, 2),
        stopped=round(max(ends.values()) - hit, 2),
        restored=round(again - hit, 2),
        of_cold=round((again - hit) / cold_start, 2),
        replayed=max(0, reached - first + 1),  # it may go on for a while, and save
        goodput=site.summary["goodput_ratio"],
        result="same model, by itself",
    )


def runs_again(site: Site, broken_launch: Launch, *overrides: str) -> Figures:
    """Launch once more after a launch that ended; it must come to the unbroken model."""
    reached = max((step for _, step in broken_launch.steps()), default=0)
    launch = site.launch(*overrides)
    again = launch.await_step(1)
    first = min(step for _, step in launch.steps())
    launch.expect(0)
    site.check_model()
    return Figures(
        restored=round(again - launch.started, 2),
        replayed=max(0, reached - first + 1),
        goodput=site.summary["goodput_ratio"],
        result="same model, run again",
    )


def goes_on(site: Site, launch: Launch, result: str = "same model, undisturbed") -> Figures:
    """A launch that a fault must not end: it completes in one attempt, as if nothing had been."""
    launch.expect(0)
    site.check_model()
    if (attempts := site.summary["attempts"]) != 1:
        raise Missed(f"{attempts} attempts, not 1")
    return Figures(goodput=site.summary["goodput_ratio"], replayed=0, result=result)


def stops_in_time(
    site: Site,
    launch: Launch,
    process: psutil.Process | Popen[str],
    number: Signals = signal.SIGTERM,
) -> Figures:
    """Ask a process of the launch to stop: all ends with 75 and a checkpoint, and goes on again."""
    hit = time.monotonic()
    process.send_signal(number)
    launch.expect(75)
    stopped = round(time.monotonic() - hit, 2)
    figures = runs_again(site, launch)
    figures.stopped = stopped
    return figures


def half_way(site: Site, *overrides: str) -> tuple[Launch, dict[int, psutil.Process]]:
    """Launch; return once a checkpoint is there and steps have been taken since, with the ranks."""
    launch = site.launch(*overrides)
    launch.await_line("  checkpoint")
    launch.await_step(EVERY + 2)
    found = site.ranks()
    if len(found) < 2 or not all(map(is_alive, found.values())):
        raise Missed(f"ranks found: {sorted(found)}")
    return launch, found
