"""A real Prometheus, which scrapes what it is told to and is asked through its own API."""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.clusters import wait_until

Series = list[tuple[dict[str, str], float]]


def why_not() -> str | None:
    """Return why there is none, in one line."""
    return None if shutil.which("prometheus") else "no prometheus here: apt-get install prometheus"


@dataclass(frozen=True, kw_only=True)
class Prometheus:
    """One that runs."""

    address: str  # host:port

    def series(self, expression: str) -> Series:
        """Return labels and value of all that an expression selects."""
        result = self._ask(f"query?query={urllib.parse.quote(expression)}")["result"]
        return [(each["metric"], float(each["value"][1])) for each in result]

    def query(self, expression: str) -> dict[str, float]:
        """Return the value of each instance."""
        return {labels["instance"]: value for labels, value in self.series(expression)}

    def alerts(self) -> list[dict[str, Any]]:
        """Return its alerting rules, each with its state and the health of its last evaluation."""
        groups = self._ask("rules?type=alert")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def is_ready(self) -> bool:
        """Tell whether it answers."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def _ask(self, question: str) -> dict[str, Any]:
        url = f"http://{self.address}/api/v1/{question}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            data: dict[str, Any] = json.load(answer)["data"]
        return data


@contextmanager
def prometheus(
    folder: Path,
    address: str,
    targets: Sequence[str],
    labels: Mapping[str, str],
    rules: Sequence[Path] = (),
    inside: Sequence[str] = (),
) -> Iterator[Prometheus]:
    """Scrape `targets` every second for as long as this lasts, and evaluate `rules`.

    Args:
        folder: For its files.
        address: host:port at which it listens.
        targets: host:port of each rank.
        labels: What every series of theirs gets besides, as a PodMonitor gives them.
        rules: Files of rules.
        inside: What a command begins with that is to run in another network than this one.
    """
    scrape = {"targets": list(targets), "labels": dict(labels)}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(file) for file in rules],
        "scrape_configs": [{"job_name": "alexnet", "static_configs": [scrape]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [*inside, "prometheus", f"--config.file={folder}/prometheus.yml"]
    command += [f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            running = Prometheus(address=address)
            wait_until(running.is_ready, 30, f"Prometheus at {address}")
            yield running
        finally:
            process.terminate()
            process.wait(timeout=30)
