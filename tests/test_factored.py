"""Gradients made of factors are those that are summed, from fewer bytes."""

import json
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from alexnet.config import ModelConfig, OptimizerConfig, RunConfig, load
from alexnet.data.order import share
from alexnet.errors import ConfigError
from alexnet.exchange import Alone, Exchange
from alexnet.factored import (
    FactoredLayers,
    can_be_factored,
    layers_to_factor,
    pays,
)
from alexnet.model import build_model
from alexnet.optimizer import Momentum
from alexnet.step import TrainStep
from tests.ranks import run_ranks
from tests.ring import Ring
from tests.test_step import assert_close, batches, run, state_of

V = 4
RATES = (0.05, 0.05, 0.02)
KEPT = OptimizerConfig(momentum=0.9, weight_decay=0.01)


def model(dropout: float = 0.5) -> keras.Model:
    """Two dense layers with ReLU and dropout, one without a bias, behind a convolution."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    x = keras.layers.BatchNormalization(momentum=0.8, name="norm")(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(16, activation="relu", name="fc1")(x)
    x = keras.layers.Dropout(dropout, name="drop")(x)
    x = keras.layers.Dense(8, activation="relu", use_bias=False, name="fc2")(x)
    return keras.Model(inputs, keras.layers.Dense(5, name="logits")(x))


def train_step(
    which: list[str], mine: range = range(V), exchange: Exchange | None = None, v: int = V
) -> TrainStep:
    trained = model()
    return TrainStep(
        trained,
        Momentum(KEPT, [variable.value for variable in trained.trainable_variables]),
        exchange or Alone(),
        seed=3,
        virtual_workers=v,
        share=mine,
        factored=[trained.get_layer(name) for name in which],
    )


@pytest.mark.parametrize("which", [["fc1", "fc2", "logits"], ["fc2"]])
@pytest.mark.parametrize("v", [V, 1])
def test_a_step_from_factors_is_the_step_from_sums(which: list[str], v: int) -> None:
    summed, factored = train_step([], range(v), v=v), train_step(which, range(v), v=v)
    for one, other in zip(run(summed, v), run(factored, v), strict=True):
        assert one[:4] == pytest.approx(other[:4], abs=1e-6)
    assert_close(state_of(summed), state_of(factored), 1e-5)


def test_ranks_that_gather_factors_take_the_step_of_one(
    which: tuple[str, ...] = ("fc1", "fc2", "logits"),
) -> None:
    """Three ranks with two, one and one of four micro-batches; the last has them all."""
    ranks: list[TrainStep] = []
    before: Ring | None = None
    for rank in range(3):
        ring = Ring(rank=rank, world_size=3, before=before)
        ranks.append(train_step([*which], share(V, rank, 3), ring))
        before = ring
    images, labels = batches(V)
    for step in ranks:
        mine = step._share
        step(images[0, mine.start : mine.stop], labels[0, mine.start : mine.stop], 0, 0.05, False)
    alone = train_step([])
    alone(images[0], labels[0], 0, 0.05, False)
    assert_close(state_of(alone), state_of(ranks[-1]), 1e-5)


class Marked(Alone):
    """An exchange whose sums can be told in a graph."""

    def sum(self, tensors: Sequence[tf.Tensor], name: str = "step") -> list[tf.Tensor]:
        return [tf.identity(tensor, name="summed") for tensor in tensors]


def test_products_are_made_behind_the_backward_pass_and_beside_the_sums() -> None:
    step = train_step(["fc1"], exchange=Marked())
    images, labels = batches(V)
    scalars = (tf.constant(0), tf.constant(0.05), tf.constant(0.0))
    graph = step._graph.get_concrete_function(images[0], labels[0], *scalars).graph
    kernel = tuple(step.model.get_layer("fc1").kernel.shape)
    *_, product = [  # the last one: the way back leaves one that nobody asks for
        operation
        for operation in graph.get_operations()
        if operation.type == "MatMul" and tuple(operation.outputs[0].shape) == kernel
    ]
    names: set[str] = set()
    left = [product]
    while left:
        operation = left.pop()
        if operation.name not in names:
            names.add(operation.name)
            left += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    assert {"PyFunc", "PyFunc_1"} <= names  # the clock at the start, and after the backward pass
    assert not any("summed" in name for name in names)


def test_what_is_not_finite_is_noticed_in_a_product_too() -> None:
    """Factors may be finite where their product is not."""
    step = train_step(["fc1", "fc2", "logits"])
    kernel = step.model.get_layer("logits").kernel
    kernel.assign(tf.fill(kernel.shape, 1e38))
    before = state_of(step)
    images, labels = batches(V)
    assert step.read(step(images[0], labels[0], 0, 0.05, False)).skipped
    for name, value in state_of(step).items():
        np.testing.assert_array_equal(before[name], value)


def test_which_layers_can_be() -> None:
    vector, image = keras.Input([8]), keras.Input([4, 4, 8])
    shared = keras.layers.Dense(8)
    shared(shared(vector))
    for layer, is_able in [
        (keras.layers.Dense(3), True),
        (keras.layers.Dense(3, activation="relu"), True),
        (keras.layers.Dense(3, activation="tanh"), False),
    ]:
        layer(vector)
        assert can_be_factored(layer) == is_able
    of_images = keras.layers.Dense(3)
    of_images(image)
    assert not can_be_factored(of_images)
    assert not can_be_factored(shared)


@pytest.mark.parametrize("name", ["seed", "original", "bn"])
def test_dense_layers_of_alexnet_travel_as_a_tenth(name: str) -> None:
    """At 227 x 227 and 1000 classes, two ranks and 32 images a rank."""
    network = build_model(
        ModelConfig.model_validate({"name": name}), 227, 1000, (0.0,) * 3, (1.0,) * 3
    )
    layers = layers_to_factor(network, "auto", 64, 2, "CPU")
    assert [layer.name for layer in layers] == ["fc6", "fc7", "logits"]
    weights = network.count_params() - sum(layer.count_params() for layer in layers)
    summed = network.count_params()  # 2 (N - 1) / N = 1 of a ring's bytes, for two ranks
    gathered = 32 * FactoredLayers(network, layers).width
    assert (weights + gathered) / summed <= 0.10


@pytest.mark.parametrize(
    ("inputs", "outputs", "images", "ranks", "device", "expected"),
    [
        (9216, 4096, 64, 2, "CPU", True),
        (9216, 4096, 512, 16, "CPU", False),  # multiplied sixteen times
        (9216, 4096, 512, 16, "GPU", True),
        (9216, 4096, 8192, 128, "GPU", False),  # more bytes than the kernel has
        (4096, 10, 64, 2, "CPU", False),  # few classes
        (9216, 4096, 2048, 1, "CPU", True),
        (9216, 4096, 4096, 1, "CPU", False),  # larger than the kernel
        (9216, 4096, 64, 1, "GPU", False),
    ],
)
def test_what_pays(
    inputs: int, outputs: int, images: int, ranks: int, device: str, expected: bool
) -> None:
    assert pays(inputs, outputs, images, ranks, device) == expected


def test_a_setting_decides() -> None:
    network = model()

    def names(setting: str, ranks: int) -> list[str]:
        return [layer.name for layer in layers_to_factor(network, setting, 64, ranks, "CPU")]

    assert names("factored", 2) == names("factored", 1) == ["fc1", "fc2", "logits"]
    assert names("auto", 2) == names("dense", 2) == names("dense", 1) == []


def test_factors_are_no_exact_sums() -> None:
    with pytest.raises(ConfigError, match=r"defaults: exchange.dense_layers = 'factored'"):
        load(RunConfig, None, ["exchange.dense_layers=factored", "train.exact_sums=true"])


CONFIG = """
seed: 3
data: {{path: {data}, image_size: 67}}
train: {{global_batch: 40, micro_batch: 8, max_steps: 3}}
exchange: {{dense_layers: {setting}}}
schedule: {{learning_rate: 0.01}}
cluster: {{threads_per_worker: 1}}
"""


def test_real_ranks_stay_equal_and_learn_what_one_learns(digits: Path, tmp_path: Path) -> None:
    """Three ranks with two, two and one of five micro-batches."""
    states = {}
    for ranks, setting in [(3, "dense"), (3, "factored"), (1, "dense")]:
        folder = tmp_path / f"{ranks}-{setting}"
        folder.mkdir()
        (folder / "config.yaml").write_text(CONFIG.format(data=digits, setting=setting))
        arguments = [str(folder / "config.yaml"), str(folder), "1"]
        outputs = run_ranks(ranks, "train_steps.py", arguments, timeout=900)
        hashes = [
            [json.loads(line)["sha256"] for line in output.splitlines()] for output in outputs
        ]
        assert all(of_rank == hashes[0] for of_rank in hashes)
        with np.load(folder / "1.npz") as arrays:
            states[ranks, setting] = dict(arrays)
    for name, value in states[1, "dense"].items():
        norm = max(float(np.linalg.norm(value)), 1e-12)
        for other in [(3, "dense"), (3, "factored")]:
            assert np.linalg.norm(states[other][name] - value) / norm < 1e-6, (name, other)
