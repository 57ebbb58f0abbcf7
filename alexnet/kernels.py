"""Keras' layers as training computes them: the same functions of the same variables, but quicker.

Keras puts a layer together from operations that every backend has. TensorFlow has better ones for
three that AlexNet is made of; what each is worth is in docs/performance.md.
"""

from collections.abc import Callable
from functools import partial

import keras
import tensorflow as tf


def use_quick_kernels(model: keras.Model) -> None:
    """Have the layers of `model` that can be computed so be computed so.

    What is saved of them, or made of their settings, is as before.
    """
    for layer in model.layers:
        if quick := _quick(layer):
            layer.call = partial(quick, layer)


def _quick(layer: keras.layers.Layer) -> Callable[..., tf.Tensor] | None:
    kind = type(layer)
    if kind is keras.layers.Dense and len(layer.input.shape) == 2:
        return _dense
    if kind not in (keras.layers.BatchNormalization, keras.layers.Normalization):
        return None
    shape = layer.input.shape
    is_image = len(shape) == 4 and None not in shape[1:] and layer.axis in (-1, 3, (-1,), (3,))
    if kind is keras.layers.Normalization:
        return _normalize if is_image and not layer.invert else None
    return _batchnorm if is_image and layer.scale and layer.center and not layer.renorm else None


def _normalize(layer: keras.layers.Normalization, inputs: tf.Tensor) -> tf.Tensor:
    """(x - mean) / deviation on rows of pixels: along three channels nothing is done in parallel.

    The same bits as Keras', from the same operations.
    """
    _, height, width, channels = layer.input.shape
    mean, variance = (tf.reshape(x, [channels]) for x in (layer.mean, layer.variance))
    deviation = tf.maximum(tf.sqrt(variance), keras.backend.epsilon())
    rows = tf.reshape(tf.cast(inputs, layer.compute_dtype), [-1, height, width * channels])
    scaled = (rows - tf.tile(mean, [width])) / tf.tile(deviation, [width])
    return tf.reshape(scaled, [-1, height, width, channels])


def _batchnorm(
    layer: keras.layers.BatchNormalization,
    inputs: tf.Tensor,
    training: bool | None = None,
    mask: tf.Tensor | None = None,
) -> tf.Tensor:
    """One kernel each way, which goes over the activations a few times; Keras' dozens of operations
    go over them one after the other."""
    if not (training and layer.trainable) or mask is not None:
        return type(layer).call(layer, inputs, training=training, mask=mask)
    none = tf.zeros([0])
    found = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=tf.convert_to_tensor(layer.gamma),
        offset=tf.convert_to_tensor(layer.beta),
        mean=none,
        variance=none,
        epsilon=layer.epsilon,
        is_training=True,
    )
    # The kernel estimates the variance of all images from these, over n - 1. Keras keeps theirs.
    n = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
    moments = found.batch_mean, found.batch_variance * ((n - 1) / n)
    for moving, now in zip((layer.moving_mean, layer.moving_variance), moments, strict=True):
        moving.assign(moving * layer.momentum + now * (1 - layer.momentum))
    return found.y


def _dense(layer: keras.layers.Dense, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    """What comes back to the inputs is made from rows of the kernel: see `_product`."""
    outputs = _product(inputs, tf.convert_to_tensor(layer.kernel))
    if layer.use_bias:
        outputs = tf.nn.bias_add(outputs, tf.convert_to_tensor(layer.bias))
    return layer.activation(outputs)


@tf.custom_gradient
def _product(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, object]:
    """Inputs [n, in] times kernel W [in, out].

    The gradient of the inputs is D W', for D [n, out] that comes back. Processors would make it by
    reading W across the order in which it lies in memory, and no arrays of AlexNet's are larger.
    (W D')' has small ones to transpose.
    """

    def back(gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_inputs = tf.transpose(tf.matmul(kernel, gradient, transpose_b=True))
        return of_inputs, tf.matmul(inputs, gradient, transpose_a=True)

    return tf.matmul(inputs, kernel), back
