"""What a loss is multiplied by, so that float16 can hold its gradients."""

import tensorflow as tf

FIRST = 2.0**15
GROW_AFTER = 2000  # steps
PREFIX = "loss_scale/"  # of its variables' names in a checkpoint


class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, section 3.2).

    A power of two, so that it rounds nothing: halved at a step whose sums are not finite, doubled
    after 2000 steps in a row whose sums were. All ranks see the same sums, so that all have the
    same scale without a message; it is part of the state, so that a run goes on with it.
    """

    def __init__(self) -> None:
        """Begin with 2 ** 15."""
        self.scale = tf.Variable(FIRST, trainable=False)
        self._steps = tf.Variable(0, trainable=False)  # since the last change
        self.variables = {f"{PREFIX}scale": self.scale, f"{PREFIX}steps": self._steps}

    def adapt(self, finite: tf.Tensor) -> tf.Tensor:
        """Take note of a step; return whether the scale was too large for it.

        At a scale of 1 there is nothing left to halve: then the numbers themselves are bad.
        """
        too_large = ~finite & (self.scale > 1)
        grows = finite & (self._steps + 1 >= GROW_AFTER)
        stays = ~(too_large | grows)
        factor = tf.where(too_large, 0.5, tf.where(grows, 2.0, 1.0))
        self.scale.assign(self.scale * factor)
        self._steps.assign(tf.where(stays, self._steps + 1, 0))
        return too_large
