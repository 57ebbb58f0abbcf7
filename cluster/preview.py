"""What a run is going to be, told before it begins."""

from collections.abc import Iterator
from dataclasses import dataclass

from alexnet.archive import Archive
from alexnet.config import ScheduleConfig
from alexnet.data.shards import ShardSet
from alexnet.data.sources import TRAIN, VALIDATION
from alexnet.memory import FLOAT, MIB, convolutions, dense_layers, needed
from cluster.config import JobConfig
from cluster.plan import Plan

GIB = 1 << 30
OWN = "own"  # a network of the user's


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What there is to know of a run, as names and words."""

    rows: tuple[tuple[str, str], ...]
    total_steps: int


def preview(config: JobConfig, dataset: ShardSet, plan: Plan, archive: Archive) -> Preview:
    """Return what a run is going to be.

    Args:
        config: with its paths absolute.
        dataset: trained on.
        plan: of the ranks that share it.
        archive: where checkpoints go.
    """
    images = {name: split.rows for name, split in dataset.splits.items()}
    per_epoch = images[TRAIN] // config.train.global_batch
    rows = _rows(config, dataset, plan, archive, images, per_epoch)
    return Preview(rows=tuple(rows), total_steps=config.train.total_steps(per_epoch))


def _rows(
    config: JobConfig,
    dataset: ShardSet,
    plan: Plan,
    archive: Archive,
    images: dict[str, int],
    per_epoch: int,
) -> Iterator[tuple[str, str]]:
    train, data, classes = config.train, config.data, len(dataset.classes)
    yield "model", _model(config, classes)
    yield "data", f"{images[TRAIN]} images, {images.get(VALIDATION, 0)} held out: {data.path}"
    yield (
        "batch",
        f"{train.global_batch} images = {train.virtual_workers} micro-batches of "
        f"{train.micro_batch}, on {_ranks(plan)}",
    )
    steps = train.total_steps(per_epoch)
    yield "rate", _rate(config.schedule, train.global_batch, steps)
    most = f", at most {train.max_steps}" if train.max_steps else ""
    yield "steps", f"{steps}: {train.epochs} epochs of {per_epoch}{most}"
    if config.model.name != OWN:
        yield "memory", _memory(config, dataset, plan)
    yield "checkpoints", f"{_checkpoints(config, classes)}: {archive}"
    yield "run", config.run_dir


def _model(config: JobConfig, classes: int) -> str:
    size, weights = config.data.image_size, _weights(config, classes)
    parameters = f"{weights / 1e6:.1f} M parameters in " if weights else ""
    return (
        f"{config.model.name}, {parameters}{config.train.precision}, {size} x {size} pixels to "
        f"{classes} classes"
    )


def _checkpoints(config: JobConfig, classes: int) -> str:
    every = f"every {config.checkpoint.every} steps" if config.checkpoint.every else "at the end"
    copies = 3 if config.train.ema_decay else 2  # with momentum, and averages
    size = FLOAT * copies * _weights(config, classes) / MIB
    each = f", {size:.0f} MiB each" if size else ""
    return f"{every}{each}, {config.checkpoint.keep} kept"


def _weights(config: JobConfig, classes: int) -> int:
    """The number of weights; 0, if only the ranks can tell."""
    if config.model.name == OWN:
        return 0
    layers = convolutions(config.model, config.data.image_size)
    dense = dense_layers(config.model, config.data.image_size, classes)
    return sum(layer.weights for layer in layers) + sum(dense)


def _ranks(plan: Plan) -> str:
    ranks = f"{plan.workers} ranks" if plan.workers > 1 else "1 rank"
    gpus = plan.gpus_per_worker
    return f"{ranks} with {gpus} GPU{'s' * (gpus > 1)} each" if gpus else f"{ranks} (CPU)"


def _rate(schedule: ScheduleConfig, global_batch: int, steps: int) -> str:
    base, warmup = schedule.base_batch, schedule.warmup_steps
    peak = schedule.learning_rate * global_batch / (base or global_batch)
    scaled = f" (of {schedule.learning_rate:g} for {base} images)" if base else ""
    if warmup >= steps:
        return f"{peak:g}{scaled} after {warmup} steps of warm-up, which this run does not reach"
    rise = f" after {warmup} steps of warm-up" if warmup else ""
    return f"{peak:g}{scaled}{rise}, then {schedule.decay.replace('_', ' ')}"


def _memory(config: JobConfig, dataset: ShardSet, plan: Plan) -> str:
    on_gpu, saves = plan.gpus_per_worker > 0, config.cluster.save_memory
    need = needed(config, dataset, plan.workers, on_gpu, saves)
    gpu = f", {need.gpu / GIB:.2f} GiB of its GPU's" if on_gpu else ""
    return f"about {need.host / GIB:.2f} GiB a rank{gpu}"
