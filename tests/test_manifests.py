"""Whether the files below k8s/ agree with each other and with the code; pods are restricted."""

import copy
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from alexnet.config import load
from cluster.config import JobConfig
from tests.manifests import (
    K8S,
    ROOT,
    RULES,
    Manifest,
    PodTemplate,
    Tree,
    config_map,
    insecure,
    manifests,
    of_kind,
    pod_templates,
)

NAME = "app.kubernetes.io/name"
ROOMS = ["", "dev", "static"]  # where a cluster comes from

RAY_JOBS = of_kind("RayJob")
PODS = pod_templates()
POLICIES = of_kind("NetworkPolicy")

each_pod = pytest.mark.parametrize("pod", PODS, ids=str)
each_job = pytest.mark.parametrize("job", RAY_JOBS, ids=str)


def test_the_files_are_seen() -> None:
    assert len(manifests()) > 15
    assert len(RAY_JOBS) == 2
    assert {pod.component for pod in PODS} == {"head", "worker", "submitter", "prepare"}


# Restricted pods


@each_pod
def test_a_pod_is_restricted(pod: PodTemplate) -> None:
    assert insecure(pod.spec) == []
    assert pod.spec["serviceAccountName"] == of_kind("ServiceAccount")[0].name
    assert all({"requests", "limits"} <= set(c["resources"]) for c in pod.containers)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda spec: spec.update(hostNetwork=True),
        lambda spec: spec.pop("automountServiceAccountToken"),
        lambda spec: spec["securityContext"].pop("seccompProfile"),
        lambda spec: spec["securityContext"].pop("runAsNonRoot"),
        lambda spec: spec["securityContext"].update(runAsUser=0),
        lambda spec: spec["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        lambda spec: spec["containers"][0].pop("securityContext"),
        lambda spec: spec["containers"][0]["securityContext"].pop("readOnlyRootFilesystem"),
        lambda spec: spec["containers"][0]["securityContext"].pop("capabilities"),
    ],
)
def test_an_insecure_pod_is_found(break_it: Callable[[Tree], object]) -> None:
    spec = copy.deepcopy(PODS[0].spec)
    break_it(spec)
    assert insecure(spec)


def test_the_namespace_enforces_it() -> None:
    (namespace,) = of_kind("Namespace")
    labels = namespace.tree["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert of_kind("ServiceAccount")[0].tree["automountServiceAccountToken"] is False


def test_no_manifest_holds_a_secret() -> None:
    assert not of_kind("Secret")
    for pod in PODS:
        for container in pod.containers:
            for entry in container.get("env", []):
                assert "value" not in entry or not entry["name"].endswith(("TOKEN", "KEY"))


@pytest.mark.parametrize("room", ROOMS)
def test_ray_wants_a_token(room: str) -> None:
    for job in of_kind("RayJob", room):
        assert job.tree["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"
    for pod in pods_in(room) if room == "static" else []:
        env = {entry["name"]: entry for entry in pod.containers[0]["env"]}
        assert env["RAY_AUTH_MODE"]["value"] == "token"
        assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "alexnet-token"


# The files agree


def shipped_config(tmp_path: Path, *overrides: str) -> JobConfig:
    path = tmp_path / "config.yaml"
    path.write_text(config_map("alexnet-config")["config.yaml"])
    return load(JobConfig, path, overrides)


def pods_in(room: str, component: str | None = None) -> list[PodTemplate]:
    found = [pod for pod in PODS if str(Path(pod.owner.file).parent) == (room or ".")]
    return [pod for pod in found if component in (None, pod.component)]


def worker_count(room: str) -> int:
    if room == "static":
        (workers,) = [d for d in of_kind("Deployment", room) if "worker" in d.name]
        return int(workers.tree["spec"]["replicas"])
    (job,) = of_kind("RayJob", room)
    groups = job.tree["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return sum(int(group["replicas"]) for group in groups)


def ports(pod: PodTemplate) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in pod.containers[0]["ports"]}


def test_all_pods_have_the_image_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {container["image"] for pod in PODS for container in pod.containers}
    assert images == {f"alexnet:{version}"}


@each_job
def test_ray_has_the_version_of_the_image(job: Manifest) -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (ray,) = [each.partition("==")[2] for each in required if each.startswith("ray[")]
    assert job.tree["spec"]["rayClusterSpec"]["rayVersion"] == ray


def test_the_config_learns_what_the_embedded_default_does(tmp_path: Path) -> None:
    shipped = shipped_config(tmp_path).model_dump(exclude={"run_dir", "cluster"})
    default = load(JobConfig, ROOT / "configs" / "smoke.yaml").model_dump(
        exclude={"run_dir", "cluster"}
    )
    del shipped["data"]["path"], default["data"]["path"]
    assert shipped == default


@each_job
def test_the_entrypoint_is_a_command_that_the_config_bears(job: Manifest, tmp_path: Path) -> None:
    words = job.tree["spec"]["entrypoint"].split()
    assert words[:3] == ["alexnet", "train", "/config/config.yaml"]
    wants_gpus = shipped_config(tmp_path, *words[3:]).cluster.gpus_per_worker
    (pod,) = pods_in(str(Path(job.file).parent).removeprefix("."), "worker")
    assert pod.containers[0]["resources"]["limits"].get("nvidia.com/gpu", 0) == wants_gpus


@pytest.mark.parametrize("room", ROOMS)
def test_there_are_as_many_workers_as_the_config_takes(room: str, tmp_path: Path) -> None:
    config = shipped_config(tmp_path)
    assert config.cluster.max_workers == worker_count(room)
    config.check_workers(worker_count(room))


def test_a_rank_has_a_thread_for_each_cpu_of_its_pod(tmp_path: Path) -> None:
    for job, room in zip(of_kind("RayJob"), ("", "dev"), strict=True):
        words = job.tree["spec"]["entrypoint"].split()
        (pod,) = pods_in(room, "worker")
        cpus = int(pod.containers[0]["resources"]["limits"]["cpu"])
        assert shipped_config(tmp_path, *words[3:]).cluster.threads_per_worker == cpus


@each_job
def test_no_rank_is_placed_on_a_head(job: Manifest) -> None:
    head = job.tree["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_no_rank_is_placed_on_a_static_head() -> None:
    (head,) = pods_in("static", "head")
    assert "--num-cpus=0" in head.containers[0]["args"]


def test_metrics_are_where_they_are_asked_for(tmp_path: Path) -> None:
    config = shipped_config(tmp_path).cluster
    assert config.metrics_host == "0.0.0.0"
    workers = [pod for pod in PODS if pod.component == "worker"]
    assert {ports(pod)["metrics"] for pod in workers} == {config.metrics_port}
    (monitor,) = of_kind("PodMonitor")
    asked = [endpoint["port"] for endpoint in monitor.tree["spec"]["podMetricsEndpoints"]]
    assert asked == ["metrics", *(f"metrics-{rank}" for rank in range(1, 8))]
    (opening,) = policy("scraper-to-metrics")["ingress"][0]["ports"]
    assert (opening["port"], opening["endPort"]) == (config.metrics_port, config.metrics_port + 7)


def test_ray_is_where_it_is_asked_for() -> None:
    heads = [pod for pod in PODS if pod.component == "head"]
    assert all(ports(pod) == {"gcs-server": 6379, "dashboard": 8265} for pod in heads)
    (service,) = of_kind("Service")
    assert {p["name"]: p["port"] for p in service.tree["spec"]["ports"]} == ports(heads[0])
    (worker,) = pods_in("static", "worker")
    assert f"--address={service.name}:6379" in worker.containers[0]["command"]
    (head,) = pods_in("static", "head")
    assert head.containers[0]["name"] == service.name
    assert {"--port=6379", "--dashboard-port=8265"} <= set(head.containers[0]["args"])
    (opening,) = policy("operator-to-head")["ingress"][0]["ports"]
    assert opening["port"] == 8265


def policy(name: str) -> Tree:
    (found,) = [each for each in POLICIES if each.name == name]
    return dict(found.tree["spec"])


def selects(selector: Tree, labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    among = all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", [])
    )
    return wanted and among


def test_policies_close_all_and_open_what_they_name() -> None:
    deny = policy("default-deny")
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    opened = {
        each.name: {
            pod.component for pod in PODS if selects(policy(each.name)["podSelector"], pod.labels)
        }
        for each in POLICIES
        if each.name != "default-deny"
    }
    assert opened == {
        "job-pods-among-themselves": {"head", "worker", "submitter"},
        "names": {"head", "worker", "submitter", "prepare"},
        "operator-to-head": {"head"},
        "scraper-to-metrics": {"worker"},
    }
    among = policy("job-pods-among-themselves")
    assert among["ingress"][0]["from"] == [{"podSelector": among["podSelector"]}]
    assert among["egress"][0]["to"] == [{"podSelector": among["podSelector"]}]


@pytest.mark.parametrize("manifest", of_kind("Deployment"), ids=str)
def test_a_deployment_selects_its_own_pods(manifest: Manifest) -> None:
    spec = manifest.tree["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]


def test_services_and_monitors_select_what_they_are_for() -> None:
    (service,), (monitor,) = of_kind("Service"), of_kind("PodMonitor")
    assert {
        p.component for p in PODS if service.tree["spec"]["selector"].items() <= p.labels.items()
    } == {"head"}
    assert {p.component for p in PODS if selects(monitor.tree["spec"]["selector"], p.labels)} == {
        "worker"
    }


@pytest.mark.parametrize("manifest", manifests(), ids=str)
def test_everything_bears_the_name_and_lies_in_the_namespace(manifest: Manifest) -> None:
    everywhere = ("Namespace", "PriorityClass", "ResourceFlavor", "ClusterQueue")
    meta = manifest.tree["metadata"]
    assert meta["labels"][NAME] == "alexnet"
    assert meta.get("namespace") == (None if manifest.kind in everywhere else "alexnet")


@each_pod
def test_what_a_pod_refers_to_is_there(pod: PodTemplate) -> None:
    room = str(Path(pod.owner.file).parent).removeprefix(".")
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    claims = {
        each.name for each in of_kind("PersistentVolumeClaim", "dev" if room == "dev" else "")
    }
    maps = {each.name for each in of_kind("ConfigMap", "")}
    for volume in volumes.values():
        assert volume.get("persistentVolumeClaim", {}).get("claimName") in {None, *claims}
        assert volume.get("configMap", {}).get("name") in {None, *maps}
    for container in pod.containers:
        assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
    assert pod.spec.get("priorityClassName") in {None, of_kind("PriorityClass")[0].name}


@pytest.mark.parametrize("component", ["head", "worker"])
def test_a_job_can_write_where_it_must_and_nowhere_else(component: str, tmp_path: Path) -> None:
    config = shipped_config(tmp_path)
    for pod in (pod for pod in PODS if pod.component == component):
        mounts = {
            m["mountPath"]: m.get("readOnly", False) for m in pod.containers[0]["volumeMounts"]
        }
        assert {path for path, read_only in mounts.items() if not read_only} == {
            "/runs",
            "/tmp",
            "/dev/shm",
        }
        assert {"/config", "/data", "/scripts"} <= set(mounts)
        assert config.run_dir.startswith("/runs/")
        assert config.data.path.startswith("/runs/" if config.data.source else "/data/")


def test_a_store_of_objects_fits_into_shared_memory() -> None:
    """Ray would move it to the disk, and say so only in a log."""
    size = {"Mi": 1 << 20, "Gi": 1 << 30}
    for job in RAY_JOBS:
        cluster = job.tree["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
            limit = volumes["shm"]["emptyDir"]["sizeLimit"]
            room = int(limit[:-2]) * size[limit[-2:]]
            assert int(group["rayStartParams"]["object-store-memory"]) < room


def test_dev_and_static_replace_what_they_must() -> None:
    """They are applied on top of k8s/'s own files, of which they replace claims and the job."""
    top, dev = (
        {claim.name for claim in of_kind("PersistentVolumeClaim", room)} for room in ("", "dev")
    )
    assert top == dev
    assert {job.name for job in RAY_JOBS} == {"alexnet"}
    assert all(not of_kind("ConfigMap", room) for room in ("dev", "static"))


def test_files_can_be_applied_as_a_folder_and_one_after_the_other() -> None:
    """kubectl takes a folder's files in order of their names, and stumbles over other tools'."""
    for path in K8S.rglob("*"):
        if path.is_file() and path.name != "README.md" and RULES not in path.parents:
            assert re.fullmatch(r"\d\d-[a-z-]+\.yaml", path.name), path
            lines = path.read_text().splitlines()
            first = next(line for line in lines if line and not line.startswith("#"))
            assert first == "---", f"{path}: `cat` would join it to the file before"
    assert {each.kind for each in manifests() if each.is_custom and "/" not in each.file} == {
        "RayJob"
    }


def test_kueue_has_room_for_the_job() -> None:
    (queue,) = of_kind("ClusterQueue")
    (group,) = queue.tree["spec"]["resourceGroups"]
    quota = {r["name"]: amount(r["nominalQuota"]) for r in group["flavors"][0]["resources"]}
    assert list(quota) == group["coveredResources"]
    needed = dict.fromkeys(quota, 0.0)
    for pod in pods_in(""):
        times = worker_count("") if pod.component == "worker" else 1
        for name, wanted in pod.containers[0]["resources"]["requests"].items():
            needed[name] += times * amount(wanted)  # a KeyError: Kueue would never admit it
    assert all(needed[name] <= quota[name] for name in quota)
    assert of_kind("LocalQueue")[0].tree["spec"]["clusterQueue"] == queue.name


def amount(quantity: str | int) -> float:
    units = {"m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(quantity)).groups()  # type: ignore[union-attr]
    return float(number) * units.get(unit, 1.0)


def test_prepare_writes_where_training_is_told_to_read() -> None:
    (pod,) = [pod for pod in PODS if pod.component == "prepare"]
    command = pod.spec["containers"][0]["command"]
    assert command[:2] == ["alexnet", "prepare"]
    assert f"path: {command[3]}`" in config_map("alexnet-config")["config.yaml"]


# Ends


def test_a_stop_has_time_for_a_checkpoint(tmp_path: Path) -> None:
    stop = shipped_config(tmp_path).cluster.stop_timeout
    (waits,) = re.findall(r'"\$seconds" -lt (\d+)', config_map("alexnet-scripts")["pre-stop.sh"])
    for pod in PODS:
        if pod.component not in ("head", "worker"):
            continue
        hook = pod.containers[0]["lifecycle"]["preStop"]["exec"]["command"]
        assert hook == ["sh", "/scripts/pre-stop.sh"]
        assert stop < int(waits) < pod.spec["terminationGracePeriodSeconds"]
        if pod.component == "head":
            env = {entry["name"]: entry.get("value") for entry in pod.containers[0]["env"]}
            assert int(env["RAY_JOB_STOP_WAIT_TIME_S"]) > max(stop, 3)
