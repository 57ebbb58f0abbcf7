"""A worker: the Ray actor whose process is a rank."""

import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import ray

from alexnet.archive import Desk
from alexnet.errors import AlexnetError
from alexnet.memory import Memory, room
from cluster.board import Board, RankResult, Status
from cluster.config import JobConfig
from cluster.parcel import unpack

SMALLER = {True: "--fit-memory takes smaller micro-batches", False: "lower train.micro_batch"}
OF_PEERS = ("Horovod has been shut down", "/gloo/transport/")  # an end, a broken connection
OUT_OF_MEMORY = "ResourceExhaustedError"  # of TensorFlow, which the driver does not import
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RankFailure:
    """Why a rank ended before its time."""

    rank: int
    message: str
    error: AlexnetError | None = None  # set where starting again would not help
    died: bool = False  # its process; ranks that fail otherwise live on
    of_peers: bool = False  # only says that another rank has gone


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker process runs."""

    address: str  # of its node
    interface: str  # the network interface that has the address
    gpus: tuple[str, ...]  # given to it by Ray


class Worker:
    """One process. It trains in one thread and listens to the driver in others.

    SIGTERM, as a node that is taken away sends it, is one rank's wish that all of them stop.
    """

    def __init__(self) -> None:
        self._board = Board()
        signal.signal(signal.SIGTERM, lambda number, frame: self._board.stop.set())

    def warm_up(self) -> None:
        """Import all that training needs. No device is touched, no variable of a rank read."""
        import cluster.rank  # noqa: F401

    @ray.method(concurrency_group="control")
    def place(self) -> Place:
        """Tell where this is."""
        gpus = tuple(ray.get_runtime_context().get_accelerator_ids().get("GPU", ()))
        address = ray.util.get_node_ip_address()
        return Place(address=address, interface=_interface_of(address), gpus=gpus)

    def room(self, ranks: int) -> Memory:
        """Tell what memory it may come to use, as one of `ranks` on this node."""
        return room(ranks, self.place().gpus)

    def train(
        self,
        config: JobConfig,
        rank: int,
        environment: dict[str, str],
        desk: Desk,
        network: bytes | None,
    ) -> RankResult | RankFailure:
        """Train as `rank`; its output goes to a log file of its own."""
        self._board.progress()  # a standby has been idle since it was made
        _log_to(config.run_path / "logs" / f"rank-{rank}.log")

        def work() -> RankResult:
            from cluster.rank import train_rank

            return train_rank(config, self._board, desk, unpack(network) if network else None)

        return _as_rank(rank, environment, work, can_fit=network is None)

    def rehearse(
        self, config: JobConfig, rank: int, environment: dict[str, str]
    ) -> float | RankFailure:
        """Take a few steps as `rank`; return the seconds of one."""

        def work() -> float:
            from cluster.rank import time_steps

            return time_steps(config)

        return _as_rank(rank, environment, work)

    @ray.method(concurrency_group="control")
    def look(self, wall_seconds: dict[str, float]) -> Status:
        """Tell how training goes, and take what the launch's time was spent on so far."""
        self._board.wall_seconds = wall_seconds
        return self._board.look()

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Ask for a checkpoint and an end."""
        self._board.stop.set()


def _as_rank(
    rank: int, environment: dict[str, str], work: Callable[[], T], can_fit: bool = True
) -> T | RankFailure:
    """Return what comes of a rank's work, with its variables set before its imports."""
    os.environ.update(environment)
    try:
        return work()
    except AlexnetError as error:
        log.error("%s", error)
        return RankFailure(rank=rank, message=str(error), error=error)
    except Exception as error:
        traceback.print_exc()
        kind, text = type(error).__name__, " ".join(str(error).split())
        advice = f"; {SMALLER[can_fit]}" if kind == OUT_OF_MEMORY else ""
        return RankFailure(
            rank=rank,
            message=f"rank {rank}: {kind}: {text[:500]}{advice}",
            of_peers=any(words in text for words in OF_PEERS),
        )


def _interface_of(address: str) -> str:
    """Return the name of the network interface that has `address`, an IPv4 or IPv6 one."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == address for entry in addresses):
            return name
    raise AlexnetError(f"no network interface of {socket.gethostname()} has the address {address}")


def _log_to(path: Path) -> None:
    """Send all that this process prints, C++ libraries included, to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, force=True)
