"""Rows to tensors: which rows, in what order, however many threads and ranks make them."""

import dataclasses
import threading
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from alexnet.config import AugmentConfig, DataConfig
from alexnet.data.augment import resized
from alexnet.data.batches import Batch, Batches, evaluation_batches, training_batches
from alexnet.data.images import Pixels, decode
from alexnet.data.order import Order, share
from alexnet.data.reader import RowReader
from alexnet.data.shards import Chunk, ShardSet, Split
from alexnet.errors import DataError

SIZE = 67
TRAIN, VALIDATION = "train", "validation"

PLAIN = DataConfig(image_size=SIZE)
CHANGED = DataConfig(
    image_size=SIZE,
    augment=AugmentConfig(
        shift=0.1, zoom=0.1, horizontal_flip=True, vertical_flip=True, colour=0.1
    ),
)
PAPER = DataConfig(
    image_size=SIZE,
    fit="crop",
    resize=76,
    evaluation_crops=10,
    augment=AugmentConfig(horizontal_flip=True, colour=0.1),
)
CONFIGS = pytest.mark.parametrize(
    "config", [PLAIN, CHANGED, PAPER], ids=["plain", "changed", "paper"]
)


@pytest.fixture(scope="module")
def dataset(digits: Path) -> ShardSet:
    return ShardSet.open(digits)


@pytest.fixture(scope="module")
def order(dataset: ShardSet) -> Order:
    rows = dataset.splits[TRAIN].chunk_rows
    return Order(seed=5, chunk_rows=rows, virtual_workers=4, micro_batch=3, window=32)


Table = list[tuple[bytes, int]]


def table(dataset: ShardSet, name: str) -> Table:
    """Every row's image and label, as a stranger reads them."""
    split = dataset.splits[name]
    rows = pq.read_table([split.folder.local / shard.file for shard in split.shards]).to_pylist()
    return [(row["image"]["bytes"], row["label"]) for row in rows]


@pytest.fixture(scope="module")
def train_table(dataset: ShardSet) -> Table:
    return table(dataset, TRAIN)


@pytest.fixture(scope="module")
def validation_table(dataset: ShardSet) -> Table:
    return table(dataset, VALIDATION)


def take(batches: Iterable[Batch], count: int) -> list[Batch]:
    return list(islice(batches, count))


def all_equal(one: list[Batch], other: list[Batch]) -> bool:
    return all(
        np.array_equal(x[0], y[0]) and np.array_equal(x[1], y[1])
        for x, y in zip(one, other, strict=True)
    )


def plain(encoded: bytes) -> Pixels:
    return resized(decode(encoded), SIZE, SIZE)


def test_a_training_batch_is_the_micro_batches_of_a_rank(
    dataset: ShardSet, order: Order, train_table: Table
) -> None:
    batches = take(training_batches(dataset, order, range(1, 4), PLAIN, 7), 3)
    for step, (images, numbers) in enumerate(batches, start=7):
        assert (images.dtype, numbers.dtype) == (np.uint8, np.int64)
        assert (images.shape, numbers.shape) == ((3, 3, SIZE, SIZE, 3), (3, 3))
        for worker, (some, labels) in enumerate(zip(images, numbers, strict=True), start=1):
            for row, image, label in zip(order.rows(step, worker), some, labels, strict=True):
                assert label == train_table[row][1]
                np.testing.assert_array_equal(image, plain(train_table[row][0]))


@CONFIGS
def test_ranks_together_have_what_one_rank_has(
    dataset: ShardSet, order: Order, config: DataConfig
) -> None:
    alone = take(training_batches(dataset, order, range(4), config, 0), 4)
    shares = [
        take(training_batches(dataset, order, share(4, rank, 3), config, 0), 4) for rank in range(3)
    ]
    together = [
        (np.concatenate([x for x, _ in ranks]), np.concatenate([y for _, y in ranks]))
        for ranks in zip(*shares, strict=True)
    ]
    assert all_equal(alone, together)


@pytest.mark.parametrize("first_step", [2, 118, 119])
def test_starting_at_a_step_is_skipping_those_before(
    dataset: ShardSet, order: Order, first_step: int
) -> None:
    assert order.steps_per_epoch == 119  # into the next epoch, too
    mine = range(3, 4)
    from_the_start = take(training_batches(dataset, order, mine, CHANGED, 0), first_step + 3)
    later = take(training_batches(dataset, order, mine, CHANGED, first_step), 3)
    assert all_equal(from_the_start[first_step:], later)


def test_changes_are_new_in_every_epoch_and_with_every_seed(dataset: ShardSet) -> None:
    """The first six rows make an epoch of one micro-batch, so that epochs have the same rows."""
    order = Order(seed=1, chunk_rows=(6,), virtual_workers=1, micro_batch=6, window=6)

    def images_by_row(seed: int, config: DataConfig, step: int) -> Pixels:
        seeded = replace(order, seed=seed)
        ((images, _),) = take(training_batches(dataset, seeded, range(1), config, step), 1)
        in_turn: Pixels = images[0][np.argsort(seeded.rows(step, 0))]
        return in_turn

    first = images_by_row(1, CHANGED, 0)
    for other in (images_by_row(1, CHANGED, 1), images_by_row(2, CHANGED, 0)):
        assert (first != other).reshape(6, -1).any(axis=1).all()
    np.testing.assert_array_equal(images_by_row(1, PLAIN, 0), images_by_row(2, PLAIN, 1))


def test_what_a_row_becomes_does_not_depend_on_its_step(dataset: ShardSet) -> None:
    """Only on seed, epoch and row: two orders of the same rows give the same pictures."""
    found: list[dict[bytes, int]] = []
    for window, workers in ((6, 1), (2, 3)):
        order = Order(
            seed=1, chunk_rows=(6,), virtual_workers=workers, micro_batch=2, window=window
        )
        batches = training_batches(dataset, order, range(workers), CHANGED, 0)
        images = [
            (int(row), image.tobytes())
            for step, (some, _) in enumerate(take(batches, order.steps_per_epoch))
            for worker, pair in enumerate(some)
            for row, image in zip(order.rows(step, worker), pair, strict=True)
        ]
        found.append({image: row for row, image in images})
    assert found[0] == found[1]
    assert len(found[0]) == 6


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("batch", [32, 359, 1000])
@CONFIGS
def test_an_evaluation_has_every_row_once(
    dataset: ShardSet,
    validation_table: Table,
    world_size: int,
    batch: int,
    config: DataConfig,
) -> None:
    found: list[int] = []
    for rank in range(world_size):
        rows = share(len(validation_table), rank, world_size)
        batches = take(evaluation_batches(dataset, VALIDATION, rows, config, batch), 10_000)
        sizes = [len(numbers) for _, numbers in batches]
        assert sizes[:-1] == [batch] * (len(sizes) - 1)
        for images, numbers in batches:
            assert images.dtype == np.uint8
            assert images.shape[1:] == (config.evaluation_crops, SIZE, SIZE, 3)
            assert len(images) == len(numbers)
            found += numbers.tolist()
    assert found == [label for _, label in validation_table]


def test_an_evaluation_changes_no_image(dataset: ShardSet, validation_table: Table) -> None:
    rows = range(250, 260)  # over the end of a chunk
    same, changed = (
        take(evaluation_batches(dataset, VALIDATION, rows, config, 10), 2)
        for config in (PLAIN, CHANGED)
    )
    assert all_equal(same, changed)
    for (image,), (encoded, _) in zip(same[0][0], validation_table[250:260], strict=True):
        np.testing.assert_array_equal(image, plain(encoded))


def test_a_rank_without_rows_evaluates_nothing(dataset: ShardSet) -> None:
    assert take(evaluation_batches(dataset, VALIDATION, range(0), PLAIN, 8), 1) == []


@CONFIGS
@pytest.mark.parametrize("change", [{"threads": 6}, {"read_ahead": 0}, {"read_ahead": 40}])
def test_threads_and_reading_ahead_change_nothing(
    dataset: ShardSet, order: Order, config: DataConfig, change: dict[str, int]
) -> None:
    one, other = (
        take(
            training_batches(
                dataset, order, range(4), config.model_copy(update={"threads": 1, **more}), 0
            ),
            12,
        )
        for more in ({}, change)
    )
    assert all_equal(one, other)


def test_a_micro_batch_larger_than_a_thread_s_share_is_whole(
    dataset: ShardSet, train_table: Table
) -> None:
    order = Order(
        seed=5,
        chunk_rows=dataset.splits[TRAIN].chunk_rows,
        virtual_workers=2,
        micro_batch=101,
        window=300,
    )
    ((images, labels),) = take(training_batches(dataset, order, range(2), PLAIN, 0), 1)
    rows = np.concatenate([order.rows(0, worker) for worker in range(2)])
    assert labels.ravel().tolist() == [train_table[row][1] for row in rows]
    for image, row in zip(images.reshape(202, SIZE, SIZE, 3), rows, strict=True):
        np.testing.assert_array_equal(image, plain(train_table[row][0]))


def threads_of_batches() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith(("decode", "read"))}


def some_batches(dataset: ShardSet, order: Order) -> list[Batches]:
    rows = range(dataset.splits[VALIDATION].rows)
    return [
        training_batches(dataset, order, range(4), CHANGED, 0),
        evaluation_batches(dataset, VALIDATION, rows, PLAIN, 8),
    ]


def test_who_takes_no_more_leaves_no_thread_behind(dataset: ShardSet, order: Order) -> None:
    before = threads_of_batches()
    for batches in some_batches(dataset, order):
        with closing(iter(batches)) as iterator:  # type: ignore[type-var]
            next(iterator)
            assert threads_of_batches() > before
        assert threads_of_batches() <= before


def test_an_error_leaves_no_thread_behind(dataset: ShardSet, order: Order, tmp_path: Path) -> None:
    before = threads_of_batches()
    nowhere = replace(dataset.splits[TRAIN].folder, path=str(tmp_path))
    splits = {name: replace(split, folder=nowhere) for name, split in dataset.splits.items()}
    for batches in some_batches(replace(dataset, splits=splits), order):
        with pytest.raises(DataError, match="row group"):
            take(batches, 1)
        assert threads_of_batches() <= before


class Recorded(Split):
    """A split in files of others, whose images are not found byte by byte."""

    def read_chunk(self, chunk: int) -> Chunk:
        CHUNKS_READ.append(chunk)
        return super().read_chunk(chunk)


CHUNKS_READ: list[int] = []


@pytest.fixture
def of_others(dataset: ShardSet) -> Recorded:
    CHUNKS_READ.clear()
    split = dataset.splits[TRAIN]
    fields = {field.name: getattr(split, field.name) for field in dataclasses.fields(split)}
    shards = tuple(replace(shard, extents="") for shard in split.shards)
    return Recorded(**{**fields, "shards": shards})


@pytest.mark.parametrize("capacity", [1, 2, 6])
@pytest.mark.parametrize("whose", ["ours", "others"])
def test_a_reader_gives_any_rows_in_the_order_asked_for(
    dataset: ShardSet, of_others: Recorded, train_table: Table, capacity: int, whose: str
) -> None:
    reader = RowReader(dataset.splits[TRAIN] if whose == "ours" else of_others, capacity)
    with closing(reader):
        for row in np.random.default_rng(0).permutation(len(train_table))[:40].tolist():
            image, label = reader.row(row)
            assert (bytes(image), label) == train_table[row]


def test_a_reader_reads_again_only_what_it_has_let_go(of_others: Recorded) -> None:
    with closing(RowReader(of_others, capacity=2)) as reader:
        for row in (0, 1, 300, 2, 600, 3, 301):  # chunks 0 0 1 0 2 0 1
            reader.row(row)
    assert CHUNKS_READ == [0, 1, 2, 1]


def test_what_is_expected_is_read_once(of_others: Recorded, train_table: Table) -> None:
    with closing(RowReader(of_others, capacity=3)) as reader:
        reader.expect(np.array([5, 700, 6, 300]))
        for row in (700, 5, 301, 6):
            assert reader.row(row)[1] == train_table[row][1]
    assert sorted(CHUNKS_READ) == [0, 1, 2]


@pytest.mark.parametrize(("row", "chunk"), [(0, 0), (255, 0), (256, 1), (1437, 5)])
def test_a_row_is_named_by_file_row_group_and_place(
    dataset: ShardSet, row: int, chunk: int
) -> None:
    split = dataset.splits[TRAIN]
    with closing(RowReader(split, capacity=1)) as reader:
        file = split.folder / split.shards[0].file
        assert reader.name_of(row) == f"{file}: row group {chunk}, row {row - 256 * chunk}"
