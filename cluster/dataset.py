"""The dataset of a run, prepared if it is not there yet."""

from alexnet.data.prepare import prepare
from alexnet.data.shards import MANIFEST, ShardSet
from alexnet.data.storage import Location
from cluster.config import JobConfig
from cluster.screen import Screen
from cluster.stop import Stop


def prepared_data(config: JobConfig, screen: Screen, stop: Stop) -> ShardSet:
    """Open the dataset of a run; prepare it first if there is none and the config has a source."""
    with stop.at_once():
        dataset = _opened(config, screen)
    rows = {name: split.rows for name, split in dataset.splits.items()}
    rejected = f", {dataset.rejected} rejected" if dataset.rejected else ""
    screen.say(
        f"data {config.data.path}: {rows} images in {len(dataset.classes)} classes{rejected}"
    )
    return dataset


def _opened(config: JobConfig, screen: Screen) -> ShardSet:
    path = config.data.path
    if config.data.source and not (Location.of(path) / MANIFEST).exists():
        screen.say(f"preparing {config.data.source} into {path}")
        prepare(config.data.source, path)
    return ShardSet.open(path)
