import numpy as np
import pytest
import tensorflow as tf

from alexnet.config import OptimizerConfig
from alexnet.optimizer import Momentum

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
