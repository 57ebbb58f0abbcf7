"""The network as TensorFlow code that knows nothing of ours would train it: what peers share."""

import os
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from alexnet.config import ModelConfig, OptimizerConfig
from alexnet.model import build_model
from alexnet.optimizer import Momentum
from benchmarks.steps.common import CLASSES, MOMENTUM, PARAMETERS, RATE, SIZE, WEIGHT_DECAY

Exchange = Callable[[list[tf.Tensor]], list[tf.Tensor]]
MEAN, STD = (125.0, 115.0, 105.0), (65.0, 64.0, 66.0)


def use_cores() -> None:
    """Have TensorFlow run on the cores that this process has, by as many threads as our ranks."""
    cores = len(os.sched_getaffinity(0))
    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(max(2, cores))


def model(size: int = SIZE, classes: int = CLASSES) -> keras.Model:
    """Return the network, weights at random."""
    found = build_model(ModelConfig(), size, classes, MEAN, STD)
    if (size, classes) == (SIZE, CLASSES) and found.count_params() != PARAMETERS:
        raise AssertionError(f"{found.count_params()} parameters, not {PARAMETERS}")
    return found


def batch(images: int, size: int = SIZE, classes: int = CLASSES) -> tuple[tf.Tensor, tf.Tensor]:
    """Return pixels uint8 and labels that lie ready."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, size, size, 3), np.uint8)
    return tf.constant(pixels), tf.constant(rng.integers(0, classes, images))


def update(network: keras.Model) -> Callable[[list[tf.Tensor]], None]:
    """Return what changes the weights by their gradients: momentum, and decay of the kernels.

    The fused kernel that we use, which is quicker than Keras' optimizers.
    """
    settings = OptimizerConfig(momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    momentum = Momentum(settings, [v.value for v in network.trainable_variables])
    return lambda gradients: momentum.apply(gradients, tf.constant(RATE))


def step(
    network: keras.Model, apply: Callable[[list[tf.Tensor]], None], exchange: Exchange
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Return one step, to be traced: from a batch to its loss, weights and statistics changed."""

    def taken(pixels: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        weights = [v.value for v in network.trainable_variables]
        with tf.GradientTape() as tape:
            logits = network(tf.cast(pixels, tf.float32), training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        apply(exchange(tape.gradient(loss, weights)))
        return loss

    return taken
