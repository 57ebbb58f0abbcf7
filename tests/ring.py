"""Ranks that take their steps one after the other in one process."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import tensorflow as tf


@dataclass
class Ring:
    """The exchange of such a rank.

    Each rank adds its part to that of the ranks before it, so what the last one has is the sum; and
    its rows to theirs.
    """

    rank: int
    world_size: int
    before: "Ring | None"
    parts: list[tf.Variable] = field(default_factory=list)
    rows: list[tf.Variable] = field(default_factory=list)

    def sum(self, tensors: Sequence[tf.Tensor], name: str = "step") -> list[tf.Tensor]:
        if self.before:
            tensors = [
                tensor + part for tensor, part in zip(tensors, self.before.parts, strict=True)
            ]
        if not self.parts:
            with tf.init_scope():
                self.parts = [tf.Variable(tf.zeros(x.shape, x.dtype)) for x in tensors]
        for part, x in zip(self.parts, tensors, strict=True):
            part.assign(x)
        return list(tensors)

    def gather(self, rows: tf.Tensor, name: str = "factors") -> tf.Tensor:
        if self.before:
            rows = tf.concat([*self.before.rows, rows], axis=0)
        if not self.rows:
            with tf.init_scope():
                self.rows = [tf.Variable(tf.zeros(rows.shape, rows.dtype))]
        self.rows[0].assign(rows)
        return tf.identity(rows)

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        raise NotImplementedError
