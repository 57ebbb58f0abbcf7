"""A part of `make chaos`, for the pipeline: the rows that cost least and cover most."""

import pytest

from benchmarks.faults import attempts, launches, storage
from benchmarks.faults.matrix import FAULTS, run_row
from benchmarks.faults.runs import prepared_digits, unbroken

MODULES = (attempts, launches, storage)  # importing them registers their rows


@pytest.mark.ray
@pytest.mark.parametrize("name", ["kill-writer", "kill-driver", "perturbed-replica"])
def test_a_fault_ends_well(name: str) -> None:
    data = prepared_digits()
    outcome = run_row(FAULTS[name], data, unbroken(data))
    assert outcome.status == "passed", outcome.reason
