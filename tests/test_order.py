from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from alexnet.data import order as order_module
from alexnet.data.order import Order, share

Rows = npt.NDArray[np.int64]

orders = st.builds(
    Order,
    seed=st.integers(0, 2**31 - 1),
    chunk_rows=st.lists(st.integers(0, 40), min_size=1, max_size=12).map(tuple),
    virtual_workers=st.integers(1, 6),
    micro_batch=st.integers(1, 8),
    window=st.integers(1, 64),
)
CHUNKY = Order(seed=3, chunk_rows=(64,) * 40, virtual_workers=4, micro_batch=16, window=128)


def epoch_rows(order: Order, epoch: int) -> Rows:
    """Every row of an epoch, int64 [steps, V, micro_batch]."""
    first = epoch * order.steps_per_epoch
    steps = range(first, first + order.steps_per_epoch)
    return np.array([[order.rows(s, v) for v in range(order.virtual_workers)] for s in steps])


@given(orders, st.integers(0, 3))
def test_an_epoch_has_each_row_once_but_for_less_than_a_global_batch(
    order: Order, epoch: int
) -> None:
    assume(order.steps_per_epoch)
    rows, total = epoch_rows(order, epoch), sum(order.chunk_rows)
    assert rows.shape == (order.steps_per_epoch, order.virtual_workers, order.micro_batch)
    assert len(np.unique(rows)) == rows.size
    assert rows.min() >= 0
    assert rows.max() < total
    assert 0 <= total - rows.size < order.virtual_workers * order.micro_batch


@given(orders, st.randoms(use_true_random=False))
def test_any_step_can_be_asked_for_at_any_time(order: Order, random: Random) -> None:
    assume(order.steps_per_epoch)
    steps, streams = range(2 * order.steps_per_epoch), range(order.virtual_workers)
    places = [(step, stream) for step in steps for stream in streams]
    in_turn = {place: order.rows(*place) for place in places}
    random.shuffle(places)
    for place in places[:20]:
        order_module._window.cache_clear()
        order_module._line.cache_clear()
        np.testing.assert_array_equal(order.rows(*place), in_turn[place])


def test_writing_into_what_was_returned_changes_nothing() -> None:
    rows = CHUNKY.rows(5, 2)
    wanted = rows.copy()
    rows[:] = -1
    np.testing.assert_array_equal(CHUNKY.rows(5, 2), wanted)


def test_the_order_is_the_same_for_ever() -> None:
    """A run that is resumed by a later version goes on with the rows it had not seen."""
    order = Order(seed=7, chunk_rows=(5, 3, 4), virtual_workers=2, micro_batch=2, window=4)
    assert epoch_rows(order, 0).tolist() == [[[0, 2], [11, 5]], [[3, 1], [9, 10]], [[4, 8], [7, 6]]]
    assert epoch_rows(order, 1).tolist() == [[[0, 3], [10, 11]], [[2, 1], [5, 9]], [[4, 8], [7, 6]]]


def test_epochs_and_seeds_differ() -> None:
    again = Order(seed=4, chunk_rows=(64,) * 40, virtual_workers=4, micro_batch=16, window=128)
    first = epoch_rows(CHUNKY, 0)
    for other in (epoch_rows(CHUNKY, 1), epoch_rows(again, 0)):
        assert np.mean(first == other) < 0.05
        np.testing.assert_array_equal(np.sort(first, axis=None), np.sort(other, axis=None))


@pytest.mark.parametrize("seed", [0, 1])
def test_epoch_and_seed_are_not_interchangeable(seed: int) -> None:
    """Epoch e + 1 of seed s is not epoch e of seed s + 1."""
    here, there = (
        Order(seed=s, chunk_rows=(9,) * 9, virtual_workers=1, micro_batch=9, window=9)
        for s in (seed, seed + 1)
    )
    assert not np.array_equal(epoch_rows(here, 1), epoch_rows(there, 0))


def test_the_rows_left_out_change_with_the_epoch() -> None:
    order = Order(seed=0, chunk_rows=(4,) * 6, virtual_workers=2, micro_batch=5, window=5)
    assert order.steps_per_epoch == 2  # 20 of 24 rows
    seen = np.concatenate([epoch_rows(order, epoch).ravel() for epoch in range(60)])
    assert set(seen.tolist()) == set(range(24))


def test_a_stream_stays_within_its_own_chunks() -> None:
    chunks = epoch_rows(CHUNKY, 0) // 64  # [steps, V, micro_batch]
    of_stream = [set(np.unique(chunks[:, v])) for v in range(4)]
    assert [len(mine) for mine in of_stream] == [10] * 4  # 40 chunks of equal size, cut evenly
    assert len(set.union(*of_stream)) == 40


def test_a_reader_needs_few_chunks_at_a_time_and_a_window_mixes_them() -> None:
    order = Order(seed=3, chunk_rows=(60,) * 40, virtual_workers=4, micro_batch=16, window=128)
    chunks = epoch_rows(order, 2) // 60
    for first in range(0, order.steps_per_epoch - 8, 8):  # 8 micro-batches to a window
        window = chunks[first : first + 8, 1]
        assert len(np.unique(window)) <= 128 // 60 + 2
    assert np.mean([len(np.unique(micro)) > 1 for micro in chunks.reshape(-1, 16)]) > 0.9


@pytest.mark.parametrize(
    ("chunk_rows", "steps"), [((), 0), ((7,), 0), ((8,), 1), ((0, 5, 11), 2), ((24, 7), 3)]
)
def test_steps_per_epoch(chunk_rows: tuple[int, ...], steps: int) -> None:
    order = Order(seed=0, chunk_rows=chunk_rows, virtual_workers=2, micro_batch=4, window=9)
    assert order.steps_per_epoch == steps


def test_epoch_of() -> None:
    assert [CHUNKY.epoch_of(step) for step in (0, 39, 40, 80)] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("virtual_workers", "world_size", "shares"),
    [
        (4, 1, [range(0, 4)]),
        (4, 4, [range(0, 1), range(1, 2), range(2, 3), range(3, 4)]),
        (8, 3, [range(0, 2), range(2, 5), range(5, 8)]),
        (2, 3, [range(0, 0), range(0, 1), range(1, 2)]),  # rows of an evaluation may be as few
    ],
)
def test_share(virtual_workers: int, world_size: int, shares: list[range]) -> None:
    assert [share(virtual_workers, rank, world_size) for rank in range(world_size)] == shares


@given(st.integers(1, 300), st.data())
def test_shares_are_all_of_v_contiguous_and_even(virtual_workers: int, data: st.DataObject) -> None:
    world_size = data.draw(st.integers(1, virtual_workers))
    shares = [share(virtual_workers, rank, world_size) for rank in range(world_size)]
    assert [v for mine in shares for v in mine] == list(range(virtual_workers))
    sizes = {len(mine) for mine in shares}
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
