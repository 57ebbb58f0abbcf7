"""The cluster of `k8s/static/`, played by podman.

Podman knows Pods, ConfigMaps and volumes. What else a Kubernetes cluster does with these files is
done here, as plainly as possible: replicas become pods, a Service's name an entry in /etc/hosts,
NetworkPolicies packet filters (walls.py), and a readiness probe is asked by hand.
"""

import base64
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.clusters import ROOT, wait_until
from tests.e2e.walls import Peer, wall

K8S = ROOT / "k8s"
IMAGE = "alexnet:0.1.0"
MEMORY = Path("/dev/shm")
PREFIX = "e2e-"  # of all that podman keeps by name: nobody else's is touched
NETWORK = f"{PREFIX}alexnet"
SUBNET = "10.213.77"
HEAD, WORKERS = "alexnet-head", "alexnet-worker"
PROMETHEUS = f"{SUBNET}.100"
CLIENT = f"{SUBNET}.1"  # this machine, in the place of the operator, which talks to the job API
STRANGER = f"{SUBNET}.200"  # this machine, as anybody else

NEEDED = {  # programs, and Debian's packages
    "podman": "podman",
    "catatonit": "catatonit",
    "iptables": "iptables",  # podman's network
    "nft": "nftables",  # our walls
    "nsenter": "util-linux",
}

Tree = dict[str, Any]


def why_not() -> str | None:
    """Return why no pods can be had here, in one line, or None if they can."""
    for program, package in NEEDED.items():
        if not shutil.which(program):
            return f"no {program} here: apt-get install {package}"
    if os.geteuid() != 0:
        return "pods with addresses of their own need root: sudo make e2e"
    if podman("image", "exists", IMAGE, check=False).returncode != 0:
        return f"no image {IMAGE} here: make image"
    return None


def podman(
    *arguments: str, check: bool = True, text: str | None = None, timeout: float = 120
) -> "subprocess.CompletedProcess[str]":
    """Run podman; what it says is in the error if it fails."""
    # No health checks by systemd timers: there may be no systemd.
    variables = {
        "STORAGE_DRIVER": "overlay",
        "CONTAINERS_CONF": str(Path(__file__).with_name("containers.conf")),
        **os.environ,
        "DISABLE_HC_SYSTEMD": "true",
    }
    # Podman's first choice, crun, refuses machines with both versions of cgroups.
    runtime = ["--runtime=runc"] if shutil.which("runc") else []
    done = subprocess.run(
        ["podman", *runtime, *arguments],
        env=variables,
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"podman {' '.join(arguments)}: {done.stderr.strip()}")
    return done


def manifests(*files: Path) -> list[Tree]:
    """Return all manifests in these files."""
    return [tree for file in files for tree in yaml.safe_load_all(file.read_text()) if tree]


@dataclass(frozen=True, kw_only=True)
class Pod:
    """One that runs."""

    name: str
    address: str
    labels: Mapping[str, str]
    ports: Mapping[str, int]  # that its manifest declares, by name
    container: str

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in it and return what it prints."""
        return podman("exec", self.container, *command, check=check).stdout

    def enter(self, *command: str, text: str | None = None) -> str:
        """Run a command of this machine in the pod's network."""
        pid = podman("inspect", "--format", "{{.State.Pid}}", self.container).stdout.strip()
        done = subprocess.run(
            ["nsenter", "--target", pid, "--net", *command],
            input=text,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout


class Pods:
    """The head and the workers; leaving the context removes all but what is on the volumes."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes what podman is given to read."""
        self.token = secrets.token_hex(32)
        self._folder = folder
        self._policies = manifests(K8S / "20-network.yaml")
        deployments = {
            tree["metadata"]["name"]: tree
            for tree in manifests(*sorted((K8S / "static").glob("*.yaml")))
            if tree["kind"] == "Deployment"
        }
        self._templates = {name: deployments[name]["spec"]["template"] for name in deployments}
        replicas = deployments[WORKERS]["spec"]["replicas"]
        self._addresses = {HEAD: f"{SUBNET}.10"} | {
            f"{WORKERS}-{number}": f"{SUBNET}.{11 + number}" for number in range(replicas)
        }
        self.running: dict[str, Pod] = {}

    @property
    def dashboard(self) -> str:
        """The URL of the job API, as seen from this machine."""
        return f"http://{self._addresses[HEAD]}:8265"

    @property
    def workers(self) -> list[Pod]:
        """Those that run."""
        return [pod for name, pod in self.running.items() if name != HEAD]

    def __enter__(self) -> "Pods":
        remove_pods()
        secret = {"token": base64.b64encode(self.token.encode()).decode()}
        podman("secret", "create", f"{PREFIX}alexnet-token", "-", text=json.dumps(secret))
        self.start_all()
        return self

    def __exit__(self, *_: object) -> None:
        remove_pods()

    def start_all(self) -> None:
        """Start all pods and wait until they are ready."""
        for name in self._addresses:
            self.start(name)
        for pod in self.running.values():
            self._await_ready(pod)

    def start(self, name: str) -> Pod:
        """Start the pod of this name, behind its wall."""
        deployment = name if name == HEAD else WORKERS
        template = self._templates[deployment]
        [container] = template["spec"]["containers"]
        pod = Pod(
            name=name,
            address=self._addresses[name],
            labels=template["metadata"]["labels"],
            ports={port["name"]: port["containerPort"] for port in container["ports"]},
            container=f"{name}-{container['name']}",
        )
        file = self._folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump_all([*self._config_maps(), self._manifest(pod, template)]))
        podman("kube", "play", f"--network={NETWORK}", f"--ip={pod.address}", str(file))
        pod.enter("nft", "-f", "-", text=wall(self._policies, pod.labels, self._peers()))
        self.running[name] = pod
        return pod

    def kill(self, pod: Pod) -> None:
        """End a pod at once, as a node does that loses its power."""
        del self.running[pod.name]
        podman("pod", "kill", pod.name)
        podman("pod", "rm", "--force", pod.name)

    def log(self, pod: Pod) -> str:
        """Return what a pod's container has printed."""
        done = podman("logs", pod.container, check=False)
        return done.stdout + done.stderr

    def _manifest(self, pod: Pod, template: Tree) -> Tree:
        spec = json.loads(json.dumps(template["spec"]))
        # The Service of the head.
        spec["hostAliases"] = [{"ip": self._addresses[HEAD], "hostnames": [HEAD]}]
        for volume in spec["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                claim["claimName"] = PREFIX + claim["claimName"]
            if "emptyDir" in volume:
                volume["hostPath"] = {"path": str(self._empty(pod, volume))}
                del volume["emptyDir"]
        del spec["containers"][0]["ports"]  # podman would open them on this machine
        for variable in spec["containers"][0]["env"]:
            if source := variable.get("valueFrom"):
                source["secretKeyRef"]["name"] = PREFIX + source["secretKeyRef"]["name"]
        metadata = {"name": pod.name, "labels": dict(pod.labels)}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

    def _empty(self, pod: Pod, volume: Tree) -> Path:
        """Make an emptyDir as Kubernetes does, for anybody: podman's are for root alone."""
        in_memory = volume["emptyDir"].get("medium") == "Memory"
        path = (MEMORY if in_memory else self._folder) / f"{PREFIX}{pod.name}-{volume['name']}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        path.chmod(0o777)
        return path

    @staticmethod
    def _config_maps() -> list[Tree]:
        trees = manifests(K8S / "30-config.yaml", K8S / "35-scripts.yaml")
        return [tree for tree in trees if tree["kind"] == "ConfigMap"]

    def _peers(self) -> list[Peer]:
        """Who is where, for the NetworkPolicies."""
        pods = [
            Peer(address=address, labels=self._templates[name]["metadata"]["labels"])
            for each, address in self._addresses.items()
            for name in [each if each == HEAD else WORKERS]
        ]
        operator = {"app.kubernetes.io/component": "kuberay-operator"}
        prometheus = {"app.kubernetes.io/name": "prometheus"}
        return [
            *pods,
            Peer(address=CLIENT, labels=operator, namespace="operators"),
            Peer(address=PROMETHEUS, labels=prometheus, namespace="monitoring"),
        ]

    def _await_ready(self, pod: Pod) -> None:
        deployment = HEAD if pod.name == HEAD else WORKERS
        [container] = self._templates[deployment]["spec"]["containers"]
        probe = container["readinessProbe"]["exec"]["command"]

        def ready() -> bool:
            return podman("exec", pod.container, *probe, check=False).returncode == 0

        try:
            wait_until(ready, 120, f"{pod.name} to be ready")
        except Exception as error:
            raise RuntimeError(f"{error}\n{self.log(pod)}") from error


@contextmanager
def volumes_and_network() -> Iterator[Callable[[str], Path]]:
    """Make what outlives the pods; yields where a claim's volume is."""
    remove_all()
    podman("network", "create", f"--subnet={SUBNET}.0/24", f"--gateway={CLIENT}", NETWORK)
    claims = [tree["metadata"]["name"] for tree in manifests(K8S / "40-volumes.yaml")]
    for claim in claims:
        podman("volume", "create", PREFIX + claim)

    def place(claim: str) -> Path:
        return Path(
            podman(
                "volume", "inspect", "--format", "{{.Mountpoint}}", PREFIX + claim
            ).stdout.strip()
        )

    try:
        yield place
    finally:
        remove_all()


def remove_pods() -> None:
    """Remove all pods of these tests, also those that a killed run has left."""
    for name in _names("pod", "ps", "--format", "{{.Name}}"):
        if name == HEAD or name.startswith(f"{WORKERS}-"):
            podman("pod", "rm", "--force", name)
    podman("secret", "rm", f"{PREFIX}alexnet-token", check=False)


def remove_all() -> None:
    """Remove pods, volumes and network of these tests."""
    remove_pods()
    podman("rm", "--force", "--ignore", f"{PREFIX}prometheus")
    for name in _names("volume", "ls", "--format", "{{.Name}}"):
        if name.startswith(PREFIX):
            podman("volume", "rm", "--force", name)
    podman("network", "rm", "--force", NETWORK, check=False)
    for path in MEMORY.glob(f"{PREFIX}*"):
        shutil.rmtree(path)


def _names(*arguments: str) -> Sequence[str]:
    return podman(*arguments).stdout.split()
