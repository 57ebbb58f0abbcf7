"""One rank that trains the steps of a config, prints a hash of its replica after every one, and
as rank 0 saves the model's variables after the steps that it is told.

Usage: train_steps.py CONFIG OUT STEP... [--exchange=none]
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from alexnet.checkpoint import state_sha256
from alexnet.config import load
from alexnet.exchange import Alone
from alexnet.task import Task
from alexnet.trainer import Hook, Phases, Trainer
from cluster.board import Board
from cluster.collectives import HorovodExchange
from cluster.config import JobConfig
from cluster.rank import configure_tensorflow


class NoSum(HorovodExchange):
    """Has the ranks of the real one, but leaves the exchange of gradients out."""

    def sum(self, tensors: Sequence[tf.Tensor], name: str = "step") -> list[tf.Tensor]:
        return Alone().sum(tensors, name)


class Snapshots(Hook):
    def __init__(self, task: Task, rank: int, out: Path, steps: set[int]) -> None:
        self._task, self._rank, self._out, self._steps = task, rank, out, steps

    def wants_state(self, step: int) -> bool:
        return True

    def on_state(self, step: int) -> None:
        state: dict[str, npt.NDArray[np.float32]] = {
            name: variable.numpy() for name, variable in self._task.step.variables.items()
        }
        print(json.dumps({"step": step, "sha256": state_sha256(state)}), flush=True)
        if step in self._steps and self._rank == 0:
            np.savez(self._out / f"{step}.npz", allow_pickle=False, **state)


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    config = load(JobConfig, Path(arguments[0]))
    out, steps = Path(arguments[1]), set(map(int, arguments[2:]))
    configure_tensorflow(config)
    exchange = NoSum() if "--exchange=none" in sys.argv else HorovodExchange()
    task = Task.build(config, exchange)
    exchange.broadcast(list(task.step.variables.values()))
    board = Board()
    Trainer(
        step=task.step,
        batches=task.batches,
        rate=task.rate,
        total_steps=task.total_steps,
        hooks=[Snapshots(task, exchange.rank, out, steps)],
        phases=Phases(),
        stop_requested=board.stop.is_set,
    ).run(0)
    exchange.shutdown()


if __name__ == "__main__":
    main()
