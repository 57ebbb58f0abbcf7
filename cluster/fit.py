"""`--fit-memory`: the largest micro-batch for which every rank has the memory."""

import os
import resource
from collections.abc import Iterator
from dataclasses import replace

from alexnet.data.shards import ShardSet
from alexnet.errors import ConfigError
from alexnet.memory import LIBRARIES, Memory, needed
from cluster.config import JobConfig

GIB = 1 << 30
STACK = 4 << 20  # bytes of a thread


def reserve_little() -> None:
    """Have the processes to come reserve less, if there is a limit to that (`ulimit -d`)."""
    if resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY:
        os.environ |= {"ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"}
        resource.setrlimit(
            resource.RLIMIT_STACK, (STACK, resource.getrlimit(resource.RLIMIT_STACK)[1])
        )


def fitted(
    config: JobConfig, dataset: ShardSet, ranks: int, room: Memory, micro_batch: int | None
) -> tuple[JobConfig, str]:
    """Return the job with the largest micro-batch that fits, and what is to be said of it.

    Where that helps to keep it large, memory is saved at the cost of time, and no standby is kept.

    Args:
        config: its global batch stays.
        dataset: trained on.
        ranks: that share it; `max_workers` of them are to have work, too.
        room: that each of them has.
        micro_batch: of the checkpoint to go on from: another one would be another order.

    Raises:
        ConfigError: none fits.
    """
    for images in [micro_batch] if micro_batch else _micro_batches(config, ranks):
        candidate = with_micro_batch(config, images)
        for job in (candidate, _saving_memory(candidate)):
            need = need_of(job, dataset, ranks, on_gpu=room.gpu > 0)
            if need.fits(room):
                return job, _settled(job, in_words(need, room))
    raise ConfigError(
        f"not enough memory: micro-batches of {images} take {in_words(need, room)}; lower "
        "cluster.workers or data.image_size"
    )


def with_micro_batch(config: JobConfig, images: int) -> JobConfig:
    """Return the same job in micro-batches of so many images."""
    train = config.train.model_copy(update={"micro_batch": images})
    return config.model_copy(update={"train": train})


def _micro_batches(config: JobConfig, ranks: int) -> Iterator[int]:
    """Those that make up the global batch and leave no rank without one, the largest first."""
    whole = config.train.global_batch
    most = max(ranks, config.cluster.max_workers or 1)
    for images in range(max(1, whole // most), 0, -1):
        if whole % images == 0:
            yield images


def need_of(job: JobConfig, dataset: ShardSet, ranks: int, on_gpu: bool) -> Memory:
    """Return what each of `ranks` ranks takes, its standby included."""
    need = needed(job, dataset, ranks, on_gpu, job.cluster.save_memory)
    standby = LIBRARIES if job.cluster.standby_after is not None else 0
    return replace(need, host=need.host + standby)


def _saving_memory(job: JobConfig) -> JobConfig:
    cluster = job.cluster.model_copy(update={"save_memory": True, "standby_after": None})
    return job.model_copy(update={"cluster": cluster})


def _settled(job: JobConfig, takes: str) -> str:
    slower = "; slower, to save it (cluster.save_memory)" if job.cluster.save_memory else ""
    train = job.train
    return (
        f"memory: {train.virtual_workers} micro-batches of {train.micro_batch} take {takes}{slower}"
    )


def in_words(need: Memory, room: Memory) -> str:
    """Say how much is needed of what there is, where that is tightest."""
    kinds = {
        "host": (need.host, room.host),
        "ulimit -d": (need.reserved, room.reserved),
        "GPU": (need.gpu, room.gpu),
    }
    kind, (takes, has) = max(kinds.items(), key=lambda kind: kind[1][0] / max(1, kind[1][1]))
    return f"about {takes / GIB:.2f} of the {has / GIB:.2f} GiB that a rank has ({kind})"
