"""The cluster that the tests of this folder share. Without podman they say so and are skipped."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.pods import Pods, volumes_and_network, why_not


@pytest.fixture(scope="session")
def image() -> None:
    """Skip, unless pods of the image can be had."""
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def claims(image: None) -> Iterator[Callable[[str], Path]]:
    """Where the volume of a claim is."""
    with volumes_and_network() as place:
        yield place


@pytest.fixture(scope="module")
def pods(claims: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    """A head and two workers, ready for jobs."""
    with Pods(tmp_path_factory.mktemp("pods")) as running:
        yield running
