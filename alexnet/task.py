"""A run's parts, put together from its settings: data, order, model, step, evaluation."""

import json
import logging
import reprlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from alexnet.checkpoint import Checkpoint
from alexnet.config import DataConfig, RunConfig
from alexnet.data.batches import Batches, evaluation_batches, training_batches
from alexnet.data.order import Order, share
from alexnet.data.shards import ShardSet
from alexnet.data.sources import TRAIN, VALIDATION
from alexnet.data.storage import RangeCache, absolute
from alexnet.errors import ConfigError, DataError
from alexnet.evaluation import Evaluator
from alexnet.exact import FixedPoint, Float32
from alexnet.exchange import Exchange, of_all_ranks
from alexnet.factored import layers_to_factor, multiply_alike
from alexnet.loss_scale import PREFIX, LossScale
from alexnet.model import build_model
from alexnet.optimizer import build_optimizer
from alexnet.own_model import Network, build_own, describe
from alexnet.schedule import learning_rate
from alexnet.step import TrainStep

VIEW = ("image_size", "fit", "resize", "evaluation_crops")  # how the model sees an image

BadRowHook = Callable[[str], None]
Colour = tuple[float, ...]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a trainer works on, for one rank."""

    config: RunConfig
    dataset: ShardSet
    order: Order
    share: range  # the virtual workers of this rank
    step: TrainStep
    evaluator: Evaluator
    on_bad_row: BadRowHook

    @staticmethod
    def build(
        config: RunConfig,
        exchange: Exchange,
        on_bad_row: BadRowHook = log.warning,
        network: Network | None = None,
    ) -> "Task":
        """Open the dataset and build the model as the rank that `exchange` says this is.

        `on_bad_row` is told of every image that is skipped. `network` builds the model in the
        place of one of ours.

        Raises:
            DataError: no such dataset, or fewer rows than a global batch.
            ConfigError: what `network` builds cannot be trained.
        """
        dataset = open_dataset(config.data)
        order = Order(
            seed=config.seed,
            chunk_rows=dataset.splits[TRAIN].chunk_rows,
            virtual_workers=config.train.virtual_workers,
            micro_batch=config.train.micro_batch,
            window=config.data.window,
        )
        if not order.steps_per_epoch:
            raise DataError(
                f"{config.data.path}: {dataset.splits[TRAIN].rows} training images are fewer than "
                f"one global batch of {config.train.global_batch}"
            )
        keras.utils.set_random_seed(config.seed)
        model = _model(config, dataset, exchange, network)
        mine = share(config.train.virtual_workers, exchange.rank, exchange.world_size)
        step = TrainStep(
            model,
            build_optimizer(config.optimizer, [v.value for v in model.trainable_variables]),
            exchange,
            seed=config.seed,
            virtual_workers=config.train.virtual_workers,
            share=mine,
            label_smoothing=config.train.label_smoothing,
            sums=FixedPoint() if config.train.exact_sums else Float32(),
            loss_scale=LossScale() if config.train.precision == "float16" else None,
            ema_decay=config.train.ema_decay,
            factored=_factored(model, config, exchange),
        )
        scored = [*step.average.variables.values()] if step.average else None
        return Task(
            config=config,
            dataset=dataset,
            order=order,
            share=mine,
            step=step,
            evaluator=evaluator(
                model, dataset, config.data, config.train.micro_batch, exchange, on_bad_row, scored
            ),
            on_bad_row=on_bad_row,
        )

    @property
    def planned_steps(self) -> int:
        """Steps of all epochs: what the learning rate is planned for."""
        return self.config.train.epochs * self.order.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Steps to take: the planned ones, unless `max_steps` ends the run before."""
        return self.config.train.total_steps(self.order.steps_per_epoch)

    def batches(self, first_step: int) -> Batches:
        """Return this rank's training batches from `first_step` on."""
        return training_batches(
            self.dataset, self.order, self.share, self.config.data, first_step, self.on_bad_row
        )

    def rate(self, step: int) -> float:
        """Return the learning rate of `step`, counted from 0."""
        return learning_rate(
            self.config.schedule, step, self.planned_steps, self.config.train.global_batch
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint tells of itself beside its state."""
        train = self.config.train
        return {
            "dataset": absolute(self.config.data.path),
            "model": {
                **self._network,
                **{name: getattr(self.config.data, name) for name in VIEW},
                "classes": list(self.dataset.classes),
            },
            "order": {
                "seed": self.config.seed,
                "global_batch": train.global_batch,
                "micro_batch": train.micro_batch,
                "window": self.config.data.window,
                "dataset_sha256": self.dataset.sha256,
            },
        }

    @property
    def _network(self) -> dict[str, Any]:
        """What the model can be built from again."""
        if self.config.model.name == "own":
            return {"name": "own", "network": describe(self.step.model)}
        mean, std = _scaling(self.config, self.dataset)
        return {**self.config.model.model_dump(), "mean": list(mean), "std": list(std)}

    def restore(self, saved: Checkpoint) -> None:
        """Take over the state of a checkpoint of this very run.

        Raises:
            ConfigError: it is of another model, or of another order of the data.
        """
        for group in ("model", "order"):
            if found := _first_difference(saved.facts[group], self.facts[group]):
                raise ConfigError(
                    f"{saved.path}: a checkpoint of another {group}: {found}; name another run_dir "
                    "or pass --replace"
                )
        # The precision may be another one now: a loss scale then begins, or is left behind.
        variables, state = _without_scale(self.step.variables, saved.state)
        replace(saved, state=state).check_fits(variables)
        for name, variable in variables.items():
            variable.assign(state[name])


def _without_scale(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both without a loss scale that only one of them has."""
    odd = {name for name in {*one} ^ {*other} if name.startswith(PREFIX)}
    first, second = ({k: v for k, v in each.items() if k not in odd} for each in (one, other))
    return first, second


def open_dataset(config: DataConfig) -> ShardSet:
    """Open the prepared set that `config` names; what is far away is cached here.

    Raises:
        DataError: no such set.
    """
    folder = Path(config.cache_dir).expanduser()
    cache = RangeCache(folder, config.cache_bytes) if config.cache_bytes else None
    return ShardSet.open(config.path, cache)


def _model(
    config: RunConfig, dataset: ShardSet, exchange: Exchange, network: Network | None
) -> keras.Model:
    size, classes, precision = config.data.image_size, len(dataset.classes), config.train.precision
    if network is None:
        return build_model(config.model, size, classes, *_scaling(config, dataset), precision)
    model = build_own(network, size, classes, precision)
    mine = zlib.crc32(json.dumps(describe(model)).encode())
    if len(set(of_all_ranks(exchange, mine, "network"))) > 1:
        raise ConfigError("network: ranks have built different ones from the same arguments")
    return model


def _first_difference(saved: dict[str, Any], facts: dict[str, Any]) -> str | None:
    """Say what is not in a checkpoint as it is here."""
    before = dict(_leaves(saved))
    for name, value in _leaves(facts):
        if name not in before or before[name] != value:
            was = reprlib.repr(before[name]) if name in before else "nothing"
            return f"{name} is {was} there, {reprlib.repr(value)} here"
    return None


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values that groups and lists end in, each with the path to it."""
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in parts:
        path = f"{name}.{key}" if name else f"{key}"
        if value and isinstance(value, dict | list):
            yield from _leaves(value, path)
        else:
            yield path, value


def _factored(
    model: keras.Model, config: RunConfig, exchange: Exchange
) -> list[keras.layers.Dense]:
    """Return the layers whose gradients are made of factors, and say so."""
    setting = "dense" if config.train.exact_sums else config.exchange.dense_layers
    if setting == "auto" and not multiply_alike(exchange):
        log.info("gradients: sums, since ranks have different processors")
        return []
    device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    ranks = exchange.world_size
    layers = layers_to_factor(model, setting, config.train.global_batch, ranks, device)
    names = ", ".join(layer.name for layer in layers)
    log.info("gradients: %s", f"{names} from factors, sums of the rest" if layers else "sums")
    return layers


def _scaling(config: RunConfig, dataset: ShardSet) -> tuple[Colour, Colour]:
    """Return what is taken from R, G and B, and what the rest is divided by."""
    if not config.data.standardize:
        return (0.0,) * 3, (255.0,) * 3
    if config.model.name == "original":  # section 2 of the paper: the mean is taken away, no more
        return dataset.mean, (1.0,) * 3
    return dataset.mean, dataset.std


def evaluator(
    model: keras.Model,
    dataset: ShardSet,
    data: DataConfig,
    batch: int,
    exchange: Exchange,
    on_bad_row: BadRowHook = log.warning,
    weights: Sequence[tf.Variable] | None = None,
) -> Evaluator:
    """Return what scores `model`, with `weights`, on held-out images, a share on each rank."""
    rows = share(dataset.splits[VALIDATION].rows, exchange.rank, exchange.world_size)
    images = max(1, batch // data.evaluation_crops)
    batches = partial(evaluation_batches, dataset, VALIDATION, rows, data, images, on_bad_row)
    return Evaluator(model, batches, partial(exchange.sum, name="evaluation"), weights)
