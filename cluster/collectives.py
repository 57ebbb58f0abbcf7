"""Horovod: the only file with collective calls. Every rank makes them in the same order."""

from collections.abc import Iterator, Sequence

import horovod.tensorflow as hvd
import tensorflow as tf

from cluster.scaling import GROUP_BYTES


class HorovodExchange:
    """`alexnet.exchange.Exchange` between the ranks of this job."""

    def __init__(self) -> None:
        """Meet the other ranks at the rendezvous that the environment names."""
        hvd.init()
        self.rank: int = hvd.rank()
        self.world_size: int = hvd.size()
        self._sent: dict[str, int] = {}  # bytes by name

    def sum(self, tensors: Sequence[tf.Tensor], name: str = "step") -> list[tf.Tensor]:
        """Sum each tensor over the ranks, neighbours in the list travelling together.

        Groups are fixed when the graph is traced, so sums are added in the same order in every
        run; a group goes as soon as its last tensor is ready, whatever the later ones do.
        """
        own = sum(map(_bytes, tensors))
        self._sent[name] = 2 * (self.world_size - 1) * own // self.world_size
        if self.world_size == 1:  # Horovod would copy them
            return list(tensors)
        summed: list[tf.Tensor] = []
        for group in _groups(tensors):
            label = f"{name}.{len(summed)}"
            summed += hvd.grouped_allreduce(group, op=hvd.Sum, name=label)
        return summed

    def gather(self, rows: tf.Tensor, name: str = "factors") -> tf.Tensor:
        """Return the rows of all ranks, in the order of the ranks."""
        self._sent[name] = (self.world_size - 1) * _bytes(rows)
        if self.world_size == 1:
            return rows
        return hvd.allgather(rows, name=name)

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Overwrite the variables with those of rank 0."""
        for index, variable in enumerate(variables):
            variable.assign(hvd.broadcast(variable, root_rank=0, name=f"broadcast.{index}"))

    def wire_bytes(self, *names: str) -> int:
        """Return what this rank sends around a ring, once, for the uses of those names."""
        return sum(self._sent.get(name, 0) for name in names)

    def shutdown(self) -> None:
        """Leave. Ranks that are still in a collective fail."""
        hvd.shutdown()


def transports() -> list[str]:
    """Name what this machine's Horovod has been built to exchange through."""
    built = {"gloo": hvd.gloo_built(), "NCCL": hvd.nccl_built()}
    return [name for name, is_built in built.items() if is_built]


def _groups(tensors: Sequence[tf.Tensor]) -> Iterator[list[tf.Tensor]]:
    """Cut the sequence where a group has reached `GROUP_BYTES`."""
    group: list[tf.Tensor] = []
    size = 0
    for tensor in tensors:
        group.append(tensor)
        size += _bytes(tensor)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _bytes(tensor: tf.Tensor) -> int:
    return int(tensor.shape.num_elements()) * tensor.dtype.size
