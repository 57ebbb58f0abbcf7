"""This project: settings, task, trainer and hooks as a rank has them; tensors that lie ready.

What stands behind the arguments are settings, KEY=VALUE. `--apart`: a process of its own, that has
no other ranks. No checkpoints are written.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np
import tensorflow as tf

from alexnet.config import load
from alexnet.exchange import Alone
from alexnet.folder_archive import FolderArchive
from alexnet.hooks import SaveCheckpoints
from alexnet.task import Task
from alexnet.trainer import Hook, Phases, StepEvent, Trainer
from benchmarks.steps import common
from cluster.board import Board
from cluster.collectives import HorovodExchange
from cluster.config import JobConfig
from cluster.rank import _guards, _observers, _tensorboard, configure_tensorflow

NETWORK = Path("/proc/self/net/dev")


@dataclass
class Measure(Hook):
    """Stops the time of the steps, and what else is to be known of them."""

    given: Namespace
    interface: str
    before: int = 0  # bytes sent
    after: int = 0
    updates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Others meet in the exchange.
        self.stopwatch = common.Stopwatch(self.given, meets=self.given.apart)

    def on_step(self, event: StepEvent) -> None:
        """After every step; but for the last one, it is told once the next has been launched."""
        if len(self.stopwatch.seconds) == self.given.steps:
            return
        self.stopwatch()
        self.after = sent_bytes(self.interface)
        self.updates.append(event.result.update_seconds)
        if not self.stopwatch.seconds:
            self.before = self.after

    @property
    def found(self) -> dict[str, float]:
        """Bytes sent a step, seconds of an update."""
        sent = (self.after - self.before) / self.given.steps
        return {"sent": sent, "update": median(self.updates[common.WARM_UP :])}


def sent_bytes(interface: str) -> int:
    """Return what has gone out of a network interface so far."""
    lines = (line.partition(":") for line in NETWORK.read_text().splitlines())
    return next((int(rest.split()[8]) for name, _, rest in lines if name.strip() == interface), 0)


def settings(given: Namespace) -> JobConfig:
    """Return the settings: a preset's, changed as the command line has it, in a folder of ours."""
    together = given.batch * (1 if given.apart else given.ranks)
    sizes = [f"train.global_batch={together}", f"train.micro_batch={given.batch}"]
    places = [f"run_dir={given.folder / str(given.rank)}", f"cluster.metrics_port={given.ports[0]}"]
    return load(JobConfig, given.config, [*sizes, *places, *given.overrides])


def parsed() -> Namespace:
    """Return the arguments."""
    return parser().parse_intermixed_args()


def parser() -> ArgumentParser:
    """Return what reads the arguments."""
    parser = common.parser()
    parser.add_argument("--config", type=Path)
    parser.add_argument("--interface", default="lo")
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("overrides", nargs="*")
    return parser


def batches(task: Task) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """Return one batch again and again."""
    size, classes = task.config.data.image_size, len(task.dataset.classes)
    shape = len(task.share), task.config.train.micro_batch
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*shape, size, size, 3), np.uint8)
    return repeat((tf.constant(pixels), tf.constant(rng.integers(0, classes, shape))))


def hooks_of(
    config: JobConfig, exchange: HorovodExchange, task: Task, phases: Phases, board: Board
) -> list[Hook]:
    """Return the hooks that a rank has, but for the evaluation."""
    config.run_path.mkdir(parents=True, exist_ok=True)
    desk = FolderArchive(config.run_path / "checkpoints").take_over("bench")
    tensorboard = _tensorboard(config, task) if exchange.rank == 0 else None
    observers = _observers(config, exchange, task, phases, board, 0, desk, tensorboard)
    return [*_guards(config, exchange, task, phases), *observers]


def without_saving(hooks: list[Hook]) -> list[Hook]:
    """Return the hooks but for the one that writes checkpoints."""
    return [hook for hook in hooks if not isinstance(hook, SaveCheckpoints)]


def start(given: Namespace) -> tuple[JobConfig, HorovodExchange, Task]:
    """Be a rank: meet the others, build what trains; weights are those of the seed everywhere."""
    config = settings(given)
    threads = configure_tensorflow(config)
    exchange = cast(HorovodExchange, Alone()) if given.apart else HorovodExchange()
    task = Task.build(config.with_threads(threads), exchange)
    return config, exchange, task


def main() -> None:
    """Train."""
    given = parsed()
    config, exchange, task = start(given)
    phases = Phases()
    hooks = hooks_of(config, exchange, task, phases, Board())
    measure = Measure(given, given.interface)
    Trainer(
        step=task.step,
        batches=lambda first_step: batches(task),
        rate=lambda step: common.RATE,
        total_steps=measure.stopwatch.total_steps + 1,
        hooks=[*without_saving(hooks), measure],
        phases=phases,
        stop_requested=lambda: False,
    ).run(0)
    common.report(measure.stopwatch, **measure.found)
    if not given.apart:
        exchange.shutdown()


if __name__ == "__main__":
    main()
