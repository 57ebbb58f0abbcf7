"""The walls of these tests say what the NetworkPolicies say."""

import shutil
import subprocess

import pytest

from tests.e2e.pods import K8S, manifests
from tests.e2e.walls import Peer, wall

POLICIES = manifests(K8S / "20-network.yaml")
OURS = {"app.kubernetes.io/name": "alexnet"}
HEAD = {**OURS, "app.kubernetes.io/component": "head"}
WORKER = {**OURS, "app.kubernetes.io/component": "worker"}
PREPARE = {**OURS, "app.kubernetes.io/component": "prepare"}
OPERATOR = {"app.kubernetes.io/component": "kuberay-operator"}
SCRAPER = {"app.kubernetes.io/name": "prometheus"}

TABLE = [
    (HEAD, WORKER, "alexnet", [""]),
    (WORKER, WORKER, "alexnet", [""]),
    (WORKER, PREPARE, "alexnet", []),
    (PREPARE, WORKER, "alexnet", []),
    (HEAD, WORKER, "theirs", []),  # the labels of ours, in a namespace that is not
    (HEAD, OPERATOR, "operators", ["tcp dport 8265 "]),
    (WORKER, OPERATOR, "operators", []),
    (WORKER, SCRAPER, "monitoring", ["tcp dport 9400-9407 "]),
    (WORKER, SCRAPER, "theirs", []),
    (HEAD, SCRAPER, "monitoring", []),
    (WORKER, {}, "monitoring", []),
]


@pytest.mark.parametrize(("pod", "peer", "namespace", "ports"), TABLE)
def test_who_gets_where(
    pod: dict[str, str], peer: dict[str, str], namespace: str, ports: list[str]
) -> None:
    rules = wall(POLICIES, pod, [Peer(address="10.0.0.9", labels=peer, namespace=namespace)])
    for each in ports:
        assert f"ip saddr 10.0.0.9 {each}accept" in rules
    assert rules.count("ip saddr 10.0.0.9") == len(ports)
    assert rules.count("reject") == 2  # of what comes, and of what goes


def test_a_pod_that_no_policy_selects_has_no_wall() -> None:
    others = [policy for policy in POLICIES if policy["spec"]["podSelector"]]
    assert "reject" not in wall(others, {"app": "another"}, [])


@pytest.mark.container
@pytest.mark.slow
def test_nft_takes_the_rules() -> None:
    if not shutil.which("nft"):
        pytest.skip("no nft here: apt-get install nftables")
    rules = wall(
        POLICIES, WORKER, [Peer(address="10.0.0.9", labels=SCRAPER, namespace="monitoring")]
    )
    subprocess.run(["nft", "--check", "--file", "-"], input=rules, text=True, check=True)
