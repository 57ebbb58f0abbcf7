"""A real Ray cluster with token authentication, and runs of the command line against it."""

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Where a cluster listens, the token that it wants, and variables that all in it have."""

    address: str
    dashboard: str
    token: str
    variables: Mapping[str, str]

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Return the variables of a client of this cluster."""
        return {
            **os.environ,
            **self.variables,
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token or self.token,
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }


@dataclass(frozen=True, kw_only=True)
class Host:
    """What a node takes for its machine: an address, and the network namespace that has it."""

    address: str = "127.0.0.1"
    namespace: str | None = None  # None: the one that everything is in

    def inside(self, *command: str) -> list[str]:
        """Return a command that runs `command` there."""
        return [*(["ip", "netns", "exec", self.namespace] if self.namespace else []), *command]


HERE = Host()


@contextmanager
def ray_cluster(
    cpus: int, folder: Path, host: Host = HERE, **variables: str
) -> Iterator[RayCluster]:
    """Start a head node with `cpus` CPUs and end it, with all of its processes, afterwards.

    `variables` are added to the environment of its nodes and clients.
    """
    port, dashboard_port = free_ports(2)
    cluster = RayCluster(
        address=f"{host.address}:{port}",
        dashboard=f"http://127.0.0.1:{dashboard_port}",
        token=secrets.token_hex(16),
        variables=variables,
    )
    environment = {**cluster.environment(), "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"  # whose python a submitted job runs
    options = ["--head", f"--port={port}", f"--dashboard-port={dashboard_port}"]
    with _ray_start(options, cpus, host, environment, folder / "ray.log"):
        if host == HERE:
            wait_until(lambda: _answers(dashboard_port), 120, "the Ray dashboard")
        yield cluster


@contextmanager
def ray_node(
    cluster: RayCluster, cpus: int, folder: Path, host: Host = HERE
) -> Iterator[psutil.Process]:
    """Add a node with `cpus` CPUs; yields its raylet."""
    options = [f"--address={cluster.address}"]
    log = folder / f"node-{len([*folder.glob('node-*.log')]) + 1}.log"
    with _ray_start(options, cpus, host, cluster.environment(), log) as node:
        children = psutil.Process(node.pid).children(recursive=True)
        yield next(process for process in children if process.name() == "raylet")


@contextmanager
def _ray_start(
    options: list[str], cpus: int, host: Host, environment: Mapping[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a node for as long as this lasts; yields once it has started."""
    command = host.inside(str(BIN / "ray"), "start", "--block", f"--num-cpus={cpus}")
    command += [f"--node-ip-address={host.address}", *options]
    own = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    with log.open("w") as output:
        node = subprocess.Popen(command, env=own, stdout=output, stderr=output)

        def started() -> bool:
            if node.poll() is not None:
                raise RuntimeError(f"ray start ended with {node.returncode}: see {log}")
            return "runtime started" in log.read_text()

        try:
            wait_until(started, 120, "ray start")
            yield node
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait(timeout=60)


def start(
    arguments: list[str], environment: Mapping[str, str], log: Path, new_session: bool = False
) -> "subprocess.Popen[bytes]":
    """Start `python -m cluster` with `arguments`; its output goes to `log`."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "cluster", *arguments],
            env=environment,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=new_session,
        )


def free_ports(count: int) -> list[int]:
    """Return ports in a row that nothing listens on.

    They lie between those that Ray gives its workers (up to 19999) and those that Linux gives to
    whoever asks for any (from 32768), so that nothing comes upon them before their user does.
    """
    while True:
        first = random.randrange(20_000, 32_768 - count)
        ports = list(range(first, first + count))
        if not any(map(_answers, ports)):
            return ports


def wait_until(condition: Callable[[], object], timeout: float, what: str) -> None:
    """Return once `condition()` is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout} s")
        time.sleep(0.1)


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
