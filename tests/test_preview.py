"""What a run is said to be before it begins is what it then is."""

from pathlib import Path
from typing import Any

import pytest

from alexnet.archive import open_archive
from alexnet.data.shards import ShardSet
from cluster.config import JobConfig
from cluster.plan import Plan
from cluster.preview import Preview, preview

ON_CPUS = Plan(workers=2, cpus_per_worker=1, gpus_per_worker=0)
ON_GPUS = Plan(workers=4, cpus_per_worker=1, gpus_per_worker=1)


def found(digits: Path, plan: Plan = ON_CPUS, **groups: Any) -> Preview:
    tree = {"run_dir": "/runs/r", "data": {"path": str(digits), "image_size": 67}, **groups}
    config = JobConfig.model_validate(tree)
    archive = open_archive(config.run_path, config.checkpoint.path)
    return preview(config, ShardSet.open(digits), plan, archive)


def test_every_row_has_words(digits: Path) -> None:
    rows = dict(found(digits).rows)
    assert [*rows] == [
        "model",
        "data",
        "batch",
        "rate",
        "steps",
        "memory",
        "checkpoints",
        "run",
    ]
    # 21,627,658 parameters of 4 bytes, and as much momentum: what Keras counts for this network.
    assert "seed, 21.6 M parameters in float32, 67 x 67 pixels to 10 classes" in rows["model"]
    assert rows["data"] == f"1438 images, 359 held out: {digits}"
    assert "every 200 steps, 165 MiB each, 3 kept: /runs/r/checkpoints" in rows["checkpoints"]


@pytest.mark.parametrize(
    ("train", "steps", "words"),
    [
        ({"global_batch": 64, "epochs": 3}, 66, "66: 3 epochs of 22"),
        (
            {"global_batch": 64, "epochs": 3, "max_steps": 9},
            9,
            "9: 3 epochs of 22, at most 9",
        ),
        ({"global_batch": 1024, "epochs": 3}, 3, "3: 3 epochs of 1"),
    ],
)
def test_steps_are_those_that_will_be_taken(
    digits: Path, train: dict[str, int], steps: int, words: str
) -> None:
    told = found(digits, train=train)
    assert told.total_steps == steps
    assert dict(told.rows)["steps"] == words


@pytest.mark.parametrize(
    ("plan", "schedule", "row", "words"),
    [
        (ON_CPUS, {}, "batch", "64 images = 2 micro-batches of 32, on 2 ranks (CPU)"),
        (ON_GPUS, {}, "batch", "64 images = 2 micro-batches of 32, on 4 ranks with 1 GPU each"),
        (ON_GPUS, {}, "memory", "of its GPU's"),
        (ON_CPUS, {"learning_rate": 0.1}, "rate", "0.1, then constant"),
        (
            ON_CPUS,
            {"learning_rate": 0.1, "base_batch": 32, "warmup_steps": 5, "decay": "inverse_time"},
            "rate",
            "0.2 (of 0.1 for 32 images) after 5 steps of warm-up, then inverse time",
        ),
        (
            ON_CPUS,
            {"learning_rate": 0.1, "warmup_steps": 500},
            "rate",
            "0.1 after 500 steps of warm-up, which this run does not reach",
        ),
    ],
)
def test_words(digits: Path, plan: Plan, schedule: dict[str, Any], row: str, words: str) -> None:
    told = found(digits, plan, train={"global_batch": 64}, schedule=schedule)
    assert words in dict(told.rows)[row]
