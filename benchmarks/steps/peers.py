"""Start a program as so many processes, each on a core of its own, and read what it measured."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.environments import python_of
from benchmarks.faults.processes import Missed
from cluster.rendezvous import Rendezvous, assign_ranks
from tests.clusters import HERE, Host, free_ports

ROOT = Path(__file__).resolve().parents[2]
HUNG_SECONDS, POLL_SECONDS = 1200.0, 0.1
RUNNER = Host(address="10.77.0.200")  # where ranks meet that have namespaces
VARIABLES = {
    "PYTHONPATH": str(ROOT),
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "CUDA_VISIBLE_DEVICES": "",
}
CORES = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A program of this folder, and what it is to do."""

    program: str
    batch: int = 32  # images of a rank
    ranks: int = 2
    arguments: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()  # arguments of which the quickest is to be taken
    environment: str | None = None  # a folder of .envs; None: this one


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the ranks of a peer have found."""

    batch: int
    ranks: list[dict[str, Any]]  # what each printed

    @property
    def images_per_second(self) -> float:
        """Of all ranks, each by its median step."""
        return sum(self.batch / median(rank["seconds"]) for rank in self.ranks)

    @property
    def step(self) -> float:
        """Seconds of a step, median: the mean over ranks, which may not wait for each other."""
        return fmean(median(rank["seconds"]) for rank in self.ranks)

    @property
    def first(self) -> dict[str, Any]:
        """What rank 0 has found."""
        return self.ranks[0]


def run(peer: Peer, steps: int, *more: str, hosts: Sequence[Host] = ()) -> Measured:
    """Measure, in fresh processes.

    With `hosts`, rank r is in the namespace of the r-th of them.

    Raises:
        Missed: a rank has failed.
    """
    os.sync()  # what the one before has written
    places = hosts or [HERE] * peer.ranks
    slots = assign_ranks(Counter(place.address for place in places))
    meeting = RUNNER.address if hosts else HERE.address
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        rendezvous = stack.enter_context(Rendezvous(meeting, slots))
        command = [*_command(peer, steps, folder), *peer.arguments, *more]
        processes: list[subprocess.Popen[bytes]] = []
        for slot, place in zip(slots, places, strict=True):
            environment = rendezvous.environment(slot, "cable" if hosts else "lo", timeout=300)
            output, log = (
                stack.enter_context(Path(folder, f"{slot.rank}.{kind}").open("wb"))
                for kind in ("out", "log")
            )
            process = subprocess.Popen(
                place.inside(*command, f"--rank={slot.rank}"),
                cwd=ROOT,
                env={**os.environ, **environment, **VARIABLES},
                stdout=output,
                stderr=log,
                preexec_fn=partial(os.sched_setaffinity, 0, _cores(slot.rank, peer.ranks)),
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        _await_ends(peer, processes, Path(folder))
        outputs = [Path(folder, f"{rank}.out").read_text() for rank in range(len(processes))]
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    return Measured(batch=peer.batch, ranks=found)


def _await_ends(peer: Peer, ranks: list["subprocess.Popen[bytes]"], folder: Path) -> None:
    """Wait for all ranks; the first one that fails fails all, since others may wait for it."""
    deadline = time.monotonic() + HUNG_SECONDS
    while any(process.poll() is None for process in ranks):
        _check(peer, ranks, folder)
        if time.monotonic() > deadline:
            raise Missed(f"{peer.program}: not over after {HUNG_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
    _check(peer, ranks, folder)


def _check(peer: Peer, ranks: list["subprocess.Popen[bytes]"], folder: Path) -> None:
    for rank, process in enumerate(ranks):
        if process.poll():
            said = Path(folder, f"{rank}.log").read_text(errors="replace")[-1500:]
            raise Missed(f"{peer.program}, rank {rank}: {said}")


def _command(peer: Peer, steps: int, folder: str) -> list[str]:
    python = python_of(peer.environment) if peer.environment else sys.executable
    ports = ",".join(map(str, free_ports(peer.ranks)))
    sizes = [f"--batch={peer.batch}", f"--steps={steps}", f"--ranks={peer.ranks}"]
    program = [str(python), "-m", f"benchmarks.steps.{peer.program}"]
    return [*program, *sizes, f"--ports={ports}", f"--folder={folder}"]


def _cores(rank: int, ranks: int) -> list[int]:
    """Return a rank's cores: one of its own, or all where there is one rank or too few cores."""
    return [CORES[rank]] if 1 < ranks <= len(CORES) else CORES
