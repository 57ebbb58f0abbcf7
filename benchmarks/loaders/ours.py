"""This project's loader: Parquet shards, threads, virtual workers. `store` is jpeg or raw."""

from pathlib import Path
from typing import Any

from alexnet.config import AugmentConfig, DataConfig
from alexnet.data.batches import training_batches
from alexnet.data.order import Order
from alexnet.data.shards import ShardSet
from loaders import common

VIRTUAL_WORKERS = 2


def batches(data: Path, cores: int, *, store: str = "jpeg", window: int = 512) -> Any:
    """Return the batches of a rank that computes two virtual workers."""
    dataset = ShardSet.open(str(data / store))
    config = DataConfig(
        image_size=common.SIZE,
        fit="crop",
        resize=common.PATCH,
        threads=cores,
        window=window,
        augment=AugmentConfig(horizontal_flip=True),
    )
    order = _order(dataset, window)
    return training_batches(dataset, order, range(VIRTUAL_WORKERS), config, first_step=0)


def _order(dataset: ShardSet, window: int) -> Order:
    return Order(
        seed=0,
        chunk_rows=dataset.splits["train"].chunk_rows,
        virtual_workers=VIRTUAL_WORKERS,
        micro_batch=common.BATCH,
        window=window,
    )


def steps_per_epoch(data: Path) -> int:
    """Return how many batches an epoch has; the store makes no difference."""
    return _order(ShardSet.open(str(data / "jpeg")), window=1).steps_per_epoch


if __name__ == "__main__":
    common.main(batches, steps_per_epoch=steps_per_epoch)
