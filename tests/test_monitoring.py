"""Alerts and panels: on metrics that there are, each alert with a case and a place to read on.

Where there is a Prometheus (Debian: `apt-get install prometheus`), it scrapes a run and is asked
what the panels ask, and its promtool runs the alerts' cases.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from alexnet.trainer import Phases
from cluster.metrics import Metrics
from tests.clusters import free_ports, start, wait_until
from tests.manifests import ROOT, RULES, Tree, of_kind
from tests.prometheus import Prometheus, prometheus, why_not

FOREIGN = {"kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"}
WANTED = (
    "Stalled",
    "BadNumbers",
    "InputBound",
    "Straggler",
    "RankMissing",
    "RestartLoop",
    "CheckpointStale",
    "CheckpointFailures",
    "DiskFillingUp",
)

# On a busy machine their condition may hold for a while in a run that has nothing wrong with it.
OF_PACE = {"AlexnetInputBound", "AlexnetStraggler"}

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed"
)


def groups() -> list[Tree]:
    tree = yaml.safe_load((RULES / "alerts.yaml").read_text())
    return list(tree["groups"])


def alerts() -> list[Tree]:
    return [rule for group in groups() for rule in group["rules"]]


def cases() -> list[Tree]:
    return list(yaml.safe_load((RULES / "alerts-test.yaml").read_text())["tests"])


def panels() -> list[Tree]:
    (board,) = [each for each in of_kind("ConfigMap") if each.name == "alexnet-dashboard"]
    return list(json.loads(board.tree["data"]["alexnet.json"])["panels"])


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def exported() -> set[str]:
    """The names that a rank answers with."""
    metrics = Metrics(0, 2, 32, Phases(), lambda: 0)
    metrics.tell_wall_seconds(dict)
    names = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    return {name for name in names if not name.endswith("_created")}


def names_in(expression: str) -> set[str]:
    without_labels = re.sub(r"\{[^}]*\}", "", expression)
    return set(re.findall(r"\b(?:alexnet|kubelet)_\w+", without_labels))


def test_the_operator_is_given_the_rules_that_are_tested() -> None:
    (rule,) = of_kind("PrometheusRule")
    assert rule.tree["spec"]["groups"] == groups()


def test_there_is_an_alert_for_each_thing_that_must_not_go_unseen() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len(set(names)) == len(names)
    assert {f"Alexnet{name}" for name in WANTED} <= set(names)


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_and_where_to_read_on(alert: Tree) -> None:
    assert alert["labels"]["severity"] in ("info", "warning", "critical")
    file, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert anchor in anchors((ROOT / file).read_text())


def anchors(text: str) -> set[str]:
    """The fragments of its headings, as forges make them: small, without punctuation."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_is_on_metrics_that_there_are(alert: Tree) -> None:
    names = names_in(alert["expr"])
    assert names
    assert names <= exported() | FOREIGN


@pytest.mark.parametrize("query", queries())
def test_a_panel_is_on_metrics_that_there_are(query: str) -> None:
    names = names_in(query)
    assert names
    assert names <= exported()
    assert "$" not in query  # can be put to any Prometheus as it stands


def test_every_metric_of_a_run_is_on_the_board() -> None:
    shown = set[str]().union(*(names_in(query) for query in queries()))
    of_histograms = {name for name in exported() if name.endswith(("_sum", "_count"))}
    assert exported() - shown - of_histograms == {"alexnet_steps_total"}  # alexnet_step is


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_has_a_case_in_which_it_fires(alert: Tree) -> None:
    tested = [test for case in cases() for test in case.get("alert_rule_test", [])]
    mine = [test for test in tested if test["alertname"] == alert["alert"]]
    assert any(test.get("exp_alerts") for test in mine)
    assert any(not test.get("exp_alerts") for test in mine)


def promtool(*arguments: Any, text: str = "") -> "subprocess.CompletedProcess[str]":
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)


@needs_promtool
def test_promtool_finds_the_rules_sound() -> None:
    done = promtool("check", "rules", RULES / "alerts.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_alerts_fire_when_they_must_and_only_then() -> None:
    done = promtool("test", "rules", RULES / "alerts-test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


# A run that is scraped

CONFIG = """
run_dir: {folder}/run
data: {{path: {data}, image_size: 67}}
train: {{global_batch: 16, micro_batch: 8, epochs: 1000, log_every: 1, evaluate_every: 1}}
schedule: {{learning_rate: 0.01}}
checkpoint: {{every: 10}}
cluster: {{workers: 2, threads_per_worker: 1, metrics_port: {port}}}
"""


@dataclass(frozen=True, kw_only=True)
class Scraped:
    """A run of two ranks that goes on for as long as it is needed."""

    prometheus: Prometheus
    ports: tuple[int, int]
    driver: "subprocess.Popen[bytes]"
    log: Path


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Scraped]:
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("scraped")
    port, other, listen = free_ports(3)
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(folder=folder, data=digits, port=port))
    targets = [f"127.0.0.1:{port}", f"127.0.0.1:{other}"]
    rules = [RULES / "alerts.yaml"]
    log = folder / "log"
    driver = start(["train", str(config)], dict(os.environ), log)
    try:
        with prometheus(folder, f"127.0.0.1:{listen}", targets, {"run": "a"}, rules) as scraper:
            yield Scraped(prometheus=scraper, ports=(port, other), driver=driver, log=log)
    finally:
        driver.send_signal(signal.SIGTERM)
        driver.wait(timeout=60)


def answers(scraped: Scraped, query: str) -> bool:
    """Tell whether a query selects something, and numbers alone."""
    assert scraped.driver.poll() is None, scraped.log.read_text()
    values = [value for _, value in scraped.prometheus.series(query)]
    return bool(values) and all(map(math.isfinite, values))


@pytest.mark.ray
@pytest.mark.parametrize("query", queries())
def test_a_panel_shows_a_run(scraped: Scraped, query: str) -> None:
    wait_until(lambda: answers(scraped, query), 240, query)


@pytest.mark.ray
def test_every_rank_is_scraped_and_none_is_alarming(scraped: Scraped) -> None:
    wait_until(lambda: answers(scraped, "alexnet_checkpoint_step > 0"), 120, "a checkpoint")
    assert [value for _, value in scraped.prometheus.series("up")] == [1, 1]
    found = {rule["name"]: rule for rule in scraped.prometheus.alerts()}
    assert found.keys() == {alert["alert"] for alert in alerts()}
    assert {rule["health"] for rule in found.values()} == {"ok"}
    wait_until(lambda: not alarming(scraped) - OF_PACE, 60, "an end of the alarms")
    firing = {rule["name"] for rule in scraped.prometheus.alerts() if rule["state"] == "firing"}
    assert not firing


def alarming(scraped: Scraped) -> set[str]:
    """Return the alerts whose condition holds, whether or not it has for long enough to fire."""
    return {rule["name"] for rule in scraped.prometheus.alerts() if rule["state"] != "inactive"}


@pytest.mark.ray
@needs_promtool
def test_metrics_are_named_as_prometheus_wants_it(scraped: Scraped) -> None:
    wait_until(lambda: answers(scraped, "alexnet_step > 0"), 120, "a step")
    for port in scraped.ports:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            done = promtool("check", "metrics", text=answer.read().decode())
        assert done.returncode == 0, done.stdout + done.stderr
        assert not done.stdout + done.stderr
