"""The cluster of `k8s/static/` in pods: its locks, a job on it, and what is left when pods go."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from alexnet.checkpoint import read
from tests.clusters import start, wait_until
from tests.e2e.pods import (
    CLIENT,
    HEAD,
    K8S,
    PROMETHEUS,
    STRANGER,
    Pod,
    Pods,
    manifests,
    podman,
)
from tests.e2e.prometheus import prometheus
from tests.prometheus import Prometheus, why_not

pytestmark = [pytest.mark.container, pytest.mark.slow, pytest.mark.timeout(1800)]

Claims = Callable[[str], Path]
STEPS = 220  # of the shipped config
CPUS_ONLY = ["cluster.gpus_per_worker=0", "cluster.threads_per_worker=1"]
SCAN = """
import socket, sys
source, address, *ports = sys.argv[1:]
for port in ports or range(1, 65536):
    with socket.socket() as client:
        client.settimeout(2)
        client.bind((source, 0))
        if client.connect_ex((address, int(port))) == 0:
            print(port)
"""


class Client:
    """A machine outside of the cluster that knows its job API and its token."""

    def __init__(self, folder: Path, pods: Pods) -> None:
        self._folder, self._pods = folder, pods
        [tree] = manifests(K8S / "30-config.yaml")
        self._config = folder / "config.yaml"
        self._config.write_text(tree["data"]["config.yaml"])

    def submit(self, name: str, *overrides: str) -> "subprocess.Popen[bytes]":
        """Send the shipped config as a job; its log is shown by `log`."""
        known = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment = {**known, "RAY_AUTH_TOKEN": self._pods.token}
        options = [*CPUS_ONLY, *overrides, "--name", name, "--address", self._pods.dashboard]
        return start(["submit", str(self._config), *options], environment, self._folder / name)

    def log(self, name: str) -> str:
        return (self._folder / name).read_text()

    def steps(self, name: str) -> list[int]:
        return [int(step) for step in re.findall(r"step +(\d+)  epoch", self.log(name))]

    def await_step(self, name: str, job: "subprocess.Popen[bytes]", step: int) -> None:
        def reached() -> bool:
            assert job.poll() is None, self.log(name)
            return max(self.steps(name), default=0) >= step

        wait_until(reached, 300, f"step {step}")


@pytest.fixture
def client(tmp_path: Path, pods: Pods) -> Client:
    return Client(tmp_path, pods)


def test_every_pod_is_restricted_and_has_an_address_of_its_own(pods: Pods) -> None:
    addresses = {pod.run("hostname", "-i").split()[0] for pod in pods.running.values()}
    assert len(addresses) == 3
    for pod in pods.running.values():
        assert pod.run("id", "-u").strip() == pod.run("id", "-g").strip() == "1000"
        status = dict(
            line.split(":\t", 1) for line in pod.run("cat", "/proc/1/status").splitlines()
        )
        assert int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        for folder in ("/", "/app", "/opt/alexnet", "/config", "/data", "/var/tmp"):
            done = podman("exec", pod.container, "touch", f"{folder}/x", check=False)
            assert "Read-only file system" in done.stderr, (pod.name, folder)
        for folder in ("/runs", "/tmp", "/dev/shm"):
            pod.run("touch", f"{folder}/x")
            pod.run("rm", f"{folder}/x")


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_strangers_are_refused_by_job_api_and_dashboard(pods: Pods, token: str | None) -> None:
    job = json.dumps({"entrypoint": "touch /runs/broken-in"}).encode()
    doors = [("/api/jobs/", None), ("/api/jobs/", job), ("/nodes?view=summary", None)]
    doors += [("/api/v0/tasks", None), ("/api/v0/logs", None), ("/api/cluster_status", None)]
    for path, body in doors:
        assert knock(pods.dashboard + path, body, token) == (403 if token else 401), path
        assert knock(pods.dashboard + path, body, pods.token) not in (401, 403) or body, path


def knock(url: str, body: bytes | None, token: str | None) -> int:
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_strangers_are_refused_by_ray(pods: Pods, token: str) -> None:
    """Even where no network policy stands between: from within a pod of the job."""
    [worker, *_] = pods.workers
    program = f"import ray; ray.init('{HEAD}:6379', log_to_driver=False); print('in', ray.nodes())"
    without = ["--env", f"RAY_AUTH_TOKEN={token}", "--env", "RAY_AUTH_TOKEN_PATH="]
    done = podman(
        "exec", *without, worker.container, "python", "-c", program, check=False, timeout=300
    )
    assert done.returncode != 0
    assert "in [" not in done.stdout
    assert "uthenticat" in done.stderr or "token" in done.stderr, done.stderr


@contextmanager
def stranger(pods: Pods) -> Iterator[None]:
    """Give this machine one more address in the pods' network, that of nobody they know."""
    routes = subprocess.run(["ip", "-json", "route"], capture_output=True, text=True, check=True)
    [bridge] = [r["dev"] for r in json.loads(routes.stdout) if r.get("prefsrc") == CLIENT]
    address = [f"{STRANGER}/32", "dev", bridge]
    subprocess.run(["ip", "address", "add", *address], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "address", "del", *address], check=True)


def answering(
    source: str, address: str, ports: Sequence[int] = (), enter: Sequence[str] = ()
) -> list[int]:
    """The ports (of all, if none are named) at which `address` takes connections of `source`."""
    command = [*enter, sys.executable, "-c", SCAN, source, address, *map(str, ports)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(port) for port in done.stdout.split()]


def listening(pod: Pod) -> dict[int, str]:
    """What listens in a pod on more than its loopback: ports and processes."""
    found = {}
    for line in pod.enter("ss", "-Htlnp").splitlines():
        address, port = line.split()[3].rsplit(":", 1)
        if not address.startswith(("127.", "[::1]")):
            name = re.search(r'\("([^"]+)"', line)
            found[int(port)] = name[1] if name else "?"
    return found


def look_at_ports(pods: Pods, at_prometheus: Sequence[str]) -> None:
    """From outside, nothing answers but what is documented, and that only to whom it is meant."""
    with stranger(pods):
        for pod in pods.running.values():
            open_inside = listening(pod)
            print(f"{pod.name} ({pod.address}) listens at:")
            for port, process in sorted(open_inside.items()):
                print(f"    {port:>6}  {process}")
            declared = set(pod.ports.values())
            assert declared <= set(open_inside)
            assert len(open_inside) > len(declared)  # so the wall has something to hide
            of_operator = {8265} if pod.name == HEAD else set()
            of_scraper = set() if pod.name == HEAD else {9400}
            assert answering(STRANGER, pod.address) == []
            assert set(answering(CLIENT, pod.address, [*open_inside])) == of_operator
            seen = answering(PROMETHEUS, pod.address, [*open_inside], at_prometheus)
            assert set(seen) == of_scraper


def test_a_job_outlives_a_pod_and_the_cluster(
    pods: Pods, claims: Claims, client: Client, tmp_path: Path
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    targets = [f"{pod.address}:{pod.ports['metrics']}" for pod in pods.workers]
    with prometheus(tmp_path, targets, "digits") as (scraper, inside):
        job = client.submit("first")
        client.await_step("first", job, 20)
        steps_count(scraper, targets)
        look_at_ports(pods, inside)

        client.await_step("first", job, 60)  # there is a checkpoint, of step 50
        ranks = scraper.query("alexnet_rank")
        [first] = [pod for pod in pods.workers if ranks[f"{pod.address}:9400"] == 0]
        pods.kill(first)
        pods.start(first.name)  # as a Deployment does
        assert job.wait(timeout=900) == 0, client.log("first")
        assert "starting again from the newest checkpoint" in client.log("first")
        print(client.log("first"))

    run = claims("alexnet-runs") / "digits"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["steps"] == STEPS
    assert summary["attempts"] > 1
    assert summary["eval"]["top1"] > 0.9

    for pod in [*pods.running.values()]:
        pods.kill(pod)
    newest = max((run / "checkpoints").glob("step-*"))
    assert newest.name == f"step-{STEPS:08}"
    read(newest)  # whole, by its hashes

    pods.start_all()
    again = client.submit("second", "train.epochs=11")
    assert again.wait(timeout=600) == 0, client.log("second")
    assert min(client.steps("second")) > STEPS
    assert json.loads((run / "summary.json").read_text())["steps"] == STEPS // 10 * 11


def steps_count(prometheus: Prometheus, targets: list[str]) -> None:
    """Every rank is scraped, and its counters move."""
    everyone = dict.fromkeys(targets, 1.0)
    wait_until(lambda: prometheus.query("up") == everyone, 30, "a scrape of every rank")
    before = prometheus.query("alexnet_steps_total")
    assert before.keys() == everyone.keys()
    assert sorted(prometheus.query("alexnet_rank").values()) == [0, 1]

    def moved() -> bool:
        now = prometheus.query("alexnet_steps_total")
        return now.keys() == before.keys() and all(now[each] > before[each] for each in before)

    wait_until(moved, 60, "the counters of every rank to move")
