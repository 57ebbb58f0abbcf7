"""Does reading shards slow training down?

Two ranks train the full AlexNet at 227 x 227, in turns on batches from shards and on tensors that
lie ready. The same file is the program of each rank.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.ranks import run_ranks  # noqa: E402

RANKS = 2
MICRO_BATCH = 16
STEPS = 4  # a turn
DRAIN = 8  # batches that are ready when a turn begins: dropped, so that each turn makes its own


def measure(dataset: str, rounds: int) -> list[float]:
    """Return, for each round, images/s from shards over images/s from ready tensors."""
    first, *_ = run_ranks(RANKS, str(Path(__file__).absolute()), [dataset, str(rounds)], 3600)
    turns = json.loads(first.splitlines()[-1])
    return [shards / ready for shards, ready in turns]


def train(dataset: str, rounds: int) -> None:
    """Be one rank; print the images/s of both kinds of turn for every round."""
    from alexnet.config import DataConfig, TrainConfig
    from alexnet.task import Task
    from cluster.collectives import HorovodExchange
    from cluster.config import ClusterConfig, JobConfig
    from cluster.rank import configure_tensorflow

    config = JobConfig(
        data=DataConfig(path=dataset, fit="crop", threads=1),
        train=TrainConfig(global_batch=RANKS * MICRO_BATCH, micro_batch=MICRO_BATCH),
        cluster=ClusterConfig(threads_per_worker=max(1, len(os.sched_getaffinity(0)) // RANKS)),
    )
    configure_tensorflow(config)
    exchange = HorovodExchange()
    task = Task.build(config, exchange)
    exchange.broadcast(list(task.step.variables.values()))
    shards = iter(task.batches(0))
    ready = repeat(next(shards))

    def turn(batches: Iterator) -> float:  # type: ignore[type-arg]
        start = time.perf_counter()
        for step, (images, labels) in enumerate(islice(batches, STEPS)):
            task.step.read(task.step(images, labels, step, 1e-4, False))
        return STEPS * RANKS * MICRO_BATCH / (time.perf_counter() - start)

    turn(ready)  # builds the graph
    turns = []
    for number in range(rounds):
        for _ in range(DRAIN):
            next(shards)
        if number % 2:  # what changes with time falls on both kinds alike
            turns.append((turn(shards), turn(ready)))
        else:
            turns.append((turn(ready), turn(shards))[::-1])
    exchange.shutdown()
    print(json.dumps(turns))


if __name__ == "__main__":
    if "HOROVOD_RANK" in os.environ:
        train(sys.argv[1], int(sys.argv[2]))
    else:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
