"""What watching costs: turns with a rank's hooks and the driver's looks, and without, in one life.

Takes what ours.py takes. `--steps` are those of a turn, `--turns` pairs of turns are timed. What
Ray does to carry a look is not in it, nor the driver itself.
"""

import json
import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from urllib.request import urlopen

from alexnet.trainer import Hook, Phases, StepEvent, Trainer
from benchmarks.steps import common, ours
from cluster.board import Board
from cluster.watch import POLL_SECONDS


class Clock(Hook):
    """Knows when each step was told: but for the last one, once the next has been launched."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_step(self, event: StepEvent) -> None:
        """After every step."""
        self.moments.append(time.perf_counter())


@contextmanager
def looked_at(board: Board, port: int) -> Iterator[None]:
    """Look at the board as often as the driver does, and scrape the metrics once."""
    end = threading.Event()

    def look() -> None:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            answer.read()
        while not end.wait(POLL_SECONDS):
            pickle.dumps(board.look())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def main() -> None:
    """Train in turns."""
    parser = ours.parser()
    parser.add_argument("--turns", type=int, required=True)
    given = parser.parse_intermixed_args()
    config, exchange, task = ours.start(given)
    phases, board = Phases(), Board()
    watching = ours.without_saving(ours.hooks_of(config, exchange, task, phases, board))
    port = config.cluster.metrics_port + given.rank
    taken = 0

    def turn(hooks: Sequence[Hook]) -> float:
        nonlocal taken
        clock = Clock()
        trainer = Trainer(
            step=task.step,
            batches=lambda first_step: ours.batches(task),
            rate=lambda step: common.RATE,
            total_steps=taken + given.steps + 2,
            hooks=[*hooks, clock],
            phases=phases,
            stop_requested=lambda: False,
        )
        with looked_at(board, port) if hooks else nullcontext():
            taken, _ = trainer.run(taken)
        return clock.moments[-2] - clock.moments[0]

    turn([])  # builds the graph
    turns = []
    for number in range(given.turns):
        if number % 2:
            off, on = turn([]), turn(watching)
        else:
            on, off = turn(watching), turn([])
        turns.append((on, off))
    print(json.dumps({"turns": turns}), flush=True)
    exchange.shutdown()


if __name__ == "__main__":
    main()
