"""One training step over this rank's micro-batches, as one graph. No I/O.

The global batch is always V micro-batches, whatever the number of ranks. Each is a pure function of
the state at the step's start: its dropout masks follow from (seed, step, virtual worker), its
BatchNorm statistics are its own. What all ranks sum is the mean over V of gradients and of moved
BatchNorm statistics, so N ranks and one rank take the same step up to the order of additions. A sum
that is not finite is so on every rank, and such a step leaves the state as it was on all of them.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from alexnet.exact import Float32, Sums
from alexnet.exchange import Exchange
from alexnet.factored import FactoredLayers
from alexnet.kernels import use_quick_kernels
from alexnet.loss_scale import LossScale
from alexnet.optimizer import Momentum
from alexnet.weight_average import WeightAverage

Tensors = list[tf.Tensor]


class StepResult(NamedTuple):
    """What a step says of itself; the same on all ranks but for the seconds.

    These are by the clock of the processor that launches what the graph computes: on a GPU, which
    is told ahead of what it does, they are no more than hints.
    """

    loss: float  # mean over the global batch
    accuracy: float  # share of the global batch, as trained on, that was right
    stop: bool  # some rank was asked to stop
    skipped: bool  # some sum was not finite, so that the state is as it was
    exchange_seconds: float  # waited for other ranks, with nothing left to compute
    overflow: bool = False  # skipped for a loss scale that was too large, and has been halved
    compute_seconds: float = 0.0  # forward and backward, and what was exchanged meanwhile
    update_seconds: float = 0.0  # from the sums to the new weights


class TrainStep:
    """A replica's state (weights, BatchNorm statistics, momentum) and how a step changes it."""

    def __init__(
        self,
        model: keras.Model,
        optimizer: Momentum,
        exchange: Exchange,
        *,
        seed: int,
        virtual_workers: int,
        share: range,
        label_smoothing: float = 0.0,
        sums: Sums = Float32(),  # noqa: B008 - has no state
        loss_scale: LossScale | None = None,
        ema_decay: float | None = None,
        factored: Sequence[keras.layers.Dense] = (),
    ) -> None:
        """Train `model`, whose outputs are logits, on the virtual workers in `share`.

        `loss_scale` is for layers that compute in float16, and None for all others. `factored`
        layers are exchanged as factors; their gradients are never summed, so not by `sums` either.
        """
        self.model = model
        use_quick_kernels(model)
        self._factored = FactoredLayers(model, factored)
        self._optimizer = optimizer
        self._exchange = exchange
        self._seed = seed
        self._virtual_workers = virtual_workers
        self._share = share
        self._label_smoothing = label_smoothing
        self._sums = sums
        self._loss_scale = loss_scale
        self._weights = [v.value for v in model.trainable_variables]
        self._moving, _ = changed_by_training(model)
        weights = {v.path: v.value for v in model.trainable_variables}
        self.average = WeightAverage(ema_decay, weights) if ema_decay else None
        self._graph = tf.function(self._step, autograph=False)

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """All that a checkpoint must hold, by name."""
        velocities = zip(self.model.trainable_variables, self._optimizer.velocities, strict=True)
        momentum = {f"momentum/{v.path}": velocity for v, velocity in velocities}
        average = self.average.variables if self.average else {}
        scale = self._loss_scale.variables if self._loss_scale else {}
        return {**model_variables(self.model), **momentum, **average, **scale}

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, step: int, rate: float, stop: bool
    ) -> tf.Tensor:
        """Take step number `step` (from 0); return a tensor for `read`, without waiting for it.

        Args:
            images: uint8 [k, micro_batch, size, size, 3] for this rank's k virtual workers.
            labels: int64 [k, micro_batch].
            step: decides the dropout masks.
            rate: the learning rate.
            stop: whether this rank asks all ranks to stop.
        """
        scalars = tf.constant(step), tf.constant(rate, tf.float32), tf.constant(stop, tf.float32)
        return self._graph(images, labels, *scalars)

    @staticmethod
    def read(result: tf.Tensor) -> StepResult:
        """Wait for a step and return what it found."""
        loss, accuracy, stop, finite, overflow, *moments = result.numpy().tolist()
        started, computed, exchanged, updated = moments
        return StepResult(
            loss,
            accuracy,
            stop=stop > 0,
            skipped=finite == 0,
            exchange_seconds=exchanged - computed,
            overflow=overflow > 0,
            compute_seconds=computed - started,
            update_seconds=updated - exchanged,
        )

    def _step(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        step: tf.Tensor,
        rate: tf.Tensor,
        stop: tf.Tensor,
    ) -> tf.Tensor:
        started = _now()
        factors, *mine = self._sum_micro_batches(images, labels, step)
        gradients, small = _split(mine, len(self._factored.others))
        small = [tf.cast(stop, small[0].dtype), *small]
        backward = gradients[::-1]  # the order in which the backward pass makes them

        with tf.control_dependencies([factors, *mine]):
            computed = _now()
        if self._factored.width:
            factors = self._exchange.gather(factors)
        with tf.control_dependencies([computed]):  # products are made while sums are under way
            factors = tf.identity(factors)
        *backward, packed = self._exchange.sum([*backward, _pack(small)])
        with tf.control_dependencies([factors, *backward, packed]):
            exchanged = _now()

        stop, *small = _unpack(packed, like=small)
        summed = self._sums.decode([*backward[::-1], *small])
        gradients, (*moved, loss, accuracy) = _split(summed, len(self._factored.others))
        # Products are finite if their factors' squares add up to a finite number (Cauchy, Schwarz).
        finite = _are_finite([*gradients, tf.square(factors), *moved, loss, accuracy])
        gradients = self._factored.all_gradients(gradients, factors)
        done = tf.cond(finite, lambda: self._update(gradients, moved, step, rate), tf.no_op)
        with tf.control_dependencies([done]):
            updated = _now()
        overflow = self._loss_scale.adapt(finite) if self._loss_scale else False
        figures = [tf.cast(x, tf.float64) for x in (loss, accuracy, stop, finite, overflow)]
        return tf.stack([*figures, started, computed, exchanged, updated])

    def _update(
        self, gradients: Tensors, moved: Tensors, step: tf.Tensor, rate: tf.Tensor
    ) -> tf.Operation:
        self._optimizer.apply(gradients, rate)
        if self.average:
            self.average.update(step)
        for variable, value in zip(self._moving, moved, strict=True):
            variable.value.assign(value)
        return tf.no_op()

    def _sum_micro_batches(self, images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor) -> Tensors:
        """Return factors [images, width], then the sums of what else micro-batches make.

        All but the last in a loop, one at a time; the last outside of it, so that its backward pass
        overlaps with the exchange of what it has made already."""
        weights = [tf.convert_to_tensor(v) for v in self._weights]
        moving = [tf.convert_to_tensor(v.value) for v in self._moving]
        scale = tf.convert_to_tensor(self._loss_scale.scale if self._loss_scale else 1.0)

        def one(at: tf.Tensor | int) -> Tensors:
            seeds = self._dropout_seeds(step, self._share.start + at)
            micro_batch = images[at], labels[at]
            factors, parts = self._micro_batch(weights, moving, seeds, scale, *micro_batch)
            return [factors, *self._sums.encode(parts)]

        last = len(self._share) - 1
        if last == 0:
            return one(0)
        shapes = [self._weights[at].shape for at in self._factored.others]
        shapes += [*(v.shape for v in moving), [], []]
        # Not constants of the graph, which would stay: they are as large as the model.
        zeros = [
            tf.raw_ops.Empty(shape=part.shape, dtype=part.dtype, init=True)
            for part in self._sums.encode([tf.zeros(shape) for shape in shapes])
        ]
        width = self._factored.width
        each = tf.TensorArray(tf.float32, size=last, element_shape=[images.shape[1], width])

        def add(at: tf.Tensor, each: tf.TensorArray, *sums: tf.Tensor) -> Sequence[object]:
            factors, *parts = one(at)
            return at + 1, each.write(at, factors), *map(tf.add, sums, parts)

        _, each, *sums = tf.while_loop(
            lambda at, *_: at < last,
            add,
            (tf.constant(0), each, *zeros),
            parallel_iterations=1,
        )
        with tf.control_dependencies(sums):
            at = tf.identity(last)
        factors, *parts = one(at)
        before = tf.reshape(each.stack(), [last * images.shape[1], width])
        return [tf.concat([before, factors], axis=0), *map(tf.add, sums, parts)]

    def _micro_batch(
        self,
        weights: Tensors,
        moving: Tensors,
        seeds: Tensors,
        scale: tf.Tensor,
        images: tf.Tensor,
        labels: tf.Tensor,
    ) -> tuple[tf.Tensor, Tensors]:
        """Return the factors of a micro-batch; and its gradients of all that has none, its moved
        BatchNorm statistics, its loss and accuracy. All are parts of a mean over V."""
        before = dict(zip([v.path for v in self._moving], moving, strict=True))
        others = self.model.non_trainable_variables
        drawn = iter(seeds)
        with tf.GradientTape() as tape:
            tape.watch(weights)
            answers, after = self._factored.answers(
                weights,
                [next(drawn) if is_seed(v) else before.get(v.path, v.value) for v in others],
                tf.cast(images, tf.float32),
            )
            logits = tf.cast(answers["logits"], tf.float32)
            loss = tf.reduce_mean(self._losses(labels, logits)) / self._virtual_workers
            scaled = loss * scale if self._loss_scale else loss
        right = tf.cast(tf.equal(tf.argmax(logits, axis=1), labels), tf.float32)
        statistics = [m for v, m in zip(others, after, strict=True) if v.path in before]
        means = [value / self._virtual_workers for value in (*statistics, tf.reduce_mean(right))]
        wanted = [weights[at] for at in self._factored.others]
        gradients = tape.gradient(
            scaled, [*answers["outputs"], *wanted], unconnected_gradients="zero"
        )
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]  # not IndexedSlices
        if self._loss_scale:
            gradients = [tf.cast(gradient, tf.float32) / scale for gradient in gradients]
        back, gradients = _split(gradients, len(answers["outputs"]))
        factors = self._factored.pack(answers, back)
        return factors, [*gradients, *means[:-1], loss, means[-1]]

    def _losses(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Cross-entropy of each image; smoothed, with a mixture of its class and of all classes."""
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        if not self._label_smoothing:
            return losses
        even = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=1)
        return (1 - self._label_smoothing) * losses + self._label_smoothing * even

    def _dropout_seeds(self, step: tf.Tensor, virtual_worker: tf.Tensor | int) -> Tensors:
        """A seed, uint32 [2], for each layer that draws random numbers."""
        layers = sum(map(is_seed, self.model.non_trainable_variables))
        fold_in = tf.random.experimental.stateless_fold_in
        seeds = [
            fold_in(
                fold_in(tf.constant([self._seed, layer]), step, "philox"), virtual_worker, "philox"
            )
            for layer in range(layers)
        ]
        return [tf.bitcast(seed, tf.uint32) for seed in seeds]


def is_seed(variable: keras.Variable) -> bool:
    """Tell a layer's random state, which a step replaces, from what a model has learned."""
    return variable.path.endswith("seed_generator_state")


def changed_by_training(model: keras.Model) -> tuple[list[keras.Variable], list[tf.Tensor]]:
    """Return what a pass of `model` changes besides weights and seeds, in their order; and losses
    that layers have of their own.

    BatchNorm's statistics are changed; frozen weights, and constants, are not.
    """
    changed: list[keras.Variable] = []
    losses: list[tf.Tensor] = []

    def call(images: tf.Tensor) -> tf.Tensor:
        weights = [tf.convert_to_tensor(v.value) for v in model.trainable_variables]
        before = [tf.convert_to_tensor(v.value) for v in model.non_trainable_variables]
        answers, after, own = model.stateless_call(
            weights, before, images, training=True, return_losses=True
        )
        each = zip(model.non_trainable_variables, before, after, strict=True)
        changed.extend(v for v, old, new in each if old is not new and not is_seed(v))
        losses.extend(own)
        return answers

    image = tf.TensorSpec([1, *model.input.shape[1:]], tf.float32)
    tf.function(call, autograph=False).get_concrete_function(image)
    return changed, losses


def model_variables(model: keras.Model) -> dict[str, tf.Variable]:
    """Return weights and BatchNorm statistics by name: all that decides what a model answers."""
    return {v.path: v.value for v in model.variables if not is_seed(v)}


def _now() -> tf.Tensor:
    """The clock when the graph comes here (`tf.timestamp` refuses to run deterministically)."""
    return tf.ensure_shape(tf.numpy_function(time.perf_counter, [], tf.float64), [])


def _are_finite(tensors: Tensors) -> tf.Tensor:
    """Whether all elements are: a sum is finite only if each of its terms is."""
    return tf.math.is_finite(tf.add_n([tf.reduce_sum(tensor) for tensor in tensors]))


def _split(tensors: Tensors, at: int) -> tuple[Tensors, Tensors]:
    return tensors[:at], tensors[at:]


def _pack(tensors: Tensors) -> tf.Tensor:
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)


def _unpack(packed: tf.Tensor, like: Tensors) -> Tensors:
    parts = tf.split(packed, [tensor.shape.num_elements() for tensor in like])
    return [tf.reshape(part, tensor.shape) for part, tensor in zip(parts, like, strict=True)]
