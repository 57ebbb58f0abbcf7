"""Dense layers on their way back: what comes to a layer's inputs is made from rows of its kernel.

The gradient of a layer's inputs is D W', for D [images, out] that comes back and a kernel W [in,
out]. Kernels for processors make the product with W' by reading W across the order in which it lies
in memory, and no arrays of AlexNet's are larger: at 32 images and on two cores fc6 takes 34 ms. As
(W D')', with small arrays to transpose, it takes 10 (docs/performance.md).
"""

from functools import partial

import keras
import tensorflow as tf


def read_kernels_by_rows(model: keras.Model) -> None:
    """Have all dense layers of `model` that see vectors go back so; what they compute stays."""
    for layer in model.layers:
        if type(layer) is keras.layers.Dense and len(layer.input.shape) == 2:
            layer.call = partial(_call, layer)


def _call(layer: keras.layers.Dense, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    """What Keras' own layer does, but for the way back."""
    outputs = _product(inputs, tf.convert_to_tensor(layer.kernel))
    if layer.use_bias:
        outputs = tf.nn.bias_add(outputs, tf.convert_to_tensor(layer.bias))
    return layer.activation(outputs)


@tf.custom_gradient
def _product(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, object]:
    def back(gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_inputs = tf.transpose(tf.matmul(kernel, gradient, transpose_b=True))
        return of_inputs, tf.matmul(inputs, gradient, transpose_a=True)

    return tf.matmul(inputs, kernel), back
