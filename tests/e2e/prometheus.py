"""A Prometheus at an address of its own in the pods' network."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests import prometheus as scraping
from tests.e2e.pods import IMAGE, NETWORK, PREFIX, PROMETHEUS, podman

NAME = f"{PREFIX}prometheus"


@contextmanager
def prometheus(
    folder: Path, targets: Sequence[str], run: str
) -> Iterator[tuple[scraping.Prometheus, tuple[str, ...]]]:
    """Scrape ranks of a run; yields Prometheus, and what a command begins with in its network."""
    # A pod that does nothing, for its network.
    network = [f"--network={NETWORK}", f"--ip={PROMETHEUS}"]
    podman("run", "--detach", "--name", NAME, *network, IMAGE, "sleep", "infinity")
    try:
        pid = podman("inspect", "--format", "{{.State.Pid}}", NAME).stdout.strip()
        inside = ("nsenter", "--target", pid, "--net")
        address = f"{PROMETHEUS}:9090"
        with scraping.prometheus(folder, address, targets, {"run": run}, inside=inside) as running:
            yield running, inside
    finally:
        podman("rm", "--force", "--time=0", NAME)
