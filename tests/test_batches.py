from collections.abc import Callable, Iterable
from dataclasses import replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image

from alexnet.config import AugmentConfig, DataConfig
from alexnet.data.batches import (
    ChunkReader,
    augment,
    decode_and_resize,
    evaluation_batches,
    training_batches,
)
from alexnet.data.order import Order, share
from alexnet.data.shards import ShardSet, Split
from alexnet.errors import DataError

SIZE = 67
Pixels = npt.NDArray[np.uint8]
Batch = tuple[npt.NDArray[Any], npt.NDArray[Any]]

PLAIN = DataConfig(image_size=SIZE)
CHANGED = DataConfig(
    image_size=SIZE,
    augment=AugmentConfig(shift=0.1, zoom=0.1, horizontal_flip=True, vertical_flip=True),
)


@pytest.fixture(scope="module")
def train(digits: Path) -> Split:
    return ShardSet.open(digits).splits["train"]


@pytest.fixture(scope="module")
def validation(digits: Path) -> Split:
    return ShardSet.open(digits).splits["validation"]


@pytest.fixture(scope="module")
def order(train: Split) -> Order:
    return Order(seed=5, chunk_rows=train.chunk_rows, virtual_workers=4, micro_batch=3, window=32)


@pytest.fixture(scope="module")
def labels(train: Split) -> npt.NDArray[np.int64]:
    """The label of every training row."""
    table = pq.read_table([train.folder / shard.file for shard in train.shards])
    return table["label"].to_numpy()


def take(batches: Iterable[tuple[tf.Tensor, tf.Tensor]], count: int) -> list[Batch]:
    return [(images.numpy(), numbers.numpy()) for images, numbers in islice(batches, count)]


def all_equal(one: list[Batch], other: list[Batch]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def test_a_training_batch_is_the_micro_batches_of_a_rank(
    train: Split, order: Order, labels: npt.NDArray[np.int64]
) -> None:
    batches = take(training_batches(train, order, range(1, 4), PLAIN, 7), 3)
    for step, (images, numbers) in enumerate(batches, start=7):
        assert (images.dtype, numbers.dtype) == (np.uint8, np.int64)
        assert (images.shape, numbers.shape) == ((3, 3, SIZE, SIZE, 3), (3, 3))
        rows = [order.rows(step, virtual_worker) for virtual_worker in (1, 2, 3)]
        np.testing.assert_array_equal(numbers, labels[np.array(rows)])


def test_a_training_image_is_that_of_its_row(train: Split, order: Order) -> None:
    reader = ChunkReader(train, capacity=2)
    ((images, _),) = take(training_batches(train, order, range(2, 3), PLAIN, 3), 1)
    encoded, _ = reader.rows(order.rows(3, 2))
    for image, data in zip(images[0], encoded, strict=True):
        np.testing.assert_array_equal(image, decode_and_resize(data, SIZE).numpy())


@pytest.mark.parametrize("config", [PLAIN, CHANGED], ids=["plain", "augmented"])
def test_ranks_together_have_what_one_rank_has(
    train: Split, order: Order, config: DataConfig
) -> None:
    alone = take(training_batches(train, order, range(4), config, 0), 4)
    shares = [
        take(training_batches(train, order, share(4, rank, 3), config, 0), 4) for rank in range(3)
    ]
    together = [
        (np.concatenate([x for x, _ in ranks]), np.concatenate([y for _, y in ranks]))
        for ranks in zip(*shares, strict=True)
    ]
    assert all_equal(alone, together)


@pytest.mark.parametrize("first_step", [2, 118, 119])
def test_starting_at_a_step_is_skipping_those_before(
    train: Split, order: Order, first_step: int
) -> None:
    assert order.steps_per_epoch == 119  # into the next epoch, too
    mine = range(3, 4)
    from_the_start = take(training_batches(train, order, mine, CHANGED, 0), first_step + 3)
    later = take(training_batches(train, order, mine, CHANGED, first_step), 3)
    assert all_equal(from_the_start[first_step:], later)


def test_changes_are_new_in_every_epoch_and_with_every_seed(train: Split) -> None:
    """Every row of an epoch in one micro-batch, so that epochs have the same rows."""
    few = replace(train.shards[0], row_groups=(6,))
    order = Order(seed=1, chunk_rows=(6,), virtual_workers=1, micro_batch=6, window=6)

    class FirstSix(Split):
        def read_chunk(self, chunk: int) -> tuple[list[bytes], npt.NDArray[np.int64]]:
            images, numbers = train.read_chunk(0)
            return images[:6], numbers[:6]

    split = FirstSix(name="few", folder=train.folder, shards=(few,))

    def images_by_row(seed: int, config: DataConfig, step: int) -> Pixels:
        seeded = replace(order, seed=seed)
        ((images, _),) = take(training_batches(split, seeded, range(1), config, step), 1)
        in_turn: Pixels = images[0][np.argsort(seeded.rows(step, 0))]
        return in_turn

    first = images_by_row(1, CHANGED, 0)
    for other in (images_by_row(1, CHANGED, 1), images_by_row(2, CHANGED, 0)):
        assert (first != other).reshape(6, -1).any(axis=1).all()
    np.testing.assert_array_equal(images_by_row(1, PLAIN, 0), images_by_row(2, PLAIN, 1))


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("batch", [32, 359, 1000])
def test_an_evaluation_has_every_row_once(validation: Split, world_size: int, batch: int) -> None:
    table = pq.read_table(validation.folder / validation.shards[0].file)
    found: list[int] = []
    for rank in range(world_size):
        rows = share(validation.rows, rank, world_size)
        batches = take(evaluation_batches(validation, rows, PLAIN, batch), 10_000)
        sizes = [len(numbers) for _, numbers in batches]
        assert sizes[:-1] == [batch] * (len(sizes) - 1)
        for images, numbers in batches:
            assert (images.dtype, images.shape[1:]) == (np.uint8, (SIZE, SIZE, 3))
            assert len(images) == len(numbers)
            found += numbers.tolist()
    assert found == table["label"].to_pylist()


def test_an_evaluation_changes_no_image(validation: Split) -> None:
    rows = range(250, 260)  # over the end of a chunk
    plain, changed = (
        take(evaluation_batches(validation, rows, config, 10), 2) for config in (PLAIN, CHANGED)
    )
    assert all_equal(plain, changed)
    encoded, _ = ChunkReader(validation, capacity=1).rows(np.arange(250, 260))
    for image, data in zip(plain[0][0], encoded, strict=True):
        np.testing.assert_array_equal(image, decode_and_resize(data, SIZE).numpy())


def test_a_rank_without_rows_evaluates_nothing(validation: Split) -> None:
    assert take(evaluation_batches(validation, range(0), PLAIN, 8), 1) == []


def test_threads_change_nothing(train: Split, order: Order) -> None:
    one, many = (
        take(
            training_batches(
                train, order, range(4), CHANGED.model_copy(update={"threads": threads}), 0
            ),
            3,
        )
        for threads in (1, 6)
    )
    assert all_equal(one, many)


@pytest.mark.parametrize("capacity", [1, 2, 6])
def test_a_reader_gives_any_rows_in_the_order_asked_for(train: Split, capacity: int) -> None:
    table = pq.read_table(train.folder / train.shards[0].file)
    rows = np.random.default_rng(0).permutation(train.rows)[:40]
    images, numbers = ChunkReader(train, capacity).rows(rows)
    assert images == [table["image"][int(row)]["bytes"].as_py() for row in rows]
    assert numbers.tolist() == [table["label"][int(row)].as_py() for row in rows]


def test_a_reader_reads_again_only_what_it_has_let_go(train: Split) -> None:
    read: list[int] = []

    class Counting(Split):
        def read_chunk(self, chunk: int) -> tuple[list[bytes], npt.NDArray[np.int64]]:
            read.append(chunk)
            return train.read_chunk(chunk)

    split = Counting(name="train", folder=train.folder, shards=train.shards)
    reader = ChunkReader(split, capacity=2)
    for row in (0, 1, 300, 2, 600, 3, 301):  # chunks 0 0 1 0 2 0 1
        reader.rows(np.array([row]))
    assert read == [0, 1, 2, 1]


def test_a_damaged_shard_is_a_data_error_for_who_trains(digits: Path, tmp_path: Path) -> None:
    split = ShardSet.open(digits).splits["validation"]
    data = bytearray((digits / split.shards[0].file).read_bytes())
    data[1000] ^= 1
    (tmp_path / split.shards[0].file).write_bytes(data)
    with pytest.raises(DataError, match="row group 0"):
        take(evaluation_batches(replace(split, folder=tmp_path), range(8), PLAIN, 4), 1)


def ramp() -> Pixels:
    """As bright as its column number, and as green as its row number."""
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    return np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)


def png(pixels: Pixels) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    np.testing.assert_array_equal(decode_and_resize(png(ramp()), SIZE).numpy(), ramp())


@pytest.mark.parametrize(("height", "width"), [(30, 120), (134, 67), (500, 20)])
def test_other_sizes_are_stretched_to_the_square(height: int, width: int) -> None:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * (200 / width), y * (200 / height), 0 * x], axis=-1).astype(np.uint8)
    resized = decode_and_resize(png(pixels), SIZE).numpy().astype(float)
    wanted = (np.arange(SIZE) + 0.5) * (200 / SIZE)
    inner = slice(3, -3)
    np.testing.assert_allclose(resized[:, inner, 0] - wanted[inner], 0, atol=6)
    np.testing.assert_allclose(resized[inner, :, 1] - wanted[inner, None], 0, atol=6)


def changed(config: AugmentConfig, image: Pixels, count: int = 48) -> list[Pixels]:
    change: Callable[..., tf.Tensor] = tf.function(lambda seed: augment(image, config, seed))
    return [change(tf.constant([7, row], tf.int64)).numpy() for row in range(count)]


def test_nothing_configured_is_nothing_done() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    for image in changed(AugmentConfig(), noise, count=4):
        np.testing.assert_array_equal(image, noise)


@pytest.mark.parametrize(
    ("horizontal", "vertical", "mirrors"),
    [
        (True, False, [(1, 1), (-1, 1)]),
        (False, True, [(1, 1), (1, -1)]),
        (True, True, [(1, 1), (-1, 1), (1, -1), (-1, -1)]),
    ],
)
def test_flips_are_exact_and_evenly_drawn(
    horizontal: bool, vertical: bool, mirrors: list[tuple[int, int]]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    config = AugmentConfig(horizontal_flip=horizontal, vertical_flip=vertical)
    images = changed(config, noise, count=100)
    counts = [sum(np.array_equal(i, noise[::y, ::x]) for i in images) for x, y in mirrors]
    assert sum(counts) == 100
    assert min(counts) >= 0.6 * 100 / len(mirrors)


def test_a_shift_moves_both_axes_within_its_bound() -> None:
    shifts = []
    for image in changed(AugmentConfig(shift=0.1), ramp()):
        moved = image.astype(float) - ramp()
        inner = moved[8:-8, 8:-8]
        assert np.ptp(inner[..., 0]) <= 1  # all pixels alike
        assert np.ptp(inner[..., 1]) <= 1
        shifts.append(inner.mean(axis=(0, 1))[:2])
        assert image[..., 0].max() <= SIZE - 1  # edges repeat: no black border, no wrap
        assert np.all(np.diff(image[..., 0].astype(int), axis=1) >= 0)
    assert np.abs(shifts).max() <= 0.1 * SIZE + 1
    assert np.ptp(shifts, axis=0).min() > 0.1 * SIZE  # spread over -6.7 to 6.7 on each axis
    assert abs(np.corrcoef(np.transpose(shifts))[0, 1]) < 0.5  # the axes are drawn apart


def test_a_zoom_scales_around_the_middle() -> None:
    scales = []
    middle = (SIZE - 1) // 2
    for image in changed(AugmentConfig(zoom=0.2), ramp()):
        assert np.abs(image[middle, middle, :2].astype(int) - middle).max() <= 1
        x = image[middle, :, 0].astype(float)
        inner = slice(15, -15)
        slope, _ = np.polyfit(np.arange(SIZE)[inner], x[inner], 1)
        scales.append(slope)
    assert min(scales) >= 0.8 - 0.05
    assert max(scales) <= 1.2 + 0.05
    assert np.ptp(scales) > 0.25


def test_changes_keep_the_brightness() -> None:
    smooth = np.full((SIZE, SIZE, 3), 100) + 2 * ramp()
    images = changed(AugmentConfig(shift=0.05, zoom=0.05), smooth.astype(np.uint8), count=200)
    assert np.mean(images) == pytest.approx(smooth.mean(), abs=0.2)


def test_a_seed_repeats() -> None:
    one, other = (changed(CHANGED.augment, ramp(), count=8) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert len({image.tobytes() for image in one}) == 8
