"""Top-1, top-5 and loss over a split; every image counts once, at any number of ranks."""

import math
from collections.abc import Callable, Iterable
from typing import TypedDict

import keras
import tensorflow as tf


class Evaluation(TypedDict):
    """What a model scores; shares in 0..1, loss in nats."""

    top1: float
    top5: float
    loss: float
    images: int


class Evaluator:
    """Scores a model whose outputs are logits. `top5` is top-k for fewer than five classes."""

    def __init__(
        self,
        model: keras.Model,
        batches: Callable[[], Iterable[tuple[tf.Tensor, tf.Tensor]]],
        sum_over_ranks: Callable[[list[tf.Tensor]], list[tf.Tensor]],
    ) -> None:
        """Score on this rank's `batches`: images uint8 [n, views, size, size, 3], labels int64 [n].

        An image's views are crops of it, whose predicted probabilities are averaged.
        """
        self._model = model
        self._batches = batches
        self._sum_over_ranks = sum_over_ranks
        self._score = tf.function(self._score_batch, autograph=False, reduce_retracing=True)

    def __call__(self, on_batch: Callable[[], None] = lambda: None) -> Evaluation:
        """Return the scores over all ranks' images. A collective: all ranks must call it."""
        sums = tf.zeros([4], tf.float64)
        for images, labels in self._batches():
            sums += self._score(images, labels)
            on_batch()
        (total,) = self._sum_over_ranks([sums])
        right, right5, loss, count = total.numpy().tolist()
        return {
            "top1": right / count,
            "top5": right5 / count,
            "loss": loss / count,
            "images": int(count),
        }

    def _score_batch(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        _, views, height, width, channels = images.shape
        flat = tf.cast(tf.reshape(images, [-1, height, width, channels]), tf.float32)
        logits = self._model(flat, training=False)
        by_view = tf.reshape(tf.nn.log_softmax(logits), [-1, views, logits.shape[-1]])
        scores = tf.reduce_logsumexp(by_view, axis=1) - math.log(views)
        losses = -tf.gather(scores, labels, batch_dims=1)
        right = [tf.math.in_top_k(labels, scores, k) for k in (1, min(5, scores.shape[-1]))]
        rows = [*(tf.cast(r, tf.float64) for r in right), tf.cast(losses, tf.float64)]
        return tf.stack([*map(tf.reduce_sum, rows), tf.cast(tf.size(labels), tf.float64)])
