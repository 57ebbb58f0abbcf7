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
    train, data = config.train, config.data
    weights = _weights(config, len(dataset.classes))
    yield (
        "model",
        f"{config.model.name}, {weights / 1e6:.1f} M parameters in {train.precision}, "
        f"{data.image_size} x {data.image_size} pixels to {len(dataset.classes)} classes",
    )
    yield "data", f"{images[TRAIN]} images, {images.get(VALIDATION, 0)} held out: {data.path}"
    yield (
        "batch",
        f"{train.global_batch} images = {train.virtual_workers} micro-batches of "
        f"{train.micro_batch}, on {_ranks(plan)}",
    )
    yield "rate", _rate(config.schedule, train.global_batch)
    yield (
        "steps",
        f"{train.total_steps(per_epoch)}: {train.epochs} epochs of {per_epoch}"
        + (f", at most {train.max_steps}" if train.max_steps else ""),
    )
    yield "memory", _memory(config, dataset, plan)
    every = f"every {config.checkpoint.every} steps" if config.checkpoint.every else "at the end"
    size = FLOAT * weights * (3 if train.ema_decay else 2)  # with momentum, and averages
    yield (
        "checkpoints",
        f"{every}, {size / MIB:.0f} MiB each, {config.checkpoint.keep} kept: {archive}",
    )
    yield "run", config.run_dir


def _weights(config: JobConfig, classes: int) -> int:
    layers = convolutions(config.model, config.data.image_size)
    dense = dense_layers(config.model, config.data.image_size, classes)
    return sum(layer.weights for layer in layers) + sum(dense)


def _ranks(plan: Plan) -> str:
    ranks = f"{plan.workers} ranks" if plan.workers > 1 else "1 rank"
    gpus = plan.gpus_per_worker
    return f"{ranks} with {gpus} GPU{'s' * (gpus > 1)} each" if gpus else f"{ranks} (CPU)"


def _rate(schedule: ScheduleConfig, global_batch: int) -> str:
    base = schedule.base_batch
    peak = schedule.learning_rate * global_batch / (base or global_batch)
    scaled = f" (of {schedule.learning_rate:g} for {base} images)" if base else ""
    rise = f" after {schedule.warmup_steps} steps of warm-up" if schedule.warmup_steps else ""
    return f"{peak:g}{scaled}{rise}, then {schedule.decay.replace('_', ' ')}"


def _memory(config: JobConfig, dataset: ShardSet, plan: Plan) -> str:
    on_gpu, saves = plan.gpus_per_worker > 0, config.cluster.save_memory
    need = needed(config, dataset, plan.workers, on_gpu, saves)
    gpu = f", {need.gpu / GIB:.2f} GiB of its GPU's" if on_gpu else ""
    return f"about {need.host / GIB:.2f} GiB a rank{gpu}"
