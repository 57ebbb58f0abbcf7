"""A real Ray cluster with token authentication, and runs of the command line against it."""

import os
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
    """Where a cluster listens, and the token that it wants."""

    address: str
    dashboard: str
    token: str

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Return the variables of a client of this cluster."""
        return {
            **os.environ,
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token or self.token,
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }


@contextmanager
def ray_cluster(cpus: int, folder: Path) -> Iterator[RayCluster]:
    """Start a head node with `cpus` CPUs and end it, with all of its processes, afterwards."""
    port, dashboard_port = free_ports(2)
    cluster = RayCluster(
        address=f"127.0.0.1:{port}",
        dashboard=f"http://127.0.0.1:{dashboard_port}",
        token=secrets.token_hex(16),
    )
    environment = {**cluster.environment(), "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"  # whose python a submitted job runs
    del environment["RAY_ADDRESS"]
    command = [
        str(BIN / "ray"),
        "start",
        "--head",
        "--block",
        f"--port={port}",
        f"--num-cpus={cpus}",
    ]
    command += ["--node-ip-address=127.0.0.1", f"--dashboard-port={dashboard_port}"]
    with (folder / "ray.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait_for(dashboard_port, head)
            yield cluster
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(timeout=60)


@contextmanager
def ray_node(cluster: RayCluster, cpus: int, folder: Path) -> Iterator[psutil.Process]:
    """Add a node with `cpus` CPUs; yields its raylet."""
    command = [str(BIN / "ray"), "start", f"--address={cluster.address}", "--block"]
    command += [f"--num-cpus={cpus}", "--node-ip-address=127.0.0.1"]
    environment = cluster.environment()
    del environment["RAY_ADDRESS"]

    def raylets() -> list[psutil.Process]:
        children = psutil.Process(node.pid).children(recursive=True)
        return [process for process in children if process.name() == "raylet"]

    output = folder / "node.log"
    with output.open("w") as log:
        node = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: "runtime started" in output.read_text(), 60, "the second raylet")
            yield raylets()[0]
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
    """Return ports that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def wait_until(condition: Callable[[], object], timeout: float, what: str) -> None:
    """Return once `condition()` is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout} s")
        time.sleep(0.1)


def _wait_for(port: int, head: "subprocess.Popen[bytes]") -> None:
    def answers() -> bool:
        if head.poll() is not None:
            raise RuntimeError(f"ray start ended with {head.returncode}")
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    wait_until(answers, 120, "the Ray dashboard")
