"""Ends what a driver has started, however the driver itself ends.

Ray's helpers notice the death of their Ray by themselves, but some first spend a minute on telling
its control store, which is dead too. So a process of its own waits for the driver's end and then,
after a grace time, kills what is left.

Usage: python -m cluster.guard PID...
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

GRACE_SECONDS = 5.0


@contextmanager
def guarded() -> Iterator[None]:
    """Have all processes below this one end with it, or with this block."""
    below = [str(process.pid) for process in psutil.Process().children(recursive=True)]
    guard = subprocess.Popen(
        [sys.executable, "-m", "cluster.guard", *below],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the driver
    )
    try:
        yield
    finally:
        guard.communicate()


def main() -> None:
    """Wait for the end of the standard input, which the driver never writes to."""
    processes = []
    for pid in sys.argv[1:]:
        with suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(int(pid)))
    sys.stdin.read()
    _, left = psutil.wait_procs(processes, timeout=GRACE_SECONDS)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    main()
