"""What training takes, against networks that Keras builds, real ranks and real limits."""

import json
import math
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from alexnet.config import ModelConfig, RunConfig
from alexnet.data.shards import ShardSet
from alexnet.memory import (
    MIB,
    Memory,
    _left_by_cgroups,
    convolutions,
    dense_layers,
    least,
    needed,
    room,
)
from alexnet.model import build_model
from tests.clusters import start
from tests.ranks import run_ranks

NAMES = ("seed", "original", "bn")


def config(**train: Any) -> RunConfig:
    """The seed's network at 227 x 227, on 128 images."""
    return RunConfig.model_validate({"train": {"global_batch": 128, **train}})


@pytest.fixture(scope="module")
def ten_classes(digits: Path) -> ShardSet:
    return ShardSet.open(digits)


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_those_of_the_model(name: str) -> None:
    settings = ModelConfig.model_validate({"name": name})
    model = build_model(settings, 67, 5, (0.0,) * 3, (1.0,) * 3)
    layers = convolutions(settings, 67)
    assert model.count_params() == sum(c.weights for c in layers) + sum(
        dense_layers(settings, 67, 5)
    )

    def floats(layer: str) -> int:
        return math.prod(model.get_layer(layer).output.shape[1:])

    assert [c.output for c in layers] == [floats(f"conv{number}") for number in range(1, 6)]
    assert [layers[at].pooled for at in (0, 1, 4)] == [floats(f"pool{n}") for n in (1, 2, 5)]
    assert dense_layers(settings, 67, 5)[-1] == model.get_layer("logits").count_params()


@pytest.mark.parametrize(
    ("name", "count"), [("seed", 62_383_848), ("original", 60_965_224), ("bn", 60_970_728)]
)
def test_parameters_at_full_size(name: str, count: int) -> None:
    settings = ModelConfig.model_validate({"name": name})
    layers = convolutions(settings, 227)
    assert sum(c.weights for c in layers) + sum(dense_layers(settings, 227, 1000)) == count


# Largest RssAnon of a rank's process, 2026-11-24, TensorFlow 2.21, 2 CPU threads, checkpoints
# every two steps, in MiB, less the 60 that it has before it imports TensorFlow.
MEASURED: list[tuple[dict[str, Any], dict[str, Any], int]] = [
    ({"global_batch": 2, "micro_batch": 1}, {}, 1232),
    ({"global_batch": 16, "micro_batch": 8}, {}, 1251),
    ({"global_batch": 64, "micro_batch": 16}, {}, 1330),
    ({"global_batch": 64, "micro_batch": 32}, {}, 1447),
    ({"global_batch": 128, "micro_batch": 64}, {}, 1656),
    ({"global_batch": 128, "micro_batch": 128}, {}, 2086),
    ({"global_batch": 8, "micro_batch": 4}, {"model": {"name": "original"}}, 1224),
    ({"global_batch": 128, "micro_batch": 64}, {"model": {"name": "original"}}, 2001),
    ({"global_batch": 8, "micro_batch": 4}, {"model": {"name": "bn"}}, 1260),
    ({"global_batch": 128, "micro_batch": 64}, {"model": {"name": "bn"}}, 1599),
    ({"global_batch": 32, "micro_batch": 16, "exact_sums": True}, {}, 2161),
    ({"global_batch": 32, "micro_batch": 16, "ema_decay": 0.99}, {}, 1744),
    ({"global_batch": 8, "micro_batch": 4, "precision": "bfloat16"}, {}, 1484),
    ({"global_batch": 128, "micro_batch": 64, "precision": "bfloat16"}, {}, 1926),
    ({"global_batch": 8, "micro_batch": 4, "precision": "float16"}, {}, 1595),
    ({"global_batch": 128, "micro_batch": 64}, {"data": {"image_size": 67}}, 691),
]


@pytest.mark.parametrize(("train", "others", "measured"), MEASURED)
def test_what_was_measured_is_what_is_told(
    ten_classes: ShardSet, train: dict[str, Any], others: dict[str, Any], measured: int
) -> None:
    told = needed(RunConfig.model_validate({"train": train, **others}), ten_classes, 1, False, True)
    assert 0.95 < told.host / (measured * MIB) < 1.2


def test_a_rank_takes_what_is_told(digits: Path, ten_classes: ShardSet, tmp_path: Path) -> None:
    """With four micro-batches, two checkpoints and an evaluation."""
    train = {"global_batch": 64, "micro_batch": 16, "max_steps": 2}
    data = {"path": str(digits), "image_size": 67}
    tree = {"run_dir": str(tmp_path), "train": train, "data": data, "checkpoint": {"every": 1}}
    cluster = {"threads_per_worker": 1, "metrics_port": 0, "save_memory": True}
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({**tree, "cluster": cluster}))
    ((before, peak),) = map(json.loads, run_ranks(1, "peak_memory.py", [str(file)]))
    told = needed(RunConfig.model_validate(tree), ten_classes, 1, False, True)
    assert 0.8 < told.host / (peak - before) < 1.25


def test_more_images_at_once_take_more_and_fewer_ranks_no_less(ten_classes: ShardSet) -> None:
    for on_gpu, saves in [(False, True), (False, False), (True, False)]:
        by_images = [
            needed(config(micro_batch=images), ten_classes, 2, on_gpu, saves)
            for images in (16, 32, 64)
        ]
        kind = "gpu" if on_gpu else "host"
        amounts = [getattr(need, kind) for need in by_images]
        assert amounts == sorted(set(amounts))
        assert all((need.gpu > 0) == on_gpu for need in by_images)
    quick, saved = (
        needed(config(micro_batch=16), ten_classes, 1, False, saves) for saves in (False, True)
    )
    assert quick.host > saved.host
    assert quick.reserved > saved.reserved > saved.host


def test_rows_far_away_are_kept_in_memory_while_they_are_shuffled(
    ten_classes: ShardSet, digits: Path, tmp_path: Path
) -> None:
    """As in a set that others have written, whose manifest does not tell where images lie."""
    manifest = json.loads((digits / "manifest.json").read_text())
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            shard["extents"] = ""
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    there = needed(config(), ten_classes, 1, False, True)
    far = needed(config(), ShardSet.open(tmp_path), 1, False, True)
    size = sum(shard.bytes for shard in ten_classes.splits["train"].shards)
    assert far.host - there.host == size  # the window is longer than this set


def test_a_limit_on_the_process_is_seen() -> None:
    left = 700 * MIB
    with data_limit(psutil.Process().memory_info().data + left):
        limited = room(1, []).reserved
    assert limited == pytest.approx(left, abs=16 * MIB)
    assert room(1, []).reserved == sys.maxsize


@contextmanager
def data_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def test_the_machine_s_memory_is_shared_by_its_ranks() -> None:
    one, four = room(1, []).host, room(4, []).host
    assert 0 < one < psutil.virtual_memory().total
    assert four == pytest.approx(one / 4, rel=0.1)


def files(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


UNIFIED = {
    "proc/self/cgroup": "0::/pod/rank\n",
    "sys/fs/cgroup/pod/rank/memory.max": "max\n",
    "sys/fs/cgroup/pod/rank/memory.current": "100\n",
    "sys/fs/cgroup/pod/rank/memory.stat": "anon 90\ninactive_file 10\n",
    "sys/fs/cgroup/pod/memory.max": "2000\n",
    "sys/fs/cgroup/pod/memory.current": "1000\n",
    "sys/fs/cgroup/pod/memory.stat": "anon 700\ninactive_file 300\n",
}
SEPARATE = {
    "proc/self/cgroup": "9:cpu:/a\n4:memory:/docker/7\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000\n",
    "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 300\n",
}


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (UNIFIED, {1200, sys.maxsize}),
        (SEPARATE, {1200}),  # a container sees its own group as the top
        ({"proc/self/cgroup": "0::/\n"}, set()),
    ],
)
def test_control_groups_are_seen(
    tmp_path: Path, contents: dict[str, str], expected: set[int]
) -> None:
    """95 % of the limit, less what is in use and cannot be dropped."""
    assert set(_left_by_cgroups(files(tmp_path, contents))) == expected


def test_the_least_of_all_counts() -> None:
    rooms = [Memory(host=5, reserved=9, gpu=3), Memory(host=7, reserved=8, gpu=2)]
    assert least(rooms) == Memory(host=5, reserved=8, gpu=2)
    assert Memory(host=5, reserved=8, gpu=2).fits(least(rooms))
    for more in ({"host": 6}, {"reserved": 9}, {"gpu": 3}):
        assert not Memory(**{"host": 5, "reserved": 8, "gpu": 2, **more}).fits(least(rooms))


LIMITED = """
data: {{path: {data}, image_size: 99}}
train: {{global_batch: 256, micro_batch: 256, max_steps: 2, log_every: 1}}
schedule: {{learning_rate: 0.01}}
cluster: {{workers: 1, threads_per_worker: 1, metrics_port: 0}}
"""


@pytest.mark.ray
def test_micro_batches_that_fit_a_limit_train_the_same_model(digits: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(LIMITED.format(data=digits))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}

    def trained(name: str, *arguments: str, limit: int | None = None) -> tuple[int, str]:
        run, log = tmp_path / name, tmp_path / f"{name}.log"
        driver = start(["train", str(config), f"run_dir={run}", *arguments], environment, log)
        if limit:
            resource.prlimit(driver.pid, resource.RLIMIT_DATA, (limit, limit))
        assert driver.wait(timeout=300) == 0, log.read_text()
        images = yaml.safe_load((run / "config.yaml").read_text())["train"]["micro_batch"]
        return images, json.loads((run / "summary.json").read_text())["weights_sha256"]

    images, weights = trained("limited", "--fit-memory", limit=1536 * MIB)
    assert 1 < images < 256
    assert trained("unlimited", f"train.micro_batch={images}") == (images, weights)
    again, _ = trained("limited", "--fit-memory", "train.max_steps=3")
    assert again == images
