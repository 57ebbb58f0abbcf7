"""Optimizers on raw TensorFlow variables: what a step's mean gradients do to the weights.

Weight decay is an L2 term of the gradient and spares biases and BatchNorm: all but kernels.
"""

from collections.abc import Sequence

import tensorflow as tf

from alexnet.config import OptimizerConfig


class Momentum:
    """w <- w - lr * v with v <- momentum * v + gradient + weight_decay * w.

    The heavy-ball form of Krizhevsky et al. 2012, section 5, with the rate outside of the velocity,
    so that a change of rate acts at once. One fused kernel a variable.
    """

    def __init__(self, config: OptimizerConfig, variables: Sequence[tf.Variable]) -> None:
        """Keep a velocity, at first zero, for each of `variables`."""
        self._config = config
        self._variables = variables
        self.velocities = [tf.Variable(tf.zeros_like(v), trainable=False) for v in variables]

    def apply(self, gradients: Sequence[tf.Tensor], rate: tf.Tensor) -> None:
        """Move each variable by its gradient of the same shape; `rate` is a scalar."""
        if self._config.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self._config.clip_norm)
        for variable, velocity, gradient in zip(
            self._variables, self.velocities, gradients, strict=True
        ):
            inner, outer = self._rates(variable, gradient, rate)
            if _is_kernel(variable) and self._config.weight_decay:
                gradient = self._decay(variable, velocity, gradient, inner)
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle,
                accum=velocity.handle,
                lr=outer,
                grad=gradient if inner is None else inner * gradient,
                momentum=self._config.momentum,
            )

    def _decay(
        self,
        variable: tf.Variable,
        velocity: tf.Variable,
        gradient: tf.Tensor,
        inner: tf.Tensor | None,
    ) -> tf.Tensor:
        """Have the decay of a kernel in what follows; return the gradient to follow with.

        It goes into the velocity, in place and divided by the momentum that comes over it. A
        gradient with the decay added would be two more arrays of a kernel's size, in fresh memory.
        """
        decay, momentum = self._config.weight_decay, self._config.momentum
        if not momentum:
            return gradient + decay * variable
        share = tf.constant(decay / momentum, variable.dtype)
        tf.raw_ops.ResourceApplyGradientDescent(
            var=velocity.handle,
            alpha=-share if inner is None else -share * inner,
            delta=variable,
        )
        return gradient

    def _rates(
        self, variable: tf.Variable, gradient: tf.Tensor, rate: tf.Tensor
    ) -> tuple[tf.Tensor | None, tf.Tensor]:
        """Return what the gradient and what the velocity is multiplied by (None: by nothing)."""
        return None, rate


class Lars(Momentum):
    """Layer-wise adaptive rate scaling (You, Gitman and Ginsburg 2017, algorithm 1).

    w <- w - v with v <- momentum * v + lr * local * (gradient + weight_decay * w) and, for kernels,
    local = trust * |w| / (|gradient| + weight_decay * |w|): a layer moves by the same share of its
    own size, whatever the scale of its gradient. Norms are Euclidean, over a whole kernel. For
    biases and BatchNorm, whose size says little and may be zero, `local` is `trust` itself.
    """

    def _rates(
        self, variable: tf.Variable, gradient: tf.Tensor, rate: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        local = rate * self._config.lars_trust
        if _is_kernel(variable):
            weight, slope = tf.norm(variable), tf.norm(gradient)
            both = slope + self._config.weight_decay * weight
            local *= tf.where((weight > 0) & (both > 0), weight / both, 1.0)
        return local, tf.ones_like(rate)


def build_optimizer(config: OptimizerConfig, variables: Sequence[tf.Variable]) -> Momentum:
    """Return the optimizer that `config` names, for `variables`."""
    return {"sgd": Momentum, "lars": Lars}[config.name](config, variables)


def _is_kernel(variable: tf.Variable) -> bool:
    return len(variable.shape) > 1
