"""A part of `make chaos`, for the pipeline: the rows that cost least and cover most."""

from pathlib import Path

import pytest

from benchmarks.faults import attempts, launches, storage
from benchmarks.faults.matrix import FAULTS, run_row
from benchmarks.faults.runs import Reference, prepared_digits, unbroken

MODULES = (attempts, launches, storage)  # importing them registers their rows


@pytest.fixture(scope="module")
def data() -> Path:
    return prepared_digits()


@pytest.fixture(scope="module")
def reference(data: Path) -> Reference:
    return unbroken(data)


@pytest.mark.ray
@pytest.mark.parametrize("name", ["kill-writer", "kill-driver", "perturbed-replica"])
def test_a_fault_ends_well(name: str, data: Path, reference: Reference) -> None:
    outcome = run_row(FAULTS[name], data, reference)
    assert outcome.status == "passed", outcome.reason
