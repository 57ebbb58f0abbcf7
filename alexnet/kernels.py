"""Keras' layers as training computes them: the same functions of the same variables, but quicker.

Keras puts a layer together from operations that every backend has. TensorFlow has better ones for
three that AlexNet is made of; what each is worth is in docs/performance.md. Inputs and settings
that they do not have are computed as Keras would.
"""

from functools import partial

import keras
import tensorflow as tf


def use_quick_kernels(model: keras.Model) -> None:
    """Have the layers of `model` be computed so; what is saved of them is as before."""
    quick = {
        keras.layers.Normalization: _normalize,
        keras.layers.BatchNormalization: _batchnorm,
        keras.layers.Dense: _dense,
    }
    for layer in model.layers:
        if call := quick.get(type(layer)):
            layer.call = partial(call, layer)


def _normalize(layer: keras.layers.Normalization, inputs: tf.Tensor) -> tf.Tensor:
    """(x - mean) / deviation on rows of pixels: along three channels nothing is done in parallel.

    The same bits as Keras', from the same operations.
    """
    if layer.invert or not _are_images(inputs, layer.axis) or None in inputs.shape[1:]:
        return type(layer).call(layer, inputs)
    _, height, width, channels = inputs.shape
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
    has_kernel = (
        _are_images(inputs, layer.axis)
        and (layer.scale and layer.center and not layer.renorm)
        and layer.variable_dtype == "float32"
        and mask is None
    )
    if not (has_kernel and training and layer.trainable):
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


def _are_images(inputs: tf.Tensor, channels: int | tuple[int, ...]) -> bool:
    """Whether they are [n, height, width, channels], and `channels` is the last of these axes."""
    return len(inputs.shape) == 4 and channels in (-1, 3, (-1,), (3,))


def _dense(layer: keras.layers.Dense, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    """What comes back to the inputs is made from rows of the kernel: see `_product`."""
    if len(inputs.shape) != 2:
        return type(layer).call(layer, inputs, training=training)
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
