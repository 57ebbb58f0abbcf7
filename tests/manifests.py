"""The files below k8s/, as the tests of them read them."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Tree = dict[str, Any]

ROOT = Path(__file__).parents[1]
K8S = ROOT / "k8s"
RULES = K8S / "monitoring" / "rules"  # for promtool, not for kubectl


class Manifest(NamedTuple):
    """One object that kubectl is given."""

    file: str  # below k8s/
    tree: Tree

    @property
    def kind(self) -> str:
        return str(self.tree["kind"])

    @property
    def name(self) -> str:
        return str(self.tree["metadata"]["name"])

    @property
    def is_custom(self) -> bool:
        """Whether an operator takes it, not Kubernetes itself."""
        group = self.tree["apiVersion"].partition("/")[0]
        return "kueue" in group or ("." in group and not group.endswith(".k8s.io"))

    def __str__(self) -> str:
        return f"{self.file}-{self.kind}-{self.name}"


class PodTemplate(NamedTuple):
    """A pod that one of the manifests makes."""

    owner: Manifest
    tree: Tree  # metadata, spec

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.tree["metadata"]["labels"])

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def spec(self) -> Tree:
        return dict(self.tree["spec"])

    @property
    def containers(self) -> list[Tree]:
        return [*self.spec["containers"], *self.spec.get("initContainers", [])]

    def __str__(self) -> str:
        return f"{self.owner.file}-{self.component}"


@cache
def manifests() -> list[Manifest]:
    """All objects, in the order in which `kubectl apply -f` takes them, folder by folder."""
    files = [path for path in sorted(K8S.rglob("*.yaml")) if RULES not in path.parents]
    return [
        Manifest(path.relative_to(K8S).as_posix(), tree)
        for path in files
        for tree in yaml.safe_load_all(path.read_text())
    ]


def of_kind(kind: str, folder: str | None = None) -> list[Manifest]:
    """Those of a kind, in one folder ("" is k8s/ itself) or in all."""
    found = [manifest for manifest in manifests() if manifest.kind == kind]
    if folder is None:
        return found
    return [each for each in found if str(Path(each.file).parent) == (folder or ".")]


def config_map(name: str) -> dict[str, str]:
    """The files that a config map mounts, by name."""
    (found,) = [each for each in of_kind("ConfigMap") if each.name == name]
    return dict(found.tree["data"])


def pod_templates() -> list[PodTemplate]:
    """Every pod that the manifests lead to."""
    return [PodTemplate(manifest, tree) for manifest in manifests() for tree in _pods(manifest)]


def insecure(spec: Tree) -> list[str]:
    """What the "restricted" pod security standard, and our own house, would say to a pod."""
    problems = []
    pod = spec.get("securityContext", {})
    kinds = {key for volume in spec.get("volumes", []) for key in volume if key != "name"}
    if not kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected"}:
        problems.append(f"volumes: {kinds}")
    if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        problems.append("a host's namespace")
    if spec.get("automountServiceAccountToken") is not False:
        problems.append("a token for the API server")
    if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        problems.append("seccomp")
    if not (pod.get("runAsNonRoot") and pod.get("runAsUser") and pod.get("runAsGroup")):
        problems.append("root")
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            problems.append("privileges")
        if own.get("capabilities") != {"drop": ["ALL"]}:
            problems.append("capabilities")
        if own.get("readOnlyRootFilesystem") is not True:
            problems.append("a root filesystem that can be written to")
        if own.keys() & {"runAsUser", "runAsNonRoot", "seccompProfile", "procMount"}:
            problems.append("a container that says otherwise than its pod")
        if any("hostPort" in port for port in container.get("ports", [])):
            problems.append("a port of the host")
    return problems


def _pods(manifest: Manifest) -> Iterator[Tree]:
    spec = manifest.tree.get("spec", {})
    if manifest.kind == "RayJob":
        cluster = spec["rayClusterSpec"]
        yield spec["submitterPodTemplate"]
        yield cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield group["template"]
    elif manifest.kind in ("Deployment", "Job"):
        yield spec["template"]
    elif manifest.kind == "Pod":
        yield manifest.tree
