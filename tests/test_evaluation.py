"""Scores: every image once, an image's views averaged as probabilities, sums over ranks."""

from collections.abc import Callable
from typing import Any, cast

import keras
import numpy as np
import pytest
import tensorflow as tf

from alexnet.data.images import Pixels
from alexnet.evaluation import Evaluation, Evaluator

CLASSES = 7


class FirstPixels:
    """Stands for a network: class c likes one of the first pixels."""

    output_shape = (None, CLASSES)

    def __call__(self, images: Any, training: bool) -> tf.Tensor:
        assert not training
        assert images.dtype == tf.float32
        return tf.reshape(images, [-1, 2 * 2 * 3])[:, :CLASSES] / 32.0


def score(
    batches: list[tuple[Pixels, Any]],
    sum_over_ranks: Callable[[list[tf.Tensor]], list[tf.Tensor]] = lambda tensors: tensors,
) -> Evaluation:
    return evaluator(batches, sum_over_ranks)()


def evaluator(
    batches: list[tuple[Pixels, Any]],
    sum_over_ranks: Callable[[list[tf.Tensor]], list[tf.Tensor]] = lambda tensors: tensors,
) -> Evaluator:
    return Evaluator(cast(keras.Model, FirstPixels()), lambda: batches, sum_over_ranks)


def data(images: int, views: int) -> tuple[Pixels, Any]:
    rng = np.random.default_rng(images)
    return (
        rng.integers(0, 256, (images, views, 2, 2, 3), np.uint8),
        rng.integers(0, CLASSES, images, np.int64),
    )


def expected(pixels: Pixels, labels: Any) -> dict[str, float]:
    logits = pixels.reshape(*pixels.shape[:2], 12)[..., :CLASSES] / 32.0
    powers = np.exp(logits)
    probabilities = (powers / powers.sum(-1, keepdims=True)).mean(axis=1)
    mine = probabilities[np.arange(len(labels)), labels]
    rank = (probabilities > mine[:, None]).sum(1)
    return {
        "top1": float((rank < 1).mean()),
        "top5": float((rank < 5).mean()),
        "loss": float(-np.log(mine).mean()),
        "images": len(labels),
    }


@pytest.mark.parametrize("views", [1, 10])
def test_views_are_averaged_as_probabilities(views: int) -> None:
    pixels, labels = data(101, views)
    assert score([(pixels, labels)]) == pytest.approx(expected(pixels, labels), rel=1e-5)


@pytest.mark.parametrize("cuts", [[50], [1, 2, 100], [33, 66, 99]])
def test_batches_of_any_size_score_the_same(cuts: list[int]) -> None:
    pixels, labels = data(101, 10)
    parts = list(zip(np.split(pixels, cuts), np.split(labels, cuts), strict=True))
    assert score(parts) == pytest.approx(expected(pixels, labels), rel=1e-5)


def test_ranks_score_their_images_together() -> None:
    """Also a rank that has none."""
    pixels, labels = data(60, 10)
    sums: list[tf.Tensor] = []

    def collect(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        sums.append(tensors[0])
        return [tf.add_n(sums)]

    for part in ([(pixels[:40], labels[:40])], [], [(pixels[40:], labels[40:])]):
        total = score(part, collect)
    assert total == pytest.approx(expected(pixels, labels), rel=1e-5)


def test_the_same_view_ten_times_scores_as_one() -> None:
    pixels, labels = data(30, 1)
    ten = score([(np.repeat(pixels, 10, axis=1), labels)])
    assert ten == pytest.approx(score([(pixels, labels)]), rel=1e-5)


def test_confusion_counts_each_image_by_class_and_answer() -> None:
    pixels, labels = data(101, 10)
    found = evaluator([(pixels[:60], labels[:60]), (pixels[60:], labels[60:])])
    scores = found()
    logits = pixels.reshape(101, 10, 12)[..., :CLASSES] / 32.0
    powers = np.exp(logits)
    answers = (powers / powers.sum(-1, keepdims=True)).mean(axis=1).argmax(axis=1)
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    np.add.at(counts, (labels, answers), 1)
    np.testing.assert_array_equal(found.confusion, counts)
    assert scores["top1"] == pytest.approx(np.trace(counts) / 101)
