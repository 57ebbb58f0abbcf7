"""SGD with momentum on raw TensorFlow variables, one fused kernel a variable."""

from collections.abc import Sequence

import tensorflow as tf

from alexnet.config import OptimizerConfig


class Momentum:
    """w <- w - lr * v with v <- momentum * v + gradient + weight_decay * w.

    The heavy-ball form of Krizhevsky et al. 2012, section 5, with the rate outside of the velocity,
    so that a change of rate acts at once. Decay spares biases and BatchNorm: all but kernels.
    """

    def __init__(self, config: OptimizerConfig, variables: Sequence[tf.Variable]) -> None:
        """Keep a velocity, at first zero, for each of `variables`."""
        self._config = config
        self._variables = variables
        self.velocities = [tf.Variable(tf.zeros_like(v), trainable=False) for v in variables]

    def apply(self, gradients: Sequence[tf.Tensor], rate: tf.Tensor) -> None:
        """Move each variable by its gradient of the same shape; `rate` is a scalar."""
        for variable, velocity, gradient in zip(
            self._variables, self.velocities, gradients, strict=True
        ):
            if len(variable.shape) > 1 and self._config.weight_decay:
                gradient += self._config.weight_decay * variable
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle,
                accum=velocity.handle,
                lr=rate,
                grad=gradient,
                momentum=self._config.momentum,
            )
