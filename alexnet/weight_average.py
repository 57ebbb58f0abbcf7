"""A moving average of the weights, which often scores better than where they are just now."""

from collections.abc import Mapping

import tensorflow as tf

AVERAGE = "average/"  # before a weight's name, in a state


class WeightAverage:
    """average <- d * average + (1 - d) * weight after each step (Polyak and Juditsky 1992).

    With d = min(decay, (1 + t) / (10 + t)) after t steps: an average of few steps forgets where
    it began, since that was noise.
    """

    def __init__(self, decay: float, weights: Mapping[str, tf.Variable]) -> None:
        """Begin at the weights as they are."""
        self._decay = decay
        self._weights = weights
        self.variables = {
            AVERAGE + name: tf.Variable(v, trainable=False) for name, v in weights.items()
        }

    def update(self, step: tf.Tensor) -> None:
        """Take the weights of one more step into the average; `step` is counted from 0."""
        taken = tf.cast(step, tf.float32) + 1
        decay = tf.minimum(self._decay, (1 + taken) / (10 + taken))
        for average, weight in zip(self.variables.values(), self._weights.values(), strict=True):
            average.assign_sub((1 - decay) * (average - weight))
