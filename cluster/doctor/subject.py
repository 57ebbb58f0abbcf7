"""What is examined: this machine and, with a config, the job that it is for."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from alexnet.data.shards import ShardSet
from alexnet.errors import ConfigError
from cluster.config import JobConfig
from cluster.doctor.processes import Ended, run
from cluster.plan import Plan, plan_workers


@dataclass(frozen=True)
class Subject:
    """What several checks look at is looked up once."""

    config: JobConfig | None  # None: the machine alone

    @property
    def job(self) -> JobConfig:
        """The job, or what a job is by default."""
        return self.config or JobConfig()

    @property
    def ray_address(self) -> str | None:
        """Of the cluster to join; None: a job starts one here."""
        address = os.environ.get("RAY_ADDRESS", "local")
        return None if address == "local" else address

    @cached_property
    def libraries(self) -> Ended:
        """What TensorFlow and Horovod say when they are imported."""
        return run(["libraries"], [{}])[0]

    @cached_property
    def cluster(self) -> Ended:
        """What Ray at `ray_address` says."""
        return run(["join"], [{"CUDA_VISIBLE_DEVICES": ""}])[0]

    @cached_property
    def gpus(self) -> list[str]:
        """Names of the GPUs that NVIDIA's driver lists, and its version: `H100, 570.86`.

        Raises:
            OSError: nvidia-smi cannot be run.
            subprocess.SubprocessError: it fails, or does not answer.
        """
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.splitlines()

    @property
    def visible_gpus(self) -> list[str]:
        """Which of them, by number or name, Ray would give to ranks here."""
        asked = os.environ.get("CUDA_VISIBLE_DEVICES")
        try:
            there = [str(at) for at in range(len(self.gpus))]
        except (OSError, subprocess.SubprocessError):
            there = []
        return there if asked is None else [gpu for gpu in asked.split(",") if gpu and there]

    @property
    def resources(self) -> Mapping[str, float]:
        """What Ray has for ranks: that of the cluster, or of this machine."""
        if self.ray_address:
            return self.cluster.told.get("resources", {})
        return {"CPU": os.cpu_count() or 1, "GPU": len(self.visible_gpus)}

    @property
    def plan(self) -> Plan:
        """How many ranks.

        Raises:
            ConfigError: more than there is work for.
        """
        return plan_workers(self.job, self.resources)

    @property
    def ranks_here(self) -> int:
        """How many of them may come to run on this machine."""
        room = max(1, int((os.cpu_count() or 1) // self.job.cluster.cpus_per_worker))
        try:
            return min(self.plan.workers, room)
        except ConfigError:  # more than there is work for
            return room

    @cached_property
    def dataset(self) -> ShardSet:
        """The set that the job trains on.

        Raises:
            DataError: there is none, or its manifest is damaged.
        """
        return ShardSet.open(self.job.data.path)
