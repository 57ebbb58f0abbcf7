"""Layers that training computes in its own way, against Keras'."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from alexnet.kernels import use_quick_kernels

TOLERANCE = {"float32": 2e-6, "mixed_float16": 4e-3, "mixed_bfloat16": 3e-2}


def network(*layers: keras.layers.Layer, shape: tuple[int | None, ...] = (7,)) -> keras.Model:
    keras.utils.set_random_seed(5)
    return keras.Sequential([keras.Input(shape), *layers])


def trained(model: keras.Model, images: tf.Tensor) -> list[tf.Tensor]:
    """Return answers, gradients of images and weights, and what else changes."""
    weights = [tf.convert_to_tensor(v.value) for v in model.trainable_variables]
    others = [tf.convert_to_tensor(v.value) for v in model.non_trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch([images, *weights])
        answers, moved = model.stateless_call(weights, others, images, training=True)
        loss = tf.reduce_sum(tf.cast(answers, tf.float32) ** 3)
    return [answers, *tape.gradient(loss, [images, *weights]), *moved]


def assert_as_before(model: keras.Model, images: tf.Tensor, tolerance: float) -> None:
    """Whatever is computed, saved or told of a model is what it was, up to rounding."""
    scored, learned, settings = model(images), trained(model, images), model.to_json()
    calls = [layer.call for layer in model.layers]
    use_quick_kernels(model)
    assert all(new != old for new, old in zip((x.call for x in model.layers), calls, strict=True))
    assert model.to_json() == settings
    for new, old in zip([model(images), *trained(model, images)], [scored, *learned], strict=True):
        assert new.dtype == old.dtype
        new, old = (tf.cast(x, tf.float32).numpy() for x in (new, old))
        np.testing.assert_allclose(new, old, rtol=0, atol=tolerance * np.abs(old).max())


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", ["relu", "tanh", None])
def test_dense_layers(activation: str | None, use_bias: bool, precision: str) -> None:
    layers = [
        keras.layers.Dense(n, activation=activation, use_bias=use_bias, dtype=precision)
        for n in (6, 3)
    ]
    assert_as_before(network(*layers), tf.random.normal([5, 7], seed=3), TOLERANCE[precision])


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.5, "epsilon": 0.1}])
def test_batchnorm_and_its_statistics(settings: dict[str, Any], precision: str) -> None:
    layer = keras.layers.BatchNormalization(dtype=precision, **settings)
    images = 3 * tf.random.normal([2, 5, 4, 6], seed=3) + 1
    model = network(layer, shape=(5, 4, 6))
    layer.gamma.assign(np.linspace(0.5, 2, 6))
    layer.beta.assign(np.linspace(-1, 1, 6))
    assert_as_before(model, images, TOLERANCE[precision])


def test_normalizing_gives_the_bits_of_keras() -> None:
    layer = keras.layers.Normalization(mean=[125.0, 115.0, 105.0], variance=[65.0, 0.0, 66.0])
    images = tf.cast(tf.random.uniform([2, 5, 4, 3], 0, 256, tf.int32, seed=3), tf.float32)
    assert_as_before(network(layer, shape=(5, 4, 3)), images, 0.0)


def test_no_kernel_is_read_in_columns() -> None:
    """What goes back to inputs is a product that begins with the kernel as it is."""
    model = network(keras.layers.Dense(6), keras.layers.Dense(3))
    use_quick_kernels(model)
    traced = tf.function(lambda images: trained(model, images)[1], autograph=False)
    graph = traced.get_concrete_function(tf.TensorSpec([5, 7])).graph
    products = [operation for operation in graph.get_operations() if operation.type == "MatMul"]
    shapes = {(p.inputs[0].shape[0], p.get_attr("transpose_b")) for p in products}
    assert {(7, True), (6, True)} <= shapes  # a kernel times what comes back
    assert not any(p.get_attr("transpose_b") for p in products if p.inputs[0].shape[0] == 5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (keras.layers.Dense(3), (4, 4, 8)),
        (keras.layers.BatchNormalization(), (8,)),
        (keras.layers.BatchNormalization(axis=1), (4, 4, 8)),
        (keras.layers.BatchNormalization(scale=False), (4, 4, 8)),
        (keras.layers.BatchNormalization(center=False), (4, 4, 8)),
        (keras.layers.BatchNormalization(renorm=True), (4, 4, 8)),
        (keras.layers.BatchNormalization(dtype="float64"), (4, 4, 8)),
        (keras.layers.BatchNormalization(dtype="float16"), (4, 4, 8)),
        (keras.layers.Normalization(mean=0.0, variance=4.0, axis=None), (4, 4, 3)),
        (keras.layers.Normalization(mean=[1.0], variance=[4.0], invert=True), (4, 4, 1)),
        (keras.layers.Normalization(mean=[1.0], variance=[4.0]), (None, None, 1)),
    ],
)
def test_what_has_no_quick_kernel_is_computed_as_keras_does(
    layer: keras.layers.Layer, shape: tuple[int | None, ...]
) -> None:
    model = network(layer, shape=shape)
    images = tf.random.normal([2, *(size or 4 for size in shape)], seed=3)
    before = trained(model, images)
    use_quick_kernels(model)
    for one, other in zip(before, trained(model, images), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_layer_may_be_used_on_vectors_and_on_more() -> None:
    layer = keras.layers.Dense(3)
    vectors, rows = keras.Input([7]), keras.Input([2, 7])
    model = keras.Model([vectors, rows], [layer(vectors), layer(rows)])
    inputs = tf.random.normal([5, 7], seed=3), tf.random.normal([5, 2, 7], seed=4)
    before = model(inputs)
    use_quick_kernels(model)
    for one, other in zip(before, model(inputs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_frozen_layer_is_scored_with_what_it_has() -> None:
    layer = keras.layers.BatchNormalization()
    model = network(layer, shape=(4, 4, 2))
    use_quick_kernels(model)
    layer.trainable = False
    images = tf.random.normal([3, 4, 4, 2], seed=3)
    np.testing.assert_array_equal(model(images, training=True), model(images, training=False))
    np.testing.assert_array_equal(layer.moving_mean, [0.0, 0.0])
