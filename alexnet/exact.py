"""How micro-batches are added up: in float32, or exactly.

Float32 addition depends on the order, and the order on the number of ranks. The difference is one
rounding, but ReLU and max pooling turn a rounding into a unit that flips, and training from there
on drifts apart. In 64-bit fixed point addition has no order: N ranks give the bits of one.
"""

from collections.abc import Sequence
from typing import Protocol

import tensorflow as tf

SCALE = 2.0**42  # a last place of 2e-13: finer than float32 has for values over 4e-6
LIMIT = 2.0**11  # of one summand; leaves room for 2**10 of them


class Sums(Protocol):
    """A code for float32 tensors in which they are added up."""

    def encode(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Return what can be added elementwise to other encoded lists of the same shapes."""

    def decode(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Return the float32 tensors of a sum of encoded lists."""


class Float32:
    """Tensors as they are."""

    def encode(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:  # noqa: D102 - as in Sums
        return list(tensors)

    def decode(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:  # noqa: D102
        return list(tensors)


class FixedPoint:
    """Integers of 1 / `SCALE`, and last a count of summands that held something unrepresentable.

    One such summand, a NaN or a magnitude of `LIMIT` and more, makes the whole sum NaN.
    """

    def encode(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:  # noqa: D102 - as in Sums
        fits = tf.reduce_all([tf.reduce_all(tf.abs(tensor) < LIMIT) for tensor in tensors])
        # Times a power of two is exact; and from 2**24 on every float32 is an integer.
        whole = [tf.cast(tf.math.rint(tensor * SCALE), tf.int64) for tensor in tensors]
        return [*whole, tf.cast(~fits, tf.int64)]

    def decode(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:  # noqa: D102
        *sums, unfit = tensors
        unit = tf.where(unfit > 0, float("nan"), 1 / SCALE)
        return [tf.cast(x, tf.float32) * unit for x in sums]
