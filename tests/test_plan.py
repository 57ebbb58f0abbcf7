from typing import Any

import pytest

from alexnet.errors import ConfigError
from cluster.config import JobConfig
from cluster.plan import Plan, plan_workers


def config(**cluster: Any) -> JobConfig:
    """A job of 8 micro-batches."""
    train = {"global_batch": 64, "micro_batch": 8}
    return JobConfig.model_validate({"train": train, "cluster": cluster})


@pytest.mark.parametrize(
    ("cluster", "resources", "expected"),
    [
        ({}, {"CPU": 1}, (1, 0)),
        ({}, {"CPU": 64}, (2, 0)),
        ({}, {"CPU": 64, "GPU": 4}, (4, 1)),
        ({}, {"CPU": 64, "GPU": 16}, (8, 1)),  # no more ranks than micro-batches
        ({"workers": 3}, {"CPU": 64, "GPU": 4}, (3, 1)),
        ({"workers": 5}, {"CPU": 64, "GPU": 4}, (5, 0)),
        ({"workers": 5, "gpus_per_worker": 2}, {"CPU": 64, "GPU": 4}, (5, 2)),  # waits for them
        ({"gpus_per_worker": 2}, {"CPU": 64, "GPU": 9}, (4, 2)),
        ({"gpus_per_worker": 2}, {"CPU": 64}, (1, 2)),
        ({"gpus_per_worker": 0}, {"CPU": 64, "GPU": 9}, (2, 0)),
        ({"max_workers": 3}, {"CPU": 64}, (3, 0)),
        ({"max_workers": 3}, {"CPU": 2}, (2, 0)),  # shrinks to the room there is
        ({"max_workers": 3, "cpus_per_worker": 2}, {"CPU": 5}, (2, 0)),
        ({"max_workers": 20}, {"CPU": 64}, (8, 0)),
        ({"max_workers": 3}, {"CPU": 64, "GPU": 4}, (3, 1)),
        ({"min_workers": 2}, {"CPU": 1}, (2, 0)),  # waits for the second
        ({"min_workers": 4}, {"CPU": 64}, (4, 0)),
        ({"min_workers": 4}, {"CPU": 64, "GPU": 6}, (6, 1)),
        ({}, {}, (1, 0)),  # a cluster that has lost its last node: waits for one
    ],
)
def test_as_many_ranks_as_there_is_room_for(
    cluster: dict[str, Any], resources: dict[str, float], expected: tuple[int, int]
) -> None:
    plan = plan_workers(config(**cluster), resources)
    assert (plan.workers, plan.gpus_per_worker) == expected


@pytest.mark.parametrize("cluster", [{"workers": 9}, {"workers": 0}, {"min_workers": 9}])
def test_a_number_of_ranks_that_cannot_share_the_batch_is_refused(cluster: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="1 to 8 workers"):
        plan_workers(config(**cluster), {"CPU": 64})


def test_what_never_fits_one_machine_is_refused() -> None:
    has = {"CPU": 4, "GPU": 4}
    for workers, gpus in ((4, 1), (4, 0), (2, 2)):
        Plan(workers=workers, cpus_per_worker=1, gpus_per_worker=gpus).check_fits(has)
    for workers, gpus in ((5, 0), (4, 2)):
        with pytest.raises(ConfigError, match=f"{workers} workers x 1 CPU, {gpus} GPU asked for"):
            Plan(workers=workers, cpus_per_worker=1, gpus_per_worker=gpus).check_fits(has)


def test_a_run_that_has_had_gpus_does_not_go_on_without() -> None:
    for cluster, expected in (({"workers": 4}, 4), ({}, 1), ({"min_workers": 2}, 2)):
        plan = plan_workers(config(**cluster), {"CPU": 64}, gpus_before=1)
        assert (plan.workers, plan.gpus_per_worker) == (expected, 1)
    plan = plan_workers(config(), {"CPU": 64, "GPU": 8}, gpus_before=0)
    assert (plan.workers, plan.gpus_per_worker) == (2, 0)


def test_an_automatic_number_is_at_most_what_there_has_been_room_for() -> None:
    """What else the cluster has may be others'."""
    has = {"CPU": 64, "GPU": 4}
    for cluster, most, expected in (({}, 2, 2), ({}, 8, 4), ({"min_workers": 3}, 2, 3)):
        assert plan_workers(config(**cluster), has, 1, most).workers == expected
    assert plan_workers(config(workers=4), has, 1, 2).workers == 4


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"gpus_per_worker": -1}, "greater than or equal to 0"),
        ({"min_workers": 3, "max_workers": 2}, "max_workers 2 is less than min_workers 3"),
    ],
)
def test_settings_out_of_bounds_are_refused(cluster: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**cluster)
