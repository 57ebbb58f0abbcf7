from collections.abc import Callable
from functools import cache

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from alexnet.config import OptimizerConfig
from alexnet.data.order import share
from alexnet.exact import FixedPoint, Float32, Sums
from alexnet.exchange import Alone, Exchange
from alexnet.optimizer import Momentum
from alexnet.step import StepResult, TrainStep, is_seed, model_variables
from tests.ring import Ring

V, MICRO_BATCH, CLASSES = 4, 3, 5
RATES = (0.05, 0.05, 0.02)
OPTIMIZER = OptimizerConfig(momentum=0.9, weight_decay=0.01)
State = dict[str, npt.NDArray[np.float32]]


@pytest.fixture(scope="module", autouse=True)
def _deterministic() -> None:
    """As every rank trains by default. Once on, it stays on for the process."""
    tf.config.experimental.enable_op_determinism()


def small_model(dropout: float = 0.0) -> keras.Model:
    """Convolution, BatchNorm, dropout, dense: one of each kind of variable, the same each time."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    x = keras.layers.BatchNormalization(momentum=0.8, name="norm")(x)
    x = keras.layers.Flatten()(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="drop")(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="logits")(x))


def batches(virtual_workers: int = V, steps: int = len(RATES)) -> tuple[tf.Tensor, tf.Tensor]:
    """Images uint8 [steps, V, micro_batch, 8, 8, 3] and labels int64 [steps, V, micro_batch]."""
    rng = np.random.default_rng(0)
    shape = (steps, virtual_workers, MICRO_BATCH)
    images = rng.integers(0, 256, (*shape, 8, 8, 3), np.uint8)
    return tf.constant(images), tf.constant(rng.integers(0, CLASSES, shape))


def train_step(
    model: keras.Model,
    mine: range = range(V),
    exchange: Exchange | None = None,
    *,
    seed: int = 3,
    virtual_workers: int = V,
    sums: Sums | None = None,
    label_smoothing: float = 0.0,
) -> TrainStep:
    return TrainStep(
        model,
        Momentum(OPTIMIZER, [v.value for v in model.trainable_variables]),
        exchange or Alone(),
        seed=seed,
        virtual_workers=virtual_workers,
        share=mine,
        label_smoothing=label_smoothing,
        sums=sums or Float32(),
    )


def state_of(step: TrainStep) -> State:
    return {name: variable.numpy() for name, variable in step.variables.items()}


def assert_close(one: State, other: State, tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


def assert_same_bits(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


def run(step: TrainStep, virtual_workers: int = V) -> list[StepResult]:
    """Take the steps of RATES on whole batches."""
    images, labels = batches(virtual_workers)
    return [
        step.read(step(images[at], labels[at], at, rate, stop=False))
        for at, rate in enumerate(RATES)
    ]


def reference() -> tuple[State, list[tuple[float, float]]]:
    """The state, and each step's loss and accuracy, by Keras's own training mode and NumPy."""
    model = small_model()
    all_images, all_labels = batches()
    weights = model.trainable_variables
    moving = [v for v in model.non_trainable_variables if not is_seed(v)]
    velocities = [np.zeros(v.shape) for v in weights]
    figures = []
    for images, labels, rate in zip(all_images, all_labels, RATES, strict=True):
        before = [v.numpy() for v in moving]
        gradients, moved, losses, right = [], [], [], []
        for v in range(V):
            for variable, value in zip(moving, before, strict=True):
                variable.assign(value)
            with tf.GradientTape() as tape:
                logits = model(tf.cast(images[v], tf.float32), training=True)
                loss = keras.losses.sparse_categorical_crossentropy(
                    labels[v], logits, from_logits=True
                )
                mean = tf.reduce_mean(loss)
            gradients.append([g.numpy() for g in tape.gradient(mean, [w.value for w in weights])])
            moved.append([variable.numpy() for variable in moving])
            losses.append(float(mean))
            right.append(np.mean(np.argmax(logits, axis=1) == labels[v].numpy()))
        for variable, values in zip(moving, zip(*moved, strict=True), strict=True):
            variable.assign(np.mean(values, axis=0))
        for index, weight in enumerate(weights):
            gradient = np.mean([g[index] for g in gradients], axis=0, dtype=np.float64)
            decay = OPTIMIZER.weight_decay if len(weight.shape) > 1 else 0.0
            velocities[index] = 0.9 * velocities[index] + gradient + decay * weight.numpy()
            weight.assign(weight.numpy() - rate * velocities[index])
        figures.append((float(np.mean(losses)), float(np.mean(right))))
    state = {v.path: v.numpy() for v in model.variables}
    momentum = {f"momentum/{v.path}": x for v, x in zip(weights, velocities, strict=True)}
    return {**state, **momentum}, figures


@pytest.mark.parametrize("sums", [Float32(), FixedPoint()], ids=["float32", "exact"])
def test_virtual_workers_are_the_mean_over_micro_batches(sums: Sums) -> None:
    wanted, figures = reference()
    step = train_step(small_model(), sums=sums)
    results = run(step)
    assert_close(wanted, state_of(step), 1e-5)
    for result, (loss, accuracy) in zip(results, figures, strict=True):
        assert result.loss == pytest.approx(loss, rel=1e-5)
        assert result.accuracy == pytest.approx(accuracy, abs=1e-6)
        assert result.stop is False
        assert 0 <= result.exchange_seconds < 5
    assert len({accuracy for _, accuracy in figures} | {0.0, 1.0}) > 2  # says something


def test_batchnorm_moves_by_the_mean_over_all_micro_batches() -> None:
    wanted, _ = reference()
    step = train_step(small_model())
    run(step)
    for name in ("norm/moving_mean", "norm/moving_variance"):
        np.testing.assert_allclose(state_of(step)[name], wanted[name], rtol=1e-5)
    assert np.ptp(wanted["norm/moving_mean"]) > 0


def state_of_ranks(world_size: int, virtual_workers: int, sums: Sums) -> State:
    """The state after each of `world_size` ranks has taken its shares of the steps of RATES."""
    ranks: list[TrainStep] = []
    ring: Ring | None = None
    for rank in range(world_size):
        ring = Ring(rank, world_size, before=ring)
        mine = share(virtual_workers, rank, world_size)
        model = small_model(dropout=0.5)
        ranks.append(train_step(model, mine, ring, virtual_workers=virtual_workers, sums=sums))
    images, labels = batches(virtual_workers)
    for at, rate in enumerate(RATES):
        for rank, step in enumerate(ranks):
            of_rank = share(virtual_workers, rank, world_size)
            own = slice(of_rank.start, of_rank.stop)
            step(images[at, own], labels[at, own], at, rate, stop=False)
        for step in ranks[:-1]:
            for name, variable in step.variables.items():
                variable.assign(ranks[-1].variables[name])
    return state_of(ranks[-1])


@pytest.mark.parametrize(("world_size", "virtual_workers"), [(2, 4), (3, 5)])
def test_shares_of_ranks_add_up_to_the_step_of_one(world_size: int, virtual_workers: int) -> None:
    alone = train_step(
        small_model(dropout=0.5), range(virtual_workers), virtual_workers=virtual_workers
    )
    run(alone, virtual_workers)
    together = state_of_ranks(world_size, virtual_workers, Float32())
    assert_close(state_of(alone), together, 1e-6)


def test_exact_sums_give_the_same_bits_at_any_number_of_ranks() -> None:
    one, three = (state_of_ranks(world_size, 5, FixedPoint()) for world_size in (1, 3))
    assert_same_bits(one, three)


def test_the_same_step_from_the_same_state_gives_the_same_bits() -> None:
    one, other = (train_step(small_model(dropout=0.5)) for _ in range(2))
    figures = [[result[:3] for result in run(step)] for step in (one, other)]
    assert figures[0] == figures[1]
    assert_same_bits(state_of(one), state_of(other))


@cache
def traced(first: int, last: int, seed: int, dropout: float) -> TrainStep:
    return train_step(small_model(dropout), range(first, last), seed=seed)


def loss_without_learning(
    step: int = 0, mine: range = range(1), seed: int = 3, dropout: float = 0.5
) -> float:
    """The part that virtual workers of one and the same micro-batch have in the loss."""
    taken = traced(mine.start, mine.stop, seed, dropout)
    images, labels = batches()
    same_images = tf.stack([images[0, 0]] * len(mine))
    same_labels = tf.stack([labels[0, 0]] * len(mine))
    return taken.read(taken(same_images, same_labels, step, 0.0, stop=False)).loss


def test_dropout_follows_from_seed_step_and_virtual_worker() -> None:
    here = loss_without_learning()
    assert here == loss_without_learning()
    assert here != loss_without_learning(step=1)
    assert here != loss_without_learning(seed=4)
    assert here != loss_without_learning(mine=range(1, 2))


@pytest.mark.parametrize("change", [{"step": 1}, {"seed": 4}, {"mine": range(1, 2)}])
def test_only_dropout_follows_from_them(change: dict[str, object]) -> None:
    plain: Callable[..., float] = loss_without_learning
    assert plain(dropout=0.0, **change) == plain(dropout=0.0)


def test_a_virtual_worker_draws_the_same_on_any_rank() -> None:
    apart = [loss_without_learning(mine=range(v, v + 1)) for v in range(4)]
    assert len(set(apart)) == 4
    assert loss_without_learning(mine=range(4)) == pytest.approx(sum(apart), rel=1e-6)
    assert loss_without_learning(mine=range(1, 3)) == pytest.approx(sum(apart[1:3]), rel=1e-6)


def test_layers_drop_different_units() -> None:
    keras.utils.set_random_seed(1)
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.Flatten()(inputs)
    one, other = (keras.layers.Dropout(0.5, name=name)(x) for name in ("one", "other"))
    outputs = keras.layers.Dense(CLASSES)(keras.layers.subtract([one, other]))
    step = train_step(keras.Model(inputs, outputs), range(1), virtual_workers=1)
    images, labels = batches()
    result = step.read(step(images[0, :1], labels[0, :1], 0, 0.0, stop=False))
    assert result.loss != pytest.approx(np.log(CLASSES))  # as it is where all logits are 0


@pytest.mark.parametrize("sums", [Float32(), FixedPoint()], ids=["float32", "exact"])
def test_all_ranks_stop_where_any_asks_for_it(sums: Sums) -> None:
    images, labels = batches()
    ring = Ring(0, 2, before=None)
    first = train_step(small_model(), range(2), ring, sums=sums)
    second = train_step(small_model(), range(2, 4), Ring(1, 2, before=ring), sums=sums)
    for asks in ((False, False), (True, False), (False, True), (True, True), (False, False)):
        first(images[0, :2], labels[0, :2], 0, 0.1, stop=asks[0])
        result = second.read(second(images[0, 2:], labels[0, 2:], 0, 0.1, stop=asks[1]))
        assert result.stop is any(asks)


@pytest.mark.parametrize("sums", [Float32(), FixedPoint()], ids=["float32", "exact"])
def test_bad_numbers_of_any_rank_change_nothing_on_all(sums: Sums) -> None:
    images, labels = batches()
    ring = Ring(0, 2, before=None)
    first = train_step(small_model(), range(2), ring, sums=sums)
    second = train_step(small_model(), range(2, 4), Ring(1, 2, before=ring), sums=sums)
    good = first.variables["logits/kernel"].numpy()
    before = state_of(second)
    for bad in (True, False):
        first.variables["logits/kernel"].assign(good + (3e38 if bad else 0))  # logits overflow
        first(images[0, :2], labels[0, :2], 0, 0.1, stop=True)
        result = second.read(second(images[0, 2:], labels[0, 2:], 0, 0.1, stop=False))
        assert (result.skipped, result.stop) == (bad, True)
        if bad:
            assert_same_bits(state_of(second), before)
    assert np.isfinite(result.loss)
    assert all(np.isfinite(value).all() for value in state_of(second).values())
    assert not np.array_equal(state_of(second)["conv/kernel"], before["conv/kernel"])


def test_a_rate_of_zero_moves_statistics_but_no_weight() -> None:
    step = train_step(small_model())
    before = state_of(step)
    images, labels = batches()
    step(images[0], labels[0], 0, 0.0, stop=False)
    changed = {
        name for name, value in state_of(step).items() if not np.array_equal(value, before[name])
    }
    weights = [v.path for v in step.model.trainable_variables]
    moving = {"norm/moving_mean", "norm/moving_variance"}
    assert changed == {f"momentum/{name}" for name in weights} | moving


def test_steps_and_rates_share_one_graph() -> None:
    step = train_step(small_model(dropout=0.5))
    run(step)
    assert step._graph.experimental_get_tracing_count() == 1


def test_variables_are_all_that_decides_what_comes_next() -> None:
    """A step object that takes them over goes on with the same bits."""
    images, labels = batches()
    first = train_step(small_model(dropout=0.5))
    first(images[0], labels[0], 0, RATES[0], stop=False)
    second = train_step(small_model(dropout=0.5))
    for name, variable in second.variables.items():
        variable.assign(first.variables[name])
    for step in (first, second):
        step(images[1], labels[1], 1, RATES[1], stop=False)
    assert_same_bits(state_of(first), state_of(second))


def test_names_of_variables() -> None:
    model = small_model(dropout=0.5)
    weights = {
        "conv/kernel",
        "conv/bias",
        "norm/gamma",
        "norm/beta",
        "logits/kernel",
        "logits/bias",
    }
    assert set(model_variables(model)) == weights | {"norm/moving_mean", "norm/moving_variance"}
    assert set(train_step(model).variables) == set(model_variables(model)) | {
        f"momentum/{name}" for name in weights
    }


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_smoothed_label_is_a_mixture_of_its_class_and_of_all(share: float) -> None:
    step = train_step(small_model(), label_smoothing=share)
    images, labels = batches()
    model, expected = small_model(), []
    for v in range(V):
        logits = model(tf.cast(images[0, v], tf.float32), training=True).numpy().astype(np.float64)
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        target = np.eye(CLASSES)[labels[0, v]] * (1 - share) + share / CLASSES
        expected.append(-(target * np.log(chances)).sum(1).mean())
    loss = step.read(step(images[0], labels[0], 0, 0.1, stop=False)).loss
    assert loss == pytest.approx(np.mean(expected), rel=1e-5)
