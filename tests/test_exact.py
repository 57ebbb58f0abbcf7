"""Fixed-point sums: no order, no silent nonsense."""

from random import Random

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from alexnet.exact import LIMIT, FixedPoint

CODE = FixedPoint()
SUMMAND = st.floats(-2000, 2000, width=32)


def total(summands: list[float], order: list[int]) -> list[tf.Tensor]:
    """The encoded sum of one-number tensors, added up in `order`."""
    encoded = [CODE.encode([tf.constant([summands[at]])]) for at in order]
    sums = encoded[0]
    for other in encoded[1:]:
        sums = list(map(tf.add, sums, other))
    return sums


@given(st.lists(SUMMAND, min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_a_sum_has_no_order(summands: list[float], random: Random) -> None:
    order = list(range(len(summands)))
    shuffled = sorted(order, key=lambda _: random.random())
    for one, other in zip(total(summands, order), total(summands, shuffled), strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()
    (decoded,) = CODE.decode(total(summands, order))
    exact = sum(map(np.float64, summands))
    assert decoded.numpy()[0] == pytest.approx(exact, rel=1e-6, abs=1e-11)


def test_the_largest_sum_fits() -> None:
    largest = np.nextafter(np.float32(LIMIT), np.float32(0))
    encoded = CODE.encode([tf.constant([largest, -largest])])
    many = [tensor * 1024 for tensor in encoded]
    (decoded,) = CODE.decode(many)
    np.testing.assert_allclose(decoded.numpy(), [1024 * largest, -1024 * largest], rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), LIMIT, -LIMIT])
def test_what_cannot_be_coded_makes_the_whole_sum_nan(bad: float) -> None:
    good = CODE.encode([tf.constant([1.0, 2.0]), tf.constant(3.0)])
    poisoned = CODE.encode([tf.constant([1.0, bad]), tf.constant(3.0)])
    for tensor in CODE.decode(list(map(tf.add, good, poisoned))):
        assert np.isnan(tensor.numpy()).all()
