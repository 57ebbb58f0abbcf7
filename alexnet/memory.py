"""How much memory training takes, and how much of it there is.

Arithmetic without TensorFlow: the micro-batch is part of what is learned, so that it has to be
settled before anything is built. It knows the networks of `alexnet.model` and is good to a tenth,
measured on CPUs; on GPUs it has not been measured.
"""

import ctypes
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from alexnet.config import ModelConfig, RunConfig
from alexnet.data.shards import ShardSet
from alexnet.data.sources import TRAIN
from alexnet.errors import AlexnetError

MIB = 1 << 20
FLOAT = 4  # bytes
LIBRARIES = 384 * MIB  # of a rank that has built nothing yet: TensorFlow, Horovod, a graph
GPU_LIBRARIES = 1024 * MIB  # on a GPU: CUDA, cuDNN and cuBLAS
RESERVED = 320 * MIB  # by threads and libraries, and never used
POOL = 1.25  # of what is in use, TensorFlow's own pool takes so much, and gives nothing back
POOL_RESERVED = 2  # and reserves so much: it grows by doubling
USABLE = 0.95  # of a machine's memory; Ray ends processes beyond
BATCHES = 4  # of images, in the making or in use

# Filters, kernel size, and whether pooling follows, of conv1 to conv5.
CONVOLUTIONS = ((96, 11, True), (256, 5, True), (384, 3, False), (384, 3, False), (256, 3, True))
GROUPED = (2, 4, 5)
HIDDEN = 4096  # units of fc6 and of fc7
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a rank takes, or may take."""

    host: int  # in use
    reserved: int  # in use or not: what `ulimit -d` counts
    gpu: int = 0

    def fits(self, room: "Memory") -> bool:
        """Whether `room` has as much."""
        return all(a <= b for a, b in zip(astuple(self), astuple(room), strict=True))


def least(rooms: Sequence[Memory]) -> Memory:
    """Return what there is in each of `rooms`."""
    return Memory(
        host=min(room.host for room in rooms),
        reserved=min(room.reserved for room in rooms),
        gpu=min(room.gpu for room in rooms),
    )


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution with what belongs to it, as numbers of floats."""

    weights: int  # biases, and BatchNorm's four a filter, included
    output: int  # of an image
    pooled: int  # of an image; 0: not pooled
    kept: int  # of an image, from the forward pass for the backward pass


def convolutions(model: ModelConfig, image_size: int) -> list[Convolution]:
    """Return the five convolutions of a network."""
    side, channels, found = (image_size - 11) // 4 + 1, 3, []
    for number, (filters, kernel, is_pooled) in enumerate(CONVOLUTIONS, start=1):
        groups = 2 if model.name != "seed" and number in GROUPED else 1
        norm = 0 if model.name == "original" else 4 * filters
        output = side**2 * filters
        side = (side - 3) // 2 + 1 if is_pooled else side
        pooled = side**2 * filters if is_pooled else 0
        kept = {
            "seed": 2 * output + pooled,  # ReLU's, BatchNorm's, pooling's
            "original": (5 if number in (1, 2) else 1) * output + pooled,  # LRN has many parts
            "bn": output + 2 * pooled if is_pooled else 2 * output,
        }[model.name]
        weights = kernel**2 * channels // groups * filters + filters + norm
        found.append(Convolution(weights=weights, output=output, pooled=pooled, kept=kept))
        channels = filters
    return found


def dense_layers(model: ModelConfig, image_size: int, classes: int) -> list[int]:
    """Return the number of weights, biases included, of fc6, fc7 and the logits."""
    widths = convolutions(model, image_size)[-1].pooled, HIDDEN, HIDDEN, classes
    return [(before + 1) * after for before, after in pairwise(widths)]


def state_bytes(config: RunConfig, classes: int) -> int:
    """Return the size of a state, and of a checkpoint: weights with momentum, and averages."""
    return _weight_bytes(config, classes) * (3 if config.train.ema_decay else 2)


def _weight_bytes(config: RunConfig, classes: int) -> int:
    layers = convolutions(config.model, config.data.image_size)
    dense = dense_layers(config.model, config.data.image_size, classes)
    return FLOAT * (sum(layer.weights for layer in layers) + sum(dense))


def needed(
    config: RunConfig, dataset: ShardSet, ranks: int, on_gpu: bool, saves_memory: bool
) -> Memory:
    """Return what training takes on each of `ranks` ranks, with the micro-batch of `config`.

    `saves_memory`: see `return_what_is_freed`; and steps wait for checkpoints.
    """
    train, size = config.train, config.data.image_size
    layers = convolutions(config.model, size)
    dense = dense_layers(config.model, size, len(dataset.classes))
    weights = _weight_bytes(config, len(dataset.classes))
    state = state_bytes(config, len(dataset.classes))

    # The sums so far, and what a layer adds to them; with more ranks, what comes back as well.
    gradients = weights + FLOAT * max(dense) * (2 if ranks > 1 else 1)
    if train.exact_sums:  # sums of eight bytes, and what is made of them on the way there and back
        gradients = 6 * weights
    if train.precision != "float32":  # copies of weights and gradients
        gradients += 3 * weights // 2
    image = 2 * 3 * size**2 + sum(layer.kept for layer in layers)  # pixels, and these normalized
    image += 2 * max(layer.output for layer in layers)  # on the way back through the largest
    step = gradients + FLOAT * image * train.micro_batch

    streams = math.ceil(train.virtual_workers / ranks)
    batches = BATCHES * streams * train.micro_batch * 3 * size**2
    host = LIBRARIES + batches + _rows_kept(config, dataset, streams)
    if on_gpu:
        host += state  # a checkpoint's copy
        gpu = GPU_LIBRARIES + int(POOL * (state + step))
        return Memory(host=host, reserved=host + RESERVED, gpu=gpu)
    if saves_memory:
        host += state + max(step, state)
        return Memory(host=host, reserved=host + RESERVED)
    return Memory(
        host=host + state + int(POOL * (state + step)),
        reserved=host + state + POOL_RESERVED * (state + step) + RESERVED,
    )


def _rows_kept(config: RunConfig, dataset: ShardSet, streams: int) -> int:
    """Bytes of encoded images that are shuffled: of files here, the page cache has them."""
    split = dataset.splits[TRAIN]
    if split.folder.is_local and all(shard.extents for shard in split.shards):
        return 0
    size = sum(shard.bytes for shard in split.shards)
    return min(size, 2 * config.data.window * streams * size // max(1, split.rows))


def room(ranks: int, gpus: Sequence[str]) -> Memory:
    """Return what this process, one of `ranks` on its machine, may come to use besides.

    Raises:
        AlexnetError: `gpus` are given, and nothing tells what they have.
    """
    return Memory(
        host=min([_free(), *_left_by_cgroups()]) // ranks,
        reserved=_left_by_limit(),
        gpu=min(map(_free_on, gpus), default=0),
    )


def _free() -> int:
    memory = psutil.virtual_memory()
    return int(memory.available - (1 - USABLE) * memory.total)


def _left_by_limit() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return limit - int(psutil.Process().memory_info().data)


def _left_by_cgroups(system: Path = Path("/")) -> Iterator[int]:
    """What the control groups leave that this process is in; containers are such, and pods."""
    for line in (system / "proc/self/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", maxsplit=2)
        if not controllers:
            top, files = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = "sys/fs/cgroup/memory"
            files = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        group = system / top / name.lstrip("/")
        for folder in (group, *group.parents):
            with suppress(OSError):  # no such limit, or a group that a container does not see
                yield _left_by_cgroup(folder, *files)
            if folder == system / top:
                break


def _left_by_cgroup(folder: Path, limit: str, used: str, cache: str) -> int:
    most = (folder / limit).read_text().strip()
    if most == "max":
        return sys.maxsize
    statistics = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
    in_use = int((folder / used).read_text()) - int(statistics[cache])
    return int(USABLE * int(most)) - in_use


def _free_on(gpu: str) -> int:
    command = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.free"]
    command.append("--format=csv,noheader,nounits")
    try:
        return int(subprocess.check_output(command, text=True, timeout=60)) * MIB
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise AlexnetError(f"GPU {gpu}: how much memory it has is not known: {error}") from None


def return_what_is_freed() -> None:
    """Have this process give memory back to the system as soon as it is freed.

    oneDNN and glibc keep it otherwise, which saves the time to get it again: a fifth of a step's.
    To be called before TensorFlow allocates anything.
    """
    os.environ["TF_ONEDNN_USE_SYSTEM_ALLOCATOR"] = "1"
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, MIB)
        mallopt(M_TRIM_THRESHOLD, MIB)
