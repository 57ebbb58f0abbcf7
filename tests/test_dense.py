"""The way back through dense layers is another one than Keras', and the same."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from alexnet.dense import read_kernels_by_rows


def network(activation: str | None, use_bias: bool, precision: str = "float32") -> keras.Model:
    keras.utils.set_random_seed(5)
    inputs = keras.Input([7])
    hidden = keras.layers.Dense(6, activation=activation, use_bias=use_bias, dtype=precision)
    x = hidden(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, dtype=precision)(x))


def gradients(model: keras.Model, images: tf.Tensor) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
        tape.watch(images)
        answer = model(images, training=True)
        loss = tf.reduce_sum(tf.cast(answer, tf.float32) ** 2)
    weights = [variable.value for variable in model.trainable_variables]
    return [answer, *tape.gradient(loss, [images, *weights])]


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", ["relu", "tanh", None])
def test_gradients_are_those_of_keras(
    activation: str | None, use_bias: bool, precision: str
) -> None:
    images = tf.random.normal([5, 7], seed=3)
    model = network(activation, use_bias, precision)
    before = gradients(model, images)
    read_kernels_by_rows(model)
    tolerance = 1e-6 if precision == "float32" else 2e-2
    for one, other in zip(before, gradients(model, images), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(
            tf.cast(one, tf.float32), tf.cast(other, tf.float32), rtol=tolerance, atol=tolerance
        )


def test_no_kernel_is_read_in_columns() -> None:
    """What goes back to inputs is a product that begins with the kernel as it is."""
    model = network("relu", True)
    read_kernels_by_rows(model)
    traced = tf.function(lambda images: gradients(model, images)[1], autograph=False)
    graph = traced.get_concrete_function(tf.TensorSpec([5, 7])).graph
    products = [operation for operation in graph.get_operations() if operation.type == "MatMul"]
    shapes = {(p.inputs[0].shape[0], p.get_attr("transpose_b")) for p in products}
    assert {(7, True), (6, True)} <= shapes  # a kernel times what comes back
    assert not any(p.get_attr("transpose_b") for p in products if p.inputs[0].shape[0] == 5)


def test_layers_on_images_and_models_that_are_saved_stay_as_they_are() -> None:
    inputs = keras.Input([4, 4, 8])
    layer = keras.layers.Dense(3)
    model = keras.Model(inputs, layer(inputs))
    call = layer.call
    before = model.get_config()
    read_kernels_by_rows(model)
    assert layer.call == call
    assert model.get_config() == before
