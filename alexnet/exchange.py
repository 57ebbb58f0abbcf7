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

    def gather(self, rows: tf.Tensor, name: str = "factors") -> tf.Tensor:
        """Return the rows of all ranks, one rank's after the other's; may be traced into a graph.

        Ranks may have different numbers of rows.
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

    def gather(self, rows: tf.Tensor, name: str = "factors") -> tf.Tensor:
        """Return the rows as they are."""
        return rows

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Leave the variables as they are."""


def of_all_ranks(exchange: Exchange, number: int, name: str) -> list[int]:
    """Return an int64 of each rank, by rank."""
    mine = [0] * exchange.world_size
    mine[exchange.rank] = number
    (numbers,) = exchange.sum([tf.constant(mine, tf.int64)], name=name)
    found: list[int] = numbers.numpy().tolist()
    return found
