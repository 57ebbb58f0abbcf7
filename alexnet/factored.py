"""Dense layers whose gradients are made of their factors at every rank, instead of summed.

The gradient of a dense layer's kernel is X'D: what went into the layer, X [images, in], times what
comes back to its outputs, D [images, out]. AlexNet's dense layers have 94 % of its weights and 5 %
of its operations, so that a few hundred images' X and D are a small part of X'D. Ranks gather those
of all images and multiply for themselves: the same gradient up to rounding, from fewer bytes, for
some more work (sufficient factors: Xie et al. 2015, arXiv:1512.06216; by layer, where it pays:
Zhang et al. 2017, arXiv:1706.03292).

A single rank has nothing to send, and yet something to win: the products of all micro-batches are
made at once instead of added up, and whether they are finite is seen in their factors.

Replicas stay equal in every bit where all ranks multiply alike, which processors of one kind do.
"""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from alexnet.exchange import Exchange, of_all_ranks

FLOAT = 4  # bytes
# A processor that computes more operations than this in the time in which the network carries a
# byte had better compute. CPU: 50 GFLOP/s of a rank at 10 Gbit/s; GPU: 20 TFLOP/s at 100 Gbit/s.
FLOPS_PER_BYTE = {"CPU": 40, "GPU": 1600}

Tensors = list[tf.Tensor]


class FactoredLayers:
    """Some dense layers of a model, or none, and their gradients from factors."""

    def __init__(self, model: keras.Model, layers: Sequence[keras.layers.Dense] = ()) -> None:
        """Take `layers` of `model`, each one that `can_be_factored`."""
        self._layers = list(layers)
        inputs, outputs = [x.input for x in layers], [x.output for x in layers]
        answers = {"logits": model.output, "inputs": inputs, "outputs": outputs}
        self._network = keras.Model(model.input, answers)
        # Other outputs may put the layers, and so their variables, in another order.
        self._trained = _places(self._network.trainable_variables, model.trainable_variables)
        self._rest = _places(self._network.non_trainable_variables, model.non_trainable_variables)
        self._widths = [x.shape[-1] for x in (*inputs, *outputs)]
        places = {variable.path: at for at, variable in enumerate(model.trainable_variables)}
        self._places = [
            [places[variable.path] for variable in layer.trainable_variables] for layer in layers
        ]
        made = {place for places in self._places for place in places}
        self.others = [at for at in range(len(model.trainable_variables)) if at not in made]

    def answers(
        self, weights: Tensors, others: Tensors, images: tf.Tensor
    ) -> tuple[dict[str, Any], Tensors]:
        """Return the model's `logits` and the layers' `inputs` and `outputs`; and moved `others`.

        Args:
            weights: in the place of the model's trainable variables.
            others: in the place of the rest of its variables.
            images: float32 [n, size, size, 3].
        """
        answers, moved = self._network.stateless_call(
            [weights[at] for at in self._trained],
            [others[at] for at in self._rest],
            images,
            training=True,
        )
        back = dict(zip(self._rest, moved, strict=True))
        return answers, [back[at] for at in range(len(others))]

    @property
    def width(self) -> int:
        """Numbers that an image's factors are."""
        return sum(self._widths)

    def pack(self, answers: dict[str, Any], gradients: Tensors) -> tf.Tensor:
        """Return the factors of a micro-batch, float32 [images, width].

        Args:
            answers: of `answers`.
            gradients: of the loss with respect to the layers' outputs.
        """
        back = [
            tf.where(output > 0, gradient, 0) if _is_rectified(layer) else gradient
            for layer, output, gradient in zip(
                self._layers, answers["outputs"], gradients, strict=True
            )
        ]
        none = answers["logits"][:, :0]  # of no width: what there is without layers
        parts = [tf.cast(part, tf.float32) for part in (none, *answers["inputs"], *back)]
        return tf.concat(parts, axis=1)

    def all_gradients(self, others: Tensors, factors: tf.Tensor) -> Tensors:
        """Return the gradients of all trainable variables of the model, in their order.

        Args:
            others: those of the variables at `others`.
            factors: of all images, float32 [images, width].
        """
        parts = tf.split(factors, self._widths, axis=1) if self._widths else []
        found = dict(zip(self.others, others, strict=True))
        pairs = zip(parts, parts[len(self._layers) :], strict=False)
        for (inputs, back), places in zip(pairs, self._places, strict=True):
            made = [tf.matmul(inputs, back, transpose_a=True), tf.reduce_sum(back, axis=0)]
            found |= dict(zip(places, made, strict=False))  # a layer may have no bias
        return [found[at] for at in sorted(found)]


def layers_to_factor(
    model: keras.Model, setting: str, global_batch: int, ranks: int, device: str
) -> list[keras.layers.Dense]:
    """Return the dense layers of a model that are to be exchanged as factors.

    Args:
        model: whose outputs are logits.
        setting: "dense": none; "factored": all that can be; "auto": those for which it pays.
        global_batch: images of a step, over all ranks.
        ranks: that share them.
        device: "CPU" or "GPU".
    """
    if setting == "dense":
        return []
    return [
        layer
        for layer in model.layers
        if can_be_factored(layer)
        and (
            setting == "factored"
            or pays(layer.input.shape[-1], layer.output.shape[-1], global_batch, ranks, device)
        )
    ]


def multiply_alike(exchange: Exchange) -> bool:
    """Tell whether the ranks have processors of one kind. Every rank must ask."""
    mine = zlib.crc32(_processor().encode())
    return len(set(of_all_ranks(exchange, mine, "processors"))) == 1


def _processor() -> str:
    """What this rank multiplies with, and in how many parts."""
    if gpus := tf.config.list_physical_devices("GPU"):
        return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name"))
    found = re.search(r"^model name.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    return f"{found and found[0]}, {threads} threads"


def pays(inputs: int, outputs: int, global_batch: int, ranks: int, device: str) -> bool:
    """Tell whether the bytes that a rank need not send are worth the operations that it makes more.

    A single rank makes no more and sends nothing. On a CPU it goes by what is smaller, on a GPU it
    keeps to sums, whose products are in its layers' precision.

    Of more ranks, sums go around a ring in 2 (N - 1) / N parts of the kernel, and factors of all
    images in (N - 1) / N parts; the other ranks' images are multiplied once more.
    """
    if ranks == 1:
        return device == "CPU" and global_batch * (inputs + outputs) < inputs * outputs
    share = (ranks - 1) / ranks
    summed = 2 * share * inputs * outputs * FLOAT
    gathered = share * global_batch * (inputs + outputs) * FLOAT
    operations = 2 * share * global_batch * inputs * outputs
    return operations < FLOPS_PER_BYTE[device] * (summed - gathered)


def can_be_factored(layer: keras.layers.Layer) -> bool:
    """Tell whether it is a dense layer, used once, on vectors, with no activation or with ReLU."""
    return (
        type(layer) is keras.layers.Dense
        and len(layer._inbound_nodes) == 1
        and len(layer.input.shape) == 2
        and layer.trainable
        and (_is_rectified(layer) or layer.activation is keras.activations.linear)
    )


def _is_rectified(layer: keras.layers.Dense) -> bool:
    return bool(layer.activation is keras.activations.relu)


def _places(variables: list[keras.Variable], among: list[keras.Variable]) -> list[int]:
    places = {id(variable): at for at, variable in enumerate(among)}
    return [places[id(variable)] for variable in variables]
