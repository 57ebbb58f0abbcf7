"""`alexnet render`: the shipped RayJob, for another config; nothing that KubeRay would refuse."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alexnet.config import load
from alexnet.errors import ConfigError
from cluster.config import JobConfig
from cluster.render import GPU, INSTANCE, QUEUE, TEMPLATES, Place, pods, problems, render
from tests.clusters import ROOT

CATDOG = ROOT / "configs" / "catdog.yaml"
PATHS = ("run_dir=/runs/cats", "data.path=/data/cats")
BATCH = ("train.global_batch=384", "train.micro_batch=16")  # 24 virtual workers

Tree = dict[str, Any]


def shipped() -> Tree:
    """The RayJob that is applied as it lies."""
    manifests = [m for file in TEMPLATES.glob("*.yaml") for m in yaml.safe_load_all(file.open())]
    [job] = [manifest for manifest in manifests if manifest["kind"] == "RayJob"]
    return dict(job)


def config(*overrides: str) -> JobConfig:
    return load(JobConfig, CATDOG, [*PATHS, *BATCH, *overrides])


def rendered(*overrides: str, **place: Any) -> tuple[Tree, Tree]:
    settings, job = yaml.safe_load_all(render(config(*overrides), Place(**place)))
    assert (settings["kind"], job["kind"]) == ("ConfigMap", "RayJob")
    return settings, job


def worker(job: Tree) -> tuple[Tree, Tree]:
    """The group of workers, and its container."""
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return group, group["template"]["spec"]["containers"][0]


def test_what_is_shipped_stays_as_it_is() -> None:
    job = shipped()
    workers = worker(job)[0]["replicas"]
    assert rendered(f"cluster.workers={workers}")[1] == job
    assert problems(job) == []


def test_the_config_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    overrides = ("cluster.workers=3", "cluster.stop_timeout=20", "schedule.learning_rate=1e-5")
    settings, _ = rendered(*overrides)
    file = tmp_path / "config.yaml"
    file.write_text(settings["data"]["config.yaml"])
    got, asked = load(JobConfig, file), config(*overrides)
    assert got.model_copy(update={"cluster": asked.cluster}) == asked
    assert (got.cluster.workers, got.cluster.stop_timeout) == (3, 20)


def test_what_a_config_leaves_open_about_the_cluster_is_as_shipped() -> None:
    shipped_settings = said(yaml.safe_load((TEMPLATES / "30-config.yaml").read_text()))
    assert shipped_settings["metrics_host"] == "0.0.0.0"
    assert said(rendered()[0]) == shipped_settings
    counts = {"workers", "min_workers", "max_workers"}
    assert counts <= shipped_settings.keys()
    rest = {key: value for key, value in shipped_settings.items() if key not in counts}
    assert said(rendered("cluster.min_workers=4")[0]) == {**rest, "min_workers": 4}
    assert said(rendered("cluster.workers=4")[0]) == {**rest, "workers": 4}


def said(settings: Tree) -> Tree:
    """What the config in a ConfigMap says of the cluster."""
    return dict(yaml.safe_load(settings["data"]["config.yaml"])["cluster"])


@pytest.mark.parametrize(
    ("overrides", "ranks_per_pod", "replicas", "gpus", "cores"),
    [
        (["cluster.workers=3"], 1, 3, 1, 1),
        (["cluster.workers=24"], 8, 3, 8, 8),
        (["cluster.workers=6", "cluster.gpus_per_worker=2"], 3, 2, 6, 3),
        (["cluster.workers=2", "cluster.gpus_per_worker=0"], 1, 2, 0, 1),
        (["cluster.max_workers=12"], 4, 3, 4, 4),
        (["cluster.workers=2", "cluster.cpus_per_worker=7.5"], 2, 1, 2, 15),
    ],
)
def test_pods_have_room_for_the_ranks(
    overrides: list[str], ranks_per_pod: int, replicas: int, gpus: int, cores: int
) -> None:
    _, job = rendered(*overrides, ranks_per_pod=ranks_per_pod)
    group, container = worker(job)
    assert {group[k] for k in ("replicas", "minReplicas", "maxReplicas")} == {replicas}
    for amounts in container["resources"].values():
        assert int(amounts.get(GPU, 0)) == gpus
        assert int(amounts["cpu"]) >= cores
    assert container["resources"]["limits"]["memory"] == times(
        worker(shipped())[1]["resources"]["limits"]["memory"], ranks_per_pod
    )
    ports = {p["name"]: p["containerPort"] for p in container["ports"] if "metrics" in p["name"]}
    assert sorted(ports.values()) == list(range(9400, 9400 + ranks_per_pod))
    assert ports["metrics"] == 9400
    assert ("nvidia" in yaml.safe_dump(job)) == (gpus > 0)
    assert group["rayStartParams"].get("num-cpus") == (None if gpus else str(cores))


def times(quantity: str, factor: int) -> str:
    return f"{int(quantity.removesuffix('Gi')) * factor}Gi"


def test_name_image_queue_and_claims_are_set_everywhere() -> None:
    settings, job = rendered(
        name="cats", image="registry.example:5000/alexnet@sha256:" + "a" * 64,
        queue="gpus", data_claim="photos", runs_claim="scratch",
    )  # fmt: skip
    assert job["metadata"]["name"] == "cats"
    assert settings["metadata"]["name"] == "cats-config"
    assert job["metadata"]["labels"][QUEUE] == "gpus"
    text = yaml.safe_dump(job)
    for gone in ("alexnet:0", "alexnet-config", "alexnet-data", "alexnet-runs"):
        assert gone in yaml.safe_dump(shipped())
        assert gone not in text
    assert [pod["metadata"]["labels"][INSTANCE] for pod in pods(job)] == ["cats"] * 3
    for pod in pods(job):
        images = {container["image"] for container in pod["spec"]["containers"]}
        assert images == {"registry.example:5000/alexnet@sha256:" + "a" * 64}


@pytest.mark.parametrize(
    ("overrides", "place", "expected"),
    [
        ([], {"name": "Cats"}, "--name 'Cats': expected small letters"),
        ([], {"name": "c" * 48}, "has more than 47 characters"),
        ([], {"image": "al exnet"}, "--image 'al exnet': expected registry/name:tag"),
        ([], {"queue": "my queue"}, "--queue 'my queue'"),
        (["cluster.workers=6"], {"ranks_per_pod": 4}, "6 workers do not fill pods of 4"),
        (["cluster.workers=25"], {}, "1 to 24 workers"),
        (["cluster.max_workers=25"], {}, "1 to 24 workers"),
        (["run_dir=runs/cats"], {}, "run_dir = 'runs/cats': not below /runs"),
        (["run_dir=/runs/../tmp"], {}, "run_dir = '/runs/../tmp': not below /runs"),
        (["run_dir=/data/cats"], {}, "run_dir = '/data/cats': not below /runs"),
        (["data.path=/tmp/cats"], {}, "data.path = '/tmp/cats': not below"),
    ],
)
def test_what_cannot_be_is_refused(
    overrides: list[str], place: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        render(config(*overrides), Place(**place))
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_data_may_be_far() -> None:
    settings, _ = rendered("data.path=s3://photos/cats?region=eu-west-1")
    assert "s3://photos/cats?region=eu-west-1" in settings["data"]["config.yaml"]


def broken(change: Callable[[Tree, Tree], object]) -> list[str]:
    """What is found in the shipped RayJob after `change` of it and its cluster."""
    job = copy.deepcopy(shipped())
    change(job, job["spec"]["rayClusterSpec"])
    return problems(job)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda job, ray: job["metadata"].update(name="a" * 48), "more than 47"),
        (lambda job, ray: job["metadata"].update(name="1a"), "DNS-1035"),
        (lambda job, ray: job["spec"].pop("rayClusterSpec"), "one of them"),
        (lambda job, ray: job["spec"].update(clusterSelector={"a": "b"}), "one of them"),
        (lambda job, ray: job["spec"].update(ttlSecondsAfterFinished=-1), "negative"),
        (lambda job, ray: job["spec"].update(shutdownAfterJobFinishes=False), "ttlSeconds"),
        (
            lambda job, ray: job["spec"].update(shutdownAfterJobFinishes=False, suspend=True),
            "suspend needs",
        ),
        (lambda job, ray: job["spec"].update(activeDeadlineSeconds=0), "activeDeadline"),
        (lambda job, ray: job["spec"].update(backoffLimit=-1), "backoffLimit is negative"),
        (
            lambda job, ray: job["spec"].update(submissionMode="InteractiveMode", backoffLimit=2),
            "InteractiveMode",
        ),
        (
            lambda job, ray: job["spec"].update(submissionMode="SidecarMode"),
            "SidecarMode",
        ),
        (lambda job, ray: ray.update(rayVersion="2.51.9"), "2.52.0"),
        (lambda job, ray: ray.pop("rayVersion"), "2.52.0"),
        (
            lambda job, ray: (
                ray.update(enableInTreeAutoscaling=True, autoscalerOptions={"version": "v2"}),
                ray["headGroupSpec"]["template"]["spec"].update(restartPolicy="Always"),
            ),
            "head: autoscaler v2 needs restartPolicy Never",
        ),
        (
            lambda job, ray: (
                job["metadata"].setdefault("labels", {}).update({QUEUE: "gpus"}),
                ray.update(enableInTreeAutoscaling=True),
            ),
            "a queue allows no enableInTreeAutoscaling",
        ),
        (
            lambda job, ray: ray["headGroupSpec"]["template"]["spec"].update(containers=[]),
            "head: no container",
        ),
        (
            lambda job, ray: ray["headGroupSpec"].update(
                rayStartParams={"num-cpus": "0"}, resources={"CPU": "0"}
            ),
            "head: resources in rayStartParams",
        ),
        (
            lambda job, ray: ray["headGroupSpec"].update(rayStartParams={"labels": "a=b"}),
            "head: labels",
        ),
        (lambda job, ray: ray["workerGroupSpecs"][0].update(maxReplicas=0), "not within"),
    ],
)
def test_what_kuberay_refuses_is_found(
    change: Callable[[Tree, Tree], object], expected: str
) -> None:
    assert expected in "; ".join(broken(change))


def alexnet(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "cluster", "render", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_command_prints_all_or_nothing() -> None:
    good = alexnet(str(CATDOG), *PATHS, "cluster.workers=2", "--queue", "gpus", "--name", "cats")
    assert good.returncode == 0, good.stderr
    kinds = [manifest["kind"] for manifest in yaml.safe_load_all(good.stdout)]
    assert kinds == ["ConfigMap", "RayJob"]
    bad = alexnet(str(CATDOG))
    assert (bad.returncode, bad.stdout, len(bad.stderr.splitlines())) == (2, "", 1)
    assert "run_dir = 'runs/catdog': not below /runs, it would be lost" in bad.stderr
