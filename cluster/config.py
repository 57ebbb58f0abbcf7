"""Settings of where and with how many processes a run takes place."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from alexnet.config import RunConfig, Settings
from alexnet.data.storage import absolute
from alexnet.errors import ConfigError

Auto = Literal["auto"]


class ClusterConfig(Settings):
    """Processes, their resources, and how long to wait for what."""

    workers: Auto | int = Field(
        "auto", description="ranks; auto: one a GPU, and without GPUs 2 (1 on a single CPU)"
    )
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs that Ray sets aside for a rank")
    threads_per_worker: int = Field(0, ge=0, description="0: a node's cores, shared by its ranks")
    gpus_per_worker: Auto | int = Field("auto", description="auto: 1 if every rank can have one")
    start_timeout: float = Field(180.0, gt=0, description="seconds for resources and for ranks")
    stall_timeout: float = Field(600.0, gt=0, description="seconds without a step: a dead run")
    stop_timeout: float = Field(30.0, gt=0, description="seconds to a last checkpoint on SIGTERM")
    max_restarts: int = Field(3, ge=0, description="times that failed ranks are started again")
    metrics_host: str = Field("127.0.0.1", description="address on which ranks answer scrapes")
    metrics_port: int = Field(9400, ge=0, le=65000, description="of local rank 0; 0: no metrics")


class JobConfig(RunConfig):
    """A training job: what is learned, and where."""

    cluster: ClusterConfig = ClusterConfig()

    @property
    def run_path(self) -> Path:
        """The run directory, absolute."""
        return Path(self.run_dir).absolute()

    def with_absolute_paths(self) -> "JobConfig":
        """Return the same job with paths that mean the same in every process of a cluster."""
        data = self.data.model_copy(update={"path": absolute(self.data.path)})
        return self.model_copy(update={"run_dir": str(self.run_path), "data": data})

    def check_workers(self, workers: int) -> None:
        """Raise ConfigError unless each of `workers` ranks gets at least one micro-batch."""
        virtual = self.train.virtual_workers
        if not 1 <= workers <= virtual:
            raise ConfigError(
                f"cluster.workers = {workers}: a global batch of {self.train.global_batch} has "
                f"{virtual} micro-batches of {self.train.micro_batch}, so 1 to {virtual} workers"
            )
