"""A byte that flips, a file that ends early: never trained on in silence."""

import shutil
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest

from alexnet.config import DataConfig
from alexnet.data.batches import evaluation_batches, training_batches
from alexnet.data.order import Order, share
from alexnet.data.prepare import PrepareOptions, prepare
from alexnet.data.reader import BadRowError, RowReader
from alexnet.data.shards import Chunk, ShardSet, Split
from alexnet.errors import DataError
from tests.conftest import ImageTree

PLAIN = DataConfig(image_size=67)
SKIP = DataConfig(image_size=67, on_bad_row="skip", max_bad_rows=1)


def chunks(dataset: ShardSet) -> list[Chunk]:
    return [
        split.read_chunk(chunk)
        for split in dataset.splits.values()
        for chunk in range(len(split.chunk_rows))
    ]


def rows(found: Chunk) -> list[tuple[bytes, int] | None]:
    """Each row's image and label; None if it is known to be bad."""
    return [
        None if image is None else (bytes(image), label)
        for image, label in zip(found.images, found.labels.tolist(), strict=True)
    ]


def read_alone(split: Split) -> list[tuple[bytes, int] | None]:
    """Each row as a reader gets it straight from the file."""
    reader, found = RowReader(split, capacity=1), list[tuple[bytes, int] | None]()
    for row in range(split.rows):
        try:
            image, label = reader.row(row)
            found.append((bytes(image), label))
        except BadRowError:
            found.append(None)
    reader.close()
    return found


class Damage:
    """A copy of a set of which one file at a time is damaged."""

    def __init__(self, whole: Path, copy: Path) -> None:
        self.copy = Path(shutil.copytree(whole, copy))
        self.wanted = [rows(chunk) for chunk in chunks(ShardSet.open(whole))]

    def bad_rows(self, file: str, data: bytes) -> int:
        """Return how many rows are bad with `data` in the place of a file; none may be wrong."""
        path = self.copy / file
        whole = path.read_bytes()
        try:
            path.write_bytes(data)
            dataset = ShardSet.open(self.copy)
            found = chunks(dataset)
            alone = [row for split in dataset.splits.values() for row in read_alone(split)]
        finally:
            path.write_bytes(whole)
        for seen, wanted in zip(found, self.wanted, strict=True):
            for row, (was, should) in enumerate(zip(rows(seen), wanted, strict=True)):
                assert was == should if was else row in seen.bad, (file, row, seen.bad.get(row))
        assert all(
            was is None or was == should
            for was, should in zip(alone, chain(*self.wanted), strict=True)
        )
        return sum(len(chunk.bad) for chunk in found)


def flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def test_200_flips_and_50_truncations_change_nothing_or_are_named(
    digits: Path, tmp_path: Path
) -> None:
    damage, rng = Damage(digits, tmp_path / "set"), np.random.default_rng(7)
    files = {path.name: path.read_bytes() for path in sorted(digits.glob("*.parquet"))}
    noticed = 0
    for _ in range(200):
        name = rng.choice(list(files))
        data = flipped(files[name], int(rng.integers(len(files[name]))), int(rng.integers(8)))
        noticed += damage.bad_rows(name, data) > 0
    assert noticed > 150  # few bytes are of no account
    for _ in range(50):
        name = rng.choice(list(files))
        data = files[name][: int(rng.integers(len(files[name])))]
        assert damage.bad_rows(name, data) > 0


def test_a_flip_in_any_byte_of_the_format_itself_is_as_harmless(
    image_tree: ImageTree, tmp_path: Path
) -> None:
    """Headers and footers have no checksum of their own: all their bytes, one after the other."""
    names = [f"{split}/{name}/{i}.png" for split in ("train", "val") for name in "ab" for i in "12"]
    whole = tmp_path / "whole"
    dataset = prepare(str(image_tree(*names, side=2)), whole)
    damage, rng = Damage(whole, tmp_path / "set"), np.random.default_rng(8)
    file = dataset.splits["train"].shards[0].file
    data = (whole / file).read_bytes()
    assert len(data) < 4000
    for at in range(len(data)):
        damage.bad_rows(file, flipped(data, at, int(rng.integers(8))))


@pytest.fixture(scope="module")
def damaged(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with three bad rows, two of them neighbours, in training and one in validation."""
    folder = Path(shutil.copytree(digits, tmp_path_factory.mktemp("damaged") / "set"))
    for split, wanted in (("train", (300, 301, 900)), ("validation", (7,))):
        (path,) = folder.glob(f"{split}-*.parquet")
        data = path.read_bytes()
        dataset = ShardSet.open(digits)
        reads = [
            image for chunk in range(len(dataset.splits[split].chunk_rows))
            for image in dataset.splits[split].read_chunk(chunk).images
        ]  # fmt: skip
        for row in wanted:
            image = bytes(reads[row] or b"")
            at = data.index(image) + len(image) // 2
            assert data.count(image) == 1
            data = flipped(data, at, 3)
        path.write_bytes(data)
    return folder


def order_of(dataset: ShardSet) -> Order:
    chunk_rows = dataset.splits["train"].chunk_rows
    return Order(seed=1, chunk_rows=chunk_rows, virtual_workers=6, micro_batch=20, window=200)


def epoch(folder: Path, config: DataConfig, ranks: int = 1) -> tuple[list[bytes], int]:
    """An epoch's global batches, and the rows left out by all ranks."""
    dataset = ShardSet.open(folder)
    order = order_of(dataset)
    skipped: list[str] = []
    loaders = [
        training_batches(dataset, order, share(6, rank, ranks), config, 0, skipped.append)
        for rank in range(ranks)
    ]
    parts = [list(islice(loader, order.steps_per_epoch)) for loader in loaders]
    whole = [
        b"".join(part[step][at].tobytes() for at in (0, 1) for part in parts)
        for step in range(order.steps_per_epoch)
    ]
    return whole, len(skipped)


def test_training_stops_at_a_bad_row_and_names_shard_row_group_and_row(damaged: Path) -> None:
    with pytest.raises(DataError) as caught:
        epoch(damaged, PLAIN)
    text = str(caught.value)
    assert f"{damaged}/train-00000-of-00001.parquet: row group " in text
    assert any(place in text for place in ("1, row 44", "1, row 45", "3, row 132"))
    assert "on_bad_row=skip" in text
    assert "\n" not in text


def test_skipped_rows_are_replaced_the_same_at_any_number_of_ranks(
    damaged: Path, digits: Path
) -> None:
    alone, skipped = epoch(damaged, SKIP)
    assert skipped == 3
    for ranks in (2, 3):
        assert epoch(damaged, SKIP, ranks) == (alone, skipped)
    whole, none = epoch(digits, PLAIN)
    assert none == 0
    assert sum(a != b for a, b in zip(alone, whole, strict=True)) in (2, 3)


def test_too_many_bad_rows_are_not_skipped(damaged: Path) -> None:
    few = SKIP.model_copy(update={"max_bad_rows": 0.0014})  # two of 1438
    with pytest.raises(DataError, match=r"3 bad rows are more than data.max_bad_rows = 0.14%"):
        epoch(damaged, few)


def test_evaluation_stops_at_a_bad_row_or_leaves_it_out(damaged: Path) -> None:
    dataset = ShardSet.open(damaged)
    everything = range(dataset.splits["validation"].rows)
    with pytest.raises(DataError, match=r"validation-.*: row group 0, row 7"):
        list(evaluation_batches(dataset, "validation", everything, PLAIN, 16))
    counts = [
        len(labels)
        for images, labels in evaluation_batches(dataset, "validation", everything, SKIP, 16)
        if len(images) == len(labels)
    ]
    assert sum(counts) == len(everything) - 1


def test_a_shard_that_is_gone_is_named(digits: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(digits, tmp_path / "set"))
    next(folder.glob("train-*.parquet")).unlink()
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet: row group \d.*missing"):
        epoch(folder, PLAIN)
    with pytest.raises(DataError, match="no good row is left"):
        epoch(folder, SKIP)


def test_one_chunk_that_cannot_be_read_is_replaced(image_tree: ImageTree, tmp_path: Path) -> None:
    names = [f"{split}/{c}/{i}.png" for split in ("train", "val") for c in "ab" for i in range(90)]
    folder = tmp_path / "set"
    dataset = prepare(str(image_tree(*names)), folder, PrepareOptions(shard_rows=60))
    first = dataset.splits["train"].shards[0]
    (folder / first.file).write_bytes(b"PAR1")
    order = Order(seed=1, chunk_rows=(60, 60, 60), virtual_workers=2, micro_batch=30, window=90)
    skipped: list[str] = []
    batches = training_batches(ShardSet.open(folder), order, range(2), SKIP, 0, skipped.append)
    labels = np.array([labels for _, labels in islice(batches, 3)]).ravel()
    assert len(labels) == 180
    assert set(labels.tolist()) == {0, 1}
    assert len(skipped) == 60
