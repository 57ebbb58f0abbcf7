"""How many ranks, given the settings and what a cluster has at the moment."""

from collections.abc import Mapping

from alexnet.errors import ConfigError
from cluster.config import JobConfig


def plan_workers(config: JobConfig, resources: Mapping[str, float]) -> tuple[int, int]:
    """Return the number of ranks and the GPUs of each, given what the cluster has now.

    Raises:
        ConfigError: more ranks than micro-batches.
    """
    gpus, wanted = int(resources.get("GPU", 0)), config.cluster
    workers = _automatic(config, resources) if wanted.workers == "auto" else wanted.workers
    config.check_workers(workers)
    each = wanted.gpus_per_worker
    return workers, int(gpus >= workers) if each == "auto" else each


def _automatic(config: JobConfig, resources: Mapping[str, float]) -> int:
    """As many ranks as there are GPUs for, or as there are CPUs for and `max_workers` allows."""
    wanted, virtual = config.cluster, config.train.virtual_workers
    each = 1 if wanted.gpus_per_worker == "auto" else wanted.gpus_per_worker
    room = int(resources.get("GPU", 0)) // each if each else 0
    cpus = int(resources.get("CPU", 0) // wanted.cpus_per_worker)
    most = min(virtual, wanted.max_workers or (virtual if room else 2))
    return max(wanted.min_workers, min(room or cpus, most))


def check_room(
    config: JobConfig, workers: int, gpus_per_worker: int, has: Mapping[str, float]
) -> None:
    """Raise ConfigError if one machine, which never grows, has no room for the ranks."""
    each = {"CPU": config.cluster.cpus_per_worker, "GPU": float(gpus_per_worker)}
    if any(workers * amount > has.get(kind, 0) for kind, amount in each.items()):
        raise ConfigError(
            f"not enough resources: {workers} workers x {amounts(each)} asked for, this machine "
            f"has {amounts(has)}"
        )


def amounts(resources: Mapping[str, float]) -> str:
    """Return CPUs and GPUs in words."""
    return ", ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
