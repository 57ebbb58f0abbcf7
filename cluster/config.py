"""Settings of where and with how many processes a run takes place."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from alexnet.config import RunConfig, Settings
from alexnet.data.storage import absolute
from alexnet.errors import ConfigError

Auto = Literal["auto"]


class ClusterConfig(Settings):
    """Processes, their resources, and how long to wait for what."""

    workers: Auto | int = Field(
        "auto", description="ranks; auto: one a GPU, and without GPUs max_workers or 2 at most"
    )
    min_workers: int = Field(1, ge=1, description="auto: wait for room for so many")
    max_workers: int | None = Field(
        None, ge=1, description="auto: no more than these, whatever room there is"
    )
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs that Ray sets aside for a rank")
    threads_per_worker: int = Field(0, ge=0, description="0: a node's cores, shared by its ranks")
    gpus_per_worker: Auto | Annotated[int, Field(ge=0)] = Field(
        "auto", description="auto: 1 if every rank can have one"
    )
    start_timeout: float = Field(180.0, gt=0, description="seconds for resources and for ranks")
    collective_timeout: float = Field(
        180.0, ge=1, description="seconds for ranks to meet, and for data in a collective to move"
    )
    stall_timeout: float = Field(600.0, gt=0, description="seconds without a step: a dead run")
    stop_timeout: float = Field(30.0, gt=0, description="seconds to a last checkpoint on SIGTERM")
    max_restarts: int = Field(3, ge=0, description="times that failed ranks are started again")
    restart_delay: float = Field(
        5.0, ge=0, description="seconds before a restart after an attempt that got no further"
    )
    grow_after: float = Field(
        30.0, gt=0, description="auto: seconds of room for more ranks until the group takes it"
    )
    standby_after: float | None = Field(
        30.0,
        ge=0,
        description="seconds of steps after which each rank gets a second process, with all "
        "imports done, to take its place after a fault; null: never, saves its memory",
    )
    save_memory: bool = Field(
        False,
        description="CPUs: what a step frees is the system's at once, and steps wait for "
        "checkpoints; the same bits, a fourth slower",
    )
    metrics_host: str = Field("127.0.0.1", description="address on which ranks answer scrapes")
    metrics_port: int = Field(9400, ge=0, le=65000, description="of local rank 0; 0: no metrics")

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "ClusterConfig":
        if self.max_workers is not None and self.max_workers < self.min_workers:
            raise ValueError(
                f"max_workers {self.max_workers} is less than min_workers {self.min_workers}"
            )
        return self


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

    def with_threads(self, threads: int) -> "JobConfig":
        """Return the same job for a rank that has so many threads to decode images in."""
        data = self.data.model_copy(update={"threads": self.data.threads or threads})
        return self.model_copy(update={"data": data})

    def check_workers(self, workers: int) -> None:
        """Raise ConfigError unless each of `workers` ranks gets at least one micro-batch."""
        virtual = self.train.virtual_workers
        if not 1 <= workers <= virtual:
            raise ConfigError(
                f"cluster.workers = {workers}: a global batch of {self.train.global_batch} has "
                f"{virtual} micro-batches of {self.train.micro_batch}, so 1 to {virtual} workers"
            )
