"""Layers in 16 bits, the loss scale of float16, and the moving average of the weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from alexnet.config import ModelConfig, OptimizerConfig
from alexnet.data.order import share
from alexnet.evaluation import Evaluator
from alexnet.exact import FixedPoint
from alexnet.exchange import Alone
from alexnet.loss_scale import FIRST, GROW_AFTER, LossScale
from alexnet.model import build_model
from alexnet.optimizer import build_optimizer
from alexnet.step import StepResult, TrainStep, model_variables
from tests.ring import Ring

V, MICRO_BATCH, SIZE, CLASSES = 3, 2, 67, 4
GREY = (127.0,) * 3


@pytest.fixture(scope="module", autouse=True)
def _deterministic() -> None:
    """As every rank trains by default. Once on, it stays on for the process."""
    tf.config.experimental.enable_op_determinism()


def tiny(precision: str) -> keras.Model:
    """One of each kind of layer that a network here has, LRN apart."""
    keras.utils.set_random_seed(1)
    policy = "float32" if precision == "float32" else f"mixed_{precision}"
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, activation="relu", dtype=policy, name="conv")(x)
    x = keras.layers.BatchNormalization(momentum=0.8, dtype=policy, name="norm")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, dtype="float32", name="logits")(x))


def images_and_labels(steps: int) -> tuple[tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (steps, V, MICRO_BATCH, 8, 8, 3), np.uint8)
    return tf.constant(images), tf.constant(rng.integers(0, CLASSES, (steps, V, MICRO_BATCH)))


def ranks_of(world_size: int, precision: str, ema_decay: float | None = None) -> list[TrainStep]:
    """A step of each rank, with exact sums."""
    ranks: list[TrainStep] = []
    ring: Ring | None = None
    for rank in range(world_size):
        ring = Ring(rank, world_size, before=ring)
        model = tiny(precision)
        weights = [v.value for v in model.trainable_variables]
        ranks.append(
            TrainStep(
                model,
                build_optimizer(OptimizerConfig(), weights),
                ring,
                seed=0,
                virtual_workers=V,
                share=share(V, rank, world_size),
                sums=FixedPoint(),
                loss_scale=LossScale() if precision == "float16" else None,
                ema_decay=ema_decay,
            )
        )
    return ranks


def train(ranks: list[TrainStep], steps: int) -> list[StepResult]:
    """What the last rank, which has the sum of all, says of each step."""
    results = []
    images, labels = images_and_labels(steps)
    for at in range(steps):
        for rank, step in enumerate(ranks):
            own = share(V, rank, len(ranks))
            mine = slice(own.start, own.stop)
            result = step(images[at, mine], labels[at, mine], at, 0.05, stop=False)
        for step in ranks[:-1]:
            for name, variable in step.variables.items():
                variable.assign(ranks[-1].variables[name])
        results.append(ranks[-1].read(result))
    return results


@pytest.mark.parametrize(
    ("name", "precision"), [("seed", "float16"), ("original", "float16"), ("bn", "bfloat16")]
)
def test_a_network_computes_in_16_bits_on_weights_of_32(name: str, precision: str) -> None:
    networks = {}
    for each in ("float32", precision):
        keras.utils.set_random_seed(0)
        config = ModelConfig.model_validate({"name": name})
        networks[each] = build_model(config, SIZE, CLASSES, GREY, GREY, each)
    low = networks[precision]
    assert {v.dtype for v in low.trainable_variables} == {"float32"}
    assert low.get_layer("conv3").compute_dtype == precision
    assert low.output.dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.float32)
    exact, rounded = (np.asarray(model(images)) for model in networks.values())
    assert 0 < np.abs(rounded - exact).max() < 0.03 * np.abs(exact).max()


def test_weights_of_float16_move_like_those_of_float32() -> None:
    [full], [half] = ranks_of(1, "float32"), ranks_of(1, "float16")
    half.variables["loss_scale/scale"].assign(2.0**10)
    before = {name: v.numpy() for name, v in model_variables(half.model).items()}
    losses = [[result.loss for result in train([step], 3)] for step in (full, half)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)
    for variable, other, start in zip(
        model_variables(full.model).values(),
        model_variables(half.model).values(),
        before.values(),
        strict=True,
    ):
        moved = np.abs(variable.numpy() - start).max()
        assert np.abs(variable.numpy() - other.numpy()).max() < 0.05 * moved


def test_a_scale_that_is_too_large_costs_a_step_and_no_more() -> None:
    """Gradients of 2 ** 40 times their size overflow, those of 2 ** 15 do not."""
    ranks = ranks_of(1, "float16")
    scale = ranks[0].variables["loss_scale/scale"]
    scale.assign(2.0**40)
    before = {name: v.numpy() for name, v in model_variables(ranks[0].model).items()}
    [first] = train(ranks, 1)
    assert (first.skipped, first.overflow) == (True, True)
    assert scale.numpy() == 2.0**39
    for name, variable in model_variables(ranks[0].model).items():
        np.testing.assert_array_equal(variable.numpy(), before[name])
    results = train(ranks, 40)
    assert all(result.overflow == result.skipped for result in results)
    assert all(result.skipped for result in results[:10])
    assert not all(result.skipped for result in results[-5:])
    assert scale.numpy() == 2.0 ** (39 - sum(result.skipped for result in results))


def test_without_a_scale_to_blame_the_numbers_are_bad() -> None:
    ranks = ranks_of(1, "float16")
    ranks[0].variables["loss_scale/scale"].assign(1.0)
    kernel = ranks[0].model.get_layer("logits").kernel  # behind it no ReLU, which may make a NaN 0
    kernel.assign(np.full(kernel.shape, np.nan, np.float32))
    [result] = train(ranks, 1)
    assert (result.skipped, result.overflow) == (True, False)


def test_the_scale_grows_again_after_a_while() -> None:
    scale = LossScale()
    for _ in range(GROW_AFTER - 1):
        assert not scale.adapt(tf.constant(True))
    assert scale.scale.numpy() == FIRST
    scale.adapt(tf.constant(True))
    assert scale.scale.numpy() == 2 * FIRST
    assert scale.adapt(tf.constant(False))
    assert scale.scale.numpy() == FIRST


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_three_ranks_have_the_bits_of_one(precision: str) -> None:
    """Overflows included: the scale begins where the first steps do."""
    states = []
    for world_size in (1, 3):
        ranks = ranks_of(world_size, precision, ema_decay=0.9)
        for step in ranks if precision == "float16" else []:
            step.variables["loss_scale/scale"].assign(2.0**26)
        train(ranks, 8)
        states.append({name: v.numpy() for name, v in ranks[-1].variables.items()})
    one, three = states
    assert one.keys() == three.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(three[name], value, err_msg=name)


def test_the_average_is_that_of_the_weights_so_far() -> None:
    decay, [step] = 0.3, ranks_of(1, "float32", ema_decay=0.3)
    weight = step.model.trainable_variables[0]
    wanted = weight.numpy()
    images, labels = images_and_labels(6)
    for at in range(6):
        step(images[at], labels[at], at, 0.05, stop=False)
        kept = min(decay, (2 + at) / (11 + at))
        wanted = kept * wanted + (1 - kept) * weight.numpy()
    average = step.variables[f"average/{weight.path}"].numpy()
    np.testing.assert_allclose(average, wanted, rtol=1e-5)
    assert np.abs(average - weight.numpy()).max() > 1e-4


def test_the_average_is_what_is_scored() -> None:
    [step] = ranks_of(1, "float32", ema_decay=0.9)
    train([step], 2)
    assert step.average
    images, labels = images_and_labels(1)
    batch = tf.reshape(images, [-1, 1, 8, 8, 3]), tf.reshape(labels, [-1])

    def loss(weights: list[tf.Variable] | None) -> float:
        return Evaluator(step.model, lambda: [batch], Alone().sum, weights)()["loss"]

    averaged, live = loss([*step.average.variables.values()]), loss(None)
    assert averaged != live
    for variable, average in zip(
        step.model.trainable_variables, step.average.variables.values(), strict=True
    ):
        variable.assign(average)
    assert loss(None) == pytest.approx(averaged, rel=1e-6)
