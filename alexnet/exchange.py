"""What a trainer needs from the other ranks, and the answer of a process that has none."""

from collections.abc import Sequence
from typing import Protocol

import tensorflow as tf


class Exchange(Protocol):
    """Collective operations. Every rank must call them in the same order."""

    rank: int
    world_size: int

    def sum(self, tensors: Sequence[tf.Tensor], name: str = "step") -> list[tf.Tensor]:
        """Return each tensor's sum over the ranks; may be traced into a graph.

        Tensors come in the order in which they get ready, so that early ones travel while later
        ones are still being computed. `name` tells uses in different graphs apart.
        """

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Overwrite the variables with those of rank 0."""


class Alone:
    """The exchange of a single process: nothing to do."""

    rank = 0
    world_size = 1

    def sum(self, tensors: Sequence[tf.Tensor], name: str = "step") -> list[tf.Tensor]:
        """Return the tensors as they are."""
        return list(tensors)

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Leave the variables as they are."""
