"""What Kubernetes and the operators would refuse is found here: there is none to ask.

`tests/schemas/` says what KubeRay and the Prometheus operator accept, `kubernetes-validate` what
Kubernetes does.
"""

import copy
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions, major_minor

from alexnet.config import load
from cluster.config import JobConfig
from cluster.render import Place, pods, problems, render
from tests.manifests import (
    ROOT,
    Manifest,
    PodTemplate,
    Tree,
    insecure,
    manifests,
    of_kind,
    pod_templates,
)

SCHEMAS = ROOT / "tests" / "schemas"
NEWEST = list(dict.fromkeys(major_minor(version) for version in all_versions()))[-3:]
WITHOUT_SCHEMA = ("kueue.x-k8s.io/v1beta2",)

each_job = pytest.mark.parametrize("job", of_kind("RayJob"), ids=str)


# Kubernetes' own schema


@pytest.mark.parametrize("version", NEWEST)
@pytest.mark.parametrize("manifest", [m for m in manifests() if not m.is_custom], ids=str)
def test_kubernetes_takes_it(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest.tree, version, strict=True)


@pytest.mark.parametrize("version", NEWEST)
@pytest.mark.parametrize("pod", pod_templates(), ids=str)
def test_kubernetes_takes_its_pods(pod: PodTemplate, version: str) -> None:
    """Those in a RayJob too, as the operator creates them."""
    check_pod(pod.tree, version)


def check_pod(template: Tree, version: str) -> None:
    tree = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": template}
    kubernetes_validate.validate(tree, version, strict=True)


@pytest.mark.parametrize("version", NEWEST)
def test_kubernetes_refuses_an_unknown_field(version: str) -> None:
    tree = copy.deepcopy(of_kind("NetworkPolicy")[0].tree)
    tree["spec"]["podSelektor"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(tree, version, strict=True)


# Custom resources


@cache
def schemas() -> dict[tuple[str, str], Tree]:
    """What each custom resource may hold, by its version and kind; unknown fields are refused."""
    found = {}
    for path in sorted(SCHEMAS.glob("*.yaml")):
        tree = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        group, kind = tree["spec"]["group"], tree["spec"]["names"]["kind"]
        for version in tree["spec"]["versions"]:
            schema = closed(version["schema"]["openAPIV3Schema"])
            found[f"{group}/{version['name']}", kind] = schema
    return found


def closed(schema: Any) -> Any:
    """The schema with `additionalProperties: false` wherever it names properties."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields")
    if (
        isinstance(schema.get("properties"), dict)
        and schema.get("type") == "object"
        and not is_open
    ):
        inner.setdefault("additionalProperties", False)
    return inner


def check_custom(tree: Tree) -> None:
    jsonschema.Draft202012Validator(schemas()[tree["apiVersion"], tree["kind"]]).validate(tree)


def custom() -> list[Manifest]:
    return [m for m in manifests() if m.is_custom and m.tree["apiVersion"] not in WITHOUT_SCHEMA]


@pytest.mark.parametrize("manifest", custom(), ids=str)
def test_the_operators_take_it(manifest: Manifest) -> None:
    check_custom(manifest.tree)


@each_job
def test_the_cluster_of_a_job_could_stand_alone(job: Manifest) -> None:
    spec = job.tree["spec"]["rayClusterSpec"]
    check_custom({"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {}, "spec": spec})


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("RayJob", ["spec"]),
        ("RayJob", ["spec", "rayClusterSpec", "authOptions"]),
        ("RayJob", ["spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec"]),
        ("PodMonitor", ["spec", "podMetricsEndpoints", 0]),
        ("PrometheusRule", ["spec", "groups", 0, "rules", 0]),
    ],
)
def test_the_operators_refuse_an_unknown_field(kind: str, path: list[str | int]) -> None:
    tree: Any = copy.deepcopy(of_kind(kind)[0].tree)
    inner = tree
    for part in path:
        inner = inner[part]
    inner["unknown"] = 1
    with pytest.raises(jsonschema.ValidationError, match="unknown"):
        check_custom(tree)


@each_job
def test_kuberay_has_nothing_to_say_besides(job: Manifest) -> None:
    """Its own rules are in `cluster/render.py`; tests/test_render.py breaks each of them."""
    assert problems(job.tree) == []
    assert "generateName" not in job.tree["metadata"]  # cannot be applied
    assert not job.tree["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling")


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["cluster.workers=2"], Place(name="cats", queue="gpus", image="registry/alexnet:1")),
        (["cluster.workers=2"], Place(ranks_per_pod=2, data_claim="photos")),
        (["cluster.workers=2", "cluster.gpus_per_worker=0"], Place()),
    ],
)
def test_what_render_writes_is_taken_as_well(overrides: list[str], place: Place) -> None:
    paths = ["run_dir=/runs/cats", "data.path=/data/cats"]
    config = load(JobConfig, ROOT / "configs" / "catdog.yaml", [*paths, *overrides])
    settings, job = (
        Manifest("rendered", tree) for tree in yaml.safe_load_all(render(config, place))
    )
    kubernetes_validate.validate(settings.tree, NEWEST[-1], strict=True)
    check_custom(job.tree)
    for tree in pods(job.tree):
        check_pod(tree, NEWEST[-1])
        assert insecure(tree["spec"]) == []
