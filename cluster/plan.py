"""How many ranks, given the settings and what a cluster has at the moment."""

from collections.abc import Mapping
from dataclasses import dataclass

from alexnet.errors import ConfigError
from cluster.config import Auto, JobConfig

LESS = "lower cluster.workers, cluster.cpus_per_worker or cluster.gpus_per_worker"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many ranks, and what each of them is given."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: int

    def __str__(self) -> str:
        return f"{self.workers} workers x {amounts(self.bundle)}"

    @property
    def bundle(self) -> dict[str, float]:
        """What Ray sets aside for a rank."""
        gpus = {"GPU": float(self.gpus_per_worker)} if self.gpus_per_worker else {}
        return {"CPU": self.cpus_per_worker, **gpus}

    def fits(self, has: Mapping[str, float]) -> bool:
        """Whether a machine or a cluster that `has` these has room."""
        return all(
            self.workers * amount <= has.get(kind, 0) for kind, amount in self.bundle.items()
        )

    def check_fits(self, has: Mapping[str, float]) -> None:
        """Raise ConfigError if a machine that has no more than `has` has no room."""
        if not self.fits(has):
            raise ConfigError(
                f"not enough resources: {self} asked for, this machine has {amounts(has)}; {LESS}"
            )


def plan_workers(
    config: JobConfig,
    has: Mapping[str, float],
    gpus_before: int | None = None,
    most: int | None = None,
) -> Plan:
    """Return how many ranks, given what the cluster `has` now, in use or not.

    A run that has had `gpus_before` GPUs a rank waits for GPUs and does not go on without. Where
    the number is automatic, it is at `most` that many.

    Raises:
        ConfigError: more ranks than micro-batches.
    """
    wanted = config.cluster
    each = wanted.gpus_per_worker if gpus_before is None else gpus_before
    if wanted.workers == "auto":
        room = _automatic(config, has, each)
        workers = max(wanted.min_workers, min(room, most or room))
    else:
        workers = wanted.workers
    config.check_workers(workers)
    gpus = int(has.get("GPU", 0) >= workers) if each == "auto" else each
    return Plan(workers=workers, cpus_per_worker=wanted.cpus_per_worker, gpus_per_worker=gpus)


def _automatic(config: JobConfig, has: Mapping[str, float], gpus_each: Auto | int) -> int:
    """As many ranks as there are GPUs for, or as there are CPUs for and `max_workers` allows."""
    wanted, virtual = config.cluster, config.train.virtual_workers
    by_gpu = int(has.get("GPU", 0) // (1 if gpus_each == "auto" else max(1, gpus_each)))
    by_cpu = int(has.get("CPU", 0) // wanted.cpus_per_worker)
    uses_gpus = by_gpu > 0 if gpus_each == "auto" else gpus_each > 0
    room, most = (by_gpu, virtual) if uses_gpus else (by_cpu, 2)
    return max(wanted.min_workers, min(room, wanted.max_workers or most, virtual))


def amounts(resources: Mapping[str, float]) -> str:
    """Return CPUs and GPUs in words."""
    return ", ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
