import numpy as np
import pytest
import tensorflow as tf

from alexnet.config import OptimizerConfig
from alexnet.optimizer import Lars, Momentum, build_optimizer

SHAPES = [(3, 3, 2, 4), (4,), (6, 5), (5,), (1, 1)]
RATES = (0.1, 0.1, 0.03, 0.5, 0.02)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize(
    ("momentum", "weight_decay"), [(0.9, 0.05), (0.0, 0.05), (0.9, 0.0), (0.0, 0.0)]
)
def test_against_float64(momentum: float, weight_decay: float, in_graph: bool) -> None:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape) for shape in SHAPES]
    velocities = [np.zeros(shape) for shape in SHAPES]
    variables = [tf.Variable(weight, dtype=tf.float32) for weight in weights]
    config = OptimizerConfig(momentum=momentum, weight_decay=weight_decay)
    optimizer = Momentum(config, variables)
    apply = tf.function(optimizer.apply) if in_graph else optimizer.apply

    for rate in RATES:
        gradients = [rng.normal(size=shape) for shape in SHAPES]
        apply([tf.constant(g, tf.float32) for g in gradients], tf.constant(rate, tf.float32))
        for index, gradient in enumerate(gradients):
            decay = weight_decay if len(SHAPES[index]) > 1 else 0.0
            total = gradient + decay * weights[index]
            velocities[index] = momentum * velocities[index] + total
            weights[index] = weights[index] - rate * velocities[index]

    for variable, weight in zip(variables, weights, strict=True):
        np.testing.assert_allclose(variable, weight, rtol=1e-5, atol=1e-6)
    for variable, velocity in zip(optimizer.velocities, velocities, strict=True):
        np.testing.assert_allclose(variable, velocity, rtol=1e-5, atol=1e-6)


def test_weight_decay_pulls_kernels_and_leaves_the_rest() -> None:
    variables = [tf.Variable(tf.ones(shape)) for shape in SHAPES]
    optimizer = Momentum(OptimizerConfig(momentum=0.5, weight_decay=0.1), variables)
    optimizer.apply([tf.zeros(shape) for shape in SHAPES], tf.constant(1.0))
    means = [float(tf.reduce_mean(variable)) for variable in variables]
    assert means == pytest.approx([0.9, 1.0, 0.9, 1.0, 0.9])


def test_velocities_start_at_zero_and_a_gradient_for_each_is_needed() -> None:
    variables = [tf.Variable(tf.ones(shape)) for shape in SHAPES]
    optimizer = Momentum(OptimizerConfig(), variables)
    assert [tuple(v.shape) for v in optimizer.velocities] == SHAPES
    assert not any(np.any(v) for v in optimizer.velocities)
    with pytest.raises(ValueError, match="shorter"):
        optimizer.apply([tf.zeros(SHAPES[0])], tf.constant(1.0))


@pytest.mark.parametrize("weight_decay", [5e-4, 0.0])
@pytest.mark.parametrize("trust", [0.001, 0.02])
def test_lars_against_float64(weight_decay: float, trust: float) -> None:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape) for shape in SHAPES]
    velocities = [np.zeros(shape) for shape in SHAPES]
    variables = [tf.Variable(weight, dtype=tf.float64) for weight in weights]
    config = OptimizerConfig(name="lars", weight_decay=weight_decay, lars_trust=trust)
    optimizer = build_optimizer(config, variables)
    assert isinstance(optimizer, Lars)

    for rate in RATES:
        gradients = [rng.normal(size=shape) * 10 ** rng.uniform(-4, 4) for shape in SHAPES]
        optimizer.apply([tf.constant(g) for g in gradients], tf.constant(rate, tf.float64))
        for index, gradient in enumerate(gradients):
            local, decay = trust, 0.0
            if len(SHAPES[index]) > 1:
                size = np.sqrt((weights[index] ** 2).sum())
                decay = weight_decay
                local = trust * size / (np.sqrt((gradient**2).sum()) + decay * size)
            step = rate * local * (gradient + decay * weights[index])
            velocities[index] = 0.9 * velocities[index] + step
            weights[index] = weights[index] - velocities[index]

    for variable, weight in zip(variables, weights, strict=True):
        np.testing.assert_allclose(variable, weight, rtol=1e-6, atol=1e-12)


def test_lars_moves_a_kernel_by_its_size_whatever_the_scale_of_its_gradient() -> None:
    kernels = [tf.Variable(tf.ones((4, 4))) for _ in range(3)]
    config = OptimizerConfig(name="lars", momentum=0.0, weight_decay=0.0)
    gradients = [tf.fill((4, 4), scale) for scale in (1e-3, 1.0, 1e3)]
    build_optimizer(config, kernels).apply(gradients, tf.constant(10.0))
    for kernel in kernels:
        np.testing.assert_allclose(kernel, 1 - 10.0 * 0.001, rtol=1e-6)


def test_lars_leaves_zero_where_nothing_pulls() -> None:
    variables = [tf.Variable(tf.zeros(shape)) for shape in SHAPES]
    optimizer = build_optimizer(OptimizerConfig(name="lars"), variables)
    optimizer.apply([tf.zeros(shape) for shape in SHAPES], tf.constant(1.0))
    assert not any(np.any(variable) for variable in variables)
    optimizer.apply([tf.ones(shape) for shape in SHAPES], tf.constant(1.0))
    assert all(np.all(np.isfinite(variable)) and np.all(variable) for variable in variables)


@pytest.mark.parametrize(("norm", "scale"), [(1.0, 1 / 5), (5.0, 1.0), (100.0, 1.0)])
def test_gradients_are_shortened_together(norm: float, scale: float) -> None:
    variables = [tf.Variable([0.0]), tf.Variable([0.0])]
    config = OptimizerConfig(momentum=0.0, weight_decay=0.0, clip_norm=norm)
    gradients = [tf.constant([3.0]), tf.constant([4.0])]
    build_optimizer(config, variables).apply(gradients, tf.constant(1.0))
    np.testing.assert_allclose([v.numpy()[0] for v in variables], [-3 * scale, -4 * scale])
