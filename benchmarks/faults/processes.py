"""Processes of a run under test, found by a mark that they inherit, and what becomes of them."""

import os
import re
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

MARK = "ALEXNET_CHAOS"  # in the environment; its value is the folder of the row
POLL_SECONDS = 0.02


class Missed(Exception):  # noqa: N818 - what a row has missed, not an error of a program
    """The product did not do what this fault asks of it."""


def marked(folder: Path) -> list[psutil.Process]:
    """Return the processes alive that inherited the mark of `folder`."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, psutil.Error):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(psutil.Process(int(entry.name)))
    return found


def ranks(folder: Path) -> dict[int, psutil.Process]:
    """Return the processes that train, by rank: their output is a rank's log."""
    found = {}
    for process in marked(folder):
        with suppress(OSError):
            name = Path(f"/proc/{process.pid}/fd/1").readlink().name
            if match := re.fullmatch(r"rank-(\d+)\.log", name):
                found[int(match[1])] = process
    return found


def named(folder: Path, name: str) -> psutil.Process:
    """Return the one process of the row whose name starts with `name`."""
    found = []
    for process in marked(folder):
        with suppress(psutil.Error):
            found += [process] if process.name().startswith(name[:15]) else []
    if len(found) != 1:
        raise Missed(f"{len(found)} processes named {name}")
    return found[0]


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs, or would if it were not frozen."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def await_ends(processes: Iterable[psutil.Process], timeout: float) -> dict[int, float]:
    """Return the moment by `time.monotonic` at which each has gone, by process id."""
    left, gone, deadline = list(processes), dict[int, float](), time.monotonic() + timeout
    while left:
        now = time.monotonic()
        for process in [process for process in left if not is_alive(process)]:
            gone[process.pid] = now
            left.remove(process)
        if now > deadline:
            names = ", ".join(_name(process) for process in left)
            raise Missed(f"alive {timeout:.0f} s after the fault: {names}")
        time.sleep(POLL_SECONDS)
    return gone


def end_all(folder: Path, grace: float) -> list[str]:
    """Return the names of the processes still there after `grace` seconds, all killed."""
    deadline = time.monotonic() + grace
    while (left := marked(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    names = sorted(map(_name, left))
    for process in left:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    return names


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return "gone"


@contextmanager
def marking(folder: Path) -> Iterator[None]:
    """Mark whatever this process starts meanwhile."""
    os.environ[MARK] = str(folder)
    try:
        yield
    finally:
        del os.environ[MARK]


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raise Missed in the block once it has taken `seconds`: a hang is a failure."""

    def over(number: int, frame: object) -> None:
        raise Missed(f"hangs: not over after {seconds:.0f} s")

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
