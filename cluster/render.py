"""A RayJob for a config: the one in `k8s/`, with what the config and the cluster ask for.

There is one template, the manifest that is applied as it lies. What changes is set here; what the
result must keep to, KubeRay's rules and ours, is checked before anyone sees it.
"""

import json
import math
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from alexnet.errors import AlexnetError, ConfigError
from cluster.config import ClusterConfig, JobConfig

TEMPLATES = Path(__file__).parents[1] / "k8s"  # installed beside this package, too
NAME, SETTINGS, CONFIG_FILE = "alexnet", "alexnet-config", "config.yaml"  # as shipped
INSTANCE = "app.kubernetes.io/instance"
QUEUE = "kueue.x-k8s.io/queue-name"
GPU = "nvidia.com/gpu"
MAX_NAME = 47  # of a RayJob: KubeRay makes longer ones of it
OLDEST_RAY_WITH_TOKENS = (2, 52, 0)
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
IMAGE = re.compile(r"[a-z0-9]([\w.:/-]*\w)?(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?")
COUNTS = {"workers", "min_workers", "max_workers"}

Tree = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a config does not say: how a job is named and what it is given. None: as shipped."""

    name: str | None = None
    image: str | None = None
    ranks_per_pod: int = 1
    queue: str | None = None
    data_claim: str | None = None
    runs_claim: str | None = None

    def __post_init__(self) -> None:
        for option, value in (
            ("name", self.name),
            ("queue", self.queue),
            ("data-claim", self.data_claim),
            ("runs-claim", self.runs_claim),
        ):
            if value is not None and not LABEL.fullmatch(value):
                raise ConfigError(
                    f"--{option} {value!r}: expected small letters, digits and '-', a letter first"
                )
        if self.image is not None and not IMAGE.fullmatch(self.image):
            raise ConfigError(f"--image {self.image!r}: expected registry/name:tag or @sha256:...")


def render(config: JobConfig, place: Place) -> str:
    """Return a ConfigMap and a RayJob as YAML.

    Raises:
        ConfigError: what was asked for cannot be, or KubeRay would refuse it.
    """
    job, settings = _shipped("RayJob", NAME), _shipped("ConfigMap", SETTINGS)
    config = _completed(config, yaml.safe_load(settings["data"][CONFIG_FILE])["cluster"])
    name = place.name or NAME
    job["metadata"]["name"] = name
    settings["metadata"]["name"] = f"{name}-config"
    settings["data"] = {
        CONFIG_FILE: yaml.safe_dump(config.model_dump(exclude_unset=True), sort_keys=False)
    }
    if place.queue:
        job["metadata"]["labels"][QUEUE] = place.queue
    for pod in pods(job):
        pod["metadata"]["labels"][INSTANCE] = name
        _set_volumes(pod["spec"], place, f"{name}-config")
        for container in pod["spec"]["containers"]:
            container["image"] = place.image or container["image"]
    _set_workers(job["spec"]["rayClusterSpec"], config, place)
    if found := [*problems(job), *_unkept(job, config)]:
        raise ConfigError("; ".join(found))
    return yaml.dump_all([settings, job], Dumper=_Dumper, sort_keys=False, width=100)


def pods(job: Tree) -> Iterator[Tree]:
    """The templates of a RayJob's pods: head, workers, submitter."""
    ray = job["spec"]["rayClusterSpec"]
    yield ray["headGroupSpec"]["template"]
    for group in ray["workerGroupSpecs"]:
        yield group["template"]
    yield job["spec"]["submitterPodTemplate"]


def problems(job: Tree) -> list[str]:
    """What KubeRay (v1.7) or Kueue would refuse in a RayJob, a line each."""
    metadata, spec = job["metadata"], job["spec"]
    name, ray = metadata["name"], spec.get("rayClusterSpec") or {}
    autoscales = bool(ray.get("enableInTreeAutoscaling"))
    queued = QUEUE in metadata.get("labels", {})
    ends = bool(spec.get("shutdownAfterJobFinishes"))
    mode, backoff = spec.get("submissionMode", "K8sJobMode"), spec.get("backoffLimit", 0)
    rules = {
        f"name {name!r} has more than {MAX_NAME} characters": len(name) > MAX_NAME,
        f"name {name!r} is no DNS-1035 label": not LABEL.fullmatch(name),
        "rayClusterSpec and clusterSelector: one of them": bool(ray) == ("clusterSelector" in spec),
        "ttlSecondsAfterFinished is negative": spec.get("ttlSecondsAfterFinished", 0) < 0,
        "ttlSecondsAfterFinished needs shutdownAfterJobFinishes": (
            spec.get("ttlSecondsAfterFinished", 0) > 0 and not ends
        ),
        "suspend needs shutdownAfterJobFinishes": bool(spec.get("suspend")) and not ends,
        "a queue needs shutdownAfterJobFinishes": queued and not ends,
        "a queue allows no clusterSelector": queued and "clusterSelector" in spec,
        "a queue allows no enableInTreeAutoscaling": queued and autoscales,
        "activeDeadlineSeconds is not positive": spec.get("activeDeadlineSeconds", 1) <= 0,
        "backoffLimit is negative": backoff < 0,
        "InteractiveMode allows no backoffLimit": mode == "InteractiveMode" and backoff > 0,
        "SidecarMode allows no submitterPodTemplate or submitterConfig": (
            mode == "SidecarMode"
            and bool(spec.keys() & {"submitterPodTemplate", "submitterConfig"})
        ),
    }
    return [rule for rule, is_broken in rules.items() if is_broken] + (_ray(ray) if ray else [])


def _ray(ray: Tree) -> list[str]:
    """What KubeRay would refuse in the RayCluster of a RayJob."""
    groups = {"head": ray["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in ray.get("workerGroupSpecs", [])}
    found = [line for name, group in groups.items() for line in _group(name, group)]
    autoscales = bool(ray.get("enableInTreeAutoscaling"))
    if ray.get("authOptions", {}).get("mode") == "token":
        version = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+).*", ray.get("rayVersion", ""))
        if not version or tuple(map(int, version.groups())) < OLDEST_RAY_WITH_TOKENS:
            found.append("authOptions.mode token needs a rayVersion of at least 2.52.0")
    if autoscales and ray.get("autoscalerOptions", {}).get("version") == "v2":
        found += [
            f"{name}: autoscaler v2 needs restartPolicy Never"
            for name, group in groups.items()
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never"
        ]
    return found


def _group(name: str, group: Tree) -> Iterator[str]:
    started = group.get("rayStartParams") or {}
    if not group["template"]["spec"].get("containers"):
        yield f"{name}: no container"
    if group.get("resources") and started.keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
        yield f"{name}: resources in rayStartParams and in resources"
    if "labels" in started:
        yield f"{name}: labels in rayStartParams"
    if "replicas" in group and not (
        group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    ):
        yield f"{name}: replicas {group['replicas']} not within minReplicas and maxReplicas"


def _unkept(job: Tree, config: JobConfig) -> Iterator[str]:
    """What of a config the pods cannot do: its paths must be on their volumes."""
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    claims = {v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    mounts = {
        m["mountPath"]: m for m in pod["containers"][0]["volumeMounts"] if m["name"] in claims
    }
    writable = [path for path, mount in mounts.items() if not mount.get("readOnly")]
    if not _is_below(config.run_dir, writable):
        yield f"run_dir = {config.run_dir!r}: not below {' or '.join(writable)}, it would be lost"
    if "://" not in config.data.path and not _is_below(config.data.path, list(mounts)):
        yield f"data.path = {config.data.path!r}: not below {' or '.join(mounts)}, nor a URI"


def _is_below(path: str, folders: list[str]) -> bool:
    place = PurePosixPath(posixpath.normpath(path))
    return any(place.is_relative_to(folder) for folder in folders)


def _shipped(kind: str, name: str) -> Tree:
    """Return one of the manifests that are applied as they lie."""
    for file in sorted(TEMPLATES.glob("*.yaml")):
        for manifest in yaml.safe_load_all(file.read_text()):
            if (manifest["kind"], manifest["metadata"]["name"]) == (kind, name):
                tree: Tree = json.loads(json.dumps(manifest))  # no part of it is another one, too
                return tree
    raise AlexnetError(f"{TEMPLATES}: no {kind} {name!r} to start from")


def _completed(config: JobConfig, shipped: Tree) -> JobConfig:
    """Take from the shipped config what this one leaves open about its cluster.

    Timeouts, threads and ports fit the pods; how many ranks is one question, not three.
    """
    asked = config.cluster.model_dump(exclude_unset=True)
    if asked.keys() & COUNTS:
        shipped = {key: value for key, value in shipped.items() if key not in COUNTS}
    cluster = ClusterConfig.model_validate({**shipped, **asked})
    return config.model_copy(update={"cluster": cluster})


def _set_volumes(pod: Tree, place: Place, settings: str) -> None:
    claims = {"data": place.data_claim, "runs": place.runs_claim}
    for volume in pod["volumes"]:
        if claim := claims.get(volume["name"]):
            volume["persistentVolumeClaim"]["claimName"] = claim
        if volume["name"] == "config":
            volume["configMap"]["name"] = settings


def _set_workers(ray: Tree, config: JobConfig, place: Place) -> None:
    """Make pods enough for the ranks, each with what its ranks need."""
    [group] = ray["workerGroupSpecs"]
    wanted, ranks = config.cluster, place.ranks_per_pod
    workers = wanted.max_workers or group["replicas"] * ranks
    if isinstance(wanted.workers, int):
        workers = wanted.workers
    config.check_workers(workers)
    if workers % ranks:
        raise ConfigError(f"{workers} workers do not fill pods of {ranks}: see --ranks-per-pod")
    group |= dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), workers // ranks)
    [container] = group["template"]["spec"]["containers"]
    gpus = wanted.gpus_per_worker
    if gpus == "auto":
        gpus = container["resources"]["limits"][GPU]
    for amounts in container["resources"].values():
        _set_amounts(amounts, ranks, wanted.cpus_per_worker, gpus)
    if not gpus:
        _set_without_gpus(group, math.ceil(ranks * wanted.cpus_per_worker))
    container["ports"] = _metrics_ports(wanted.metrics_port, ranks)


def _set_amounts(amounts: Tree, ranks: int, cpus: float, gpus: int) -> None:
    """What the template has for a rank, `ranks` times; no fewer CPUs than Ray sets aside."""
    amounts["cpu"] = str(ranks * max(int(amounts["cpu"]), math.ceil(cpus)))
    number = amounts["memory"].rstrip("KMGTi")
    amounts["memory"] = amounts["memory"].replace(number, str(ranks * int(number)))
    amounts[GPU] = ranks * gpus


def _set_without_gpus(group: Tree, cpus: int) -> None:
    """On any node; without GPUs to keep ranks apart, a pod offers Ray no CPUs but theirs."""
    group["groupName"] = "cpu"
    group["rayStartParams"]["num-cpus"] = str(cpus)
    pod = group["template"]["spec"]
    del pod["tolerations"]
    for amounts in pod["containers"][0]["resources"].values():
        del amounts[GPU]


def _metrics_ports(first: int, ranks: int) -> list[Tree]:
    names = ["metrics", *(f"metrics-{rank}" for rank in range(1, ranks))] if first else []
    return [{"name": name, "containerPort": first + rank} for rank, name in enumerate(names)]


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
