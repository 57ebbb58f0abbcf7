"""Scores and confusion over a split; every image counts once, at any number of ranks."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypedDict

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf


class Evaluation(TypedDict):
    """What a model scores; shares in 0..1, loss in nats."""

    top1: float
    top5: float
    loss: float
    images: int


class Scored(NamedTuple):
    """A batch of this rank, and what the model says of it."""

    images: npt.NDArray[np.uint8]  # [n, views, size, size, 3]
    labels: npt.NDArray[np.int64]  # [n]
    scores: tf.Tensor  # logarithms of probabilities, float32 [n, classes]


class Evaluator:
    """Scores a model whose outputs are logits. `top5` is top-k for fewer than five classes.

    `confusion` is that of the last evaluation: images by class (row) and by answer (column).
    """

    confusion: npt.NDArray[np.int64]

    def __init__(
        self,
        model: keras.Model,
        batches: Callable[[], Iterable[tuple[tf.Tensor, tf.Tensor]]],
        sum_over_ranks: Callable[[list[tf.Tensor]], list[tf.Tensor]],
        weights: Sequence[tf.Variable] | None = None,
    ) -> None:
        """Score on this rank's `batches`: images uint8 [n, views, size, size, 3], labels int64 [n].

        An image's views are crops of it, whose predicted probabilities are averaged. `weights`
        take the place of the model's trainable ones (None: they do not).
        """
        self._model = model
        self._weights = weights
        self._batches = batches
        self._sum_over_ranks = sum_over_ranks
        self._score = tf.function(self._score_batch, autograph=False, reduce_retracing=True)

    def __call__(self, on_batch: Callable[[Scored], None] = lambda scored: None) -> Evaluation:
        """Return the scores over all ranks' images. A collective: all ranks must call it."""
        classes = self._model.output_shape[-1]
        sums = tf.zeros([4 + classes**2], tf.float64)
        for images, labels in self._batches():
            more, scores = self._score(images, labels)
            sums += more
            on_batch(Scored(images, labels, scores))
        (total,) = self._sum_over_ranks([sums])
        right, right5, loss, count = total[:4].numpy().tolist()
        self.confusion = total[4:].numpy().astype(np.int64).reshape(classes, classes)
        return {
            "top1": right / count,
            "top5": right5 / count,
            "loss": loss / count,
            "images": int(count),
        }

    def _logits(self, images: tf.Tensor) -> tf.Tensor:
        if self._weights is None:
            return self._model(images, training=False)
        weights = [tf.convert_to_tensor(v) for v in self._weights]
        others = [tf.convert_to_tensor(v.value) for v in self._model.non_trainable_variables]
        logits, _ = self._model.stateless_call(weights, others, images, training=False)
        return logits

    def _score_batch(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return what is added up over all batches, and the logarithms of the probabilities."""
        _, views, height, width, channels = images.shape
        flat = tf.cast(tf.reshape(images, [-1, height, width, channels]), tf.float32)
        logits = tf.cast(self._logits(flat), tf.float32)
        by_view = tf.reshape(tf.nn.log_softmax(logits), [-1, views, logits.shape[-1]])
        scores = tf.reduce_logsumexp(by_view, axis=1) - math.log(views)
        losses = -tf.gather(scores, labels, batch_dims=1)
        right = [tf.math.in_top_k(labels, scores, k) for k in (1, min(5, scores.shape[-1]))]
        rows = [*(tf.cast(r, tf.float64) for r in right), tf.cast(losses, tf.float64)]
        classes = scores.shape[-1]
        truth, answer = (tf.one_hot(x, classes) for x in (labels, tf.argmax(scores, axis=1)))
        confusion = tf.cast(tf.matmul(truth, answer, transpose_a=True), tf.float64)
        figures = [*map(tf.reduce_sum, rows), tf.cast(tf.size(labels), tf.float64)]
        return tf.concat([tf.stack(figures), tf.reshape(confusion, [-1])], axis=0), scores
