"""What watching, or saving, costs: turns with it and turns without, in one life of the ranks.

Takes what ours.py takes. `--steps` are those of a turn; `--turns` pairs of turns are timed, every
other pair, and every other round, the other way around. Neither the driver is in watching nor what
Ray does to carry a look to it.
"""

import json
import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from urllib.request import urlopen

from alexnet.hooks import SaveCheckpoints
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

    @property
    def runs(self) -> bool:
        """Whether what happens now is timed."""
        return bool(self.moments)


class Saving(Hook):
    """Saves in mid-turn; at its end, which is not timed, it waits until that has been written."""

    def __init__(self, hook: SaveCheckpoints) -> None:
        self.on_step = hook.on_step  # type: ignore[method-assign]
        self.wants_state = hook.wants_state  # type: ignore[method-assign]
        self.on_state = hook.on_state  # type: ignore[method-assign]
        self._finish = hook._writer.finish

    def on_end(self, step: int, stopped: bool) -> None:
        """Raise if it could not be written."""
        self._finish()


@contextmanager
def looked_at(board: Board, port: int, clock: Clock) -> Iterator[None]:
    """Look at the board as often as the driver does, and scrape the metrics once."""
    end = threading.Event()
    scraped: list[bytes] = []

    def look() -> None:
        while not end.wait(POLL_SECONDS):
            pickle.dumps(board.look())
            if clock.runs and not scraped:
                scraped.append(scrape(port))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
    if b"alexnet_steps_total" not in (scraped[0] if scraped else scrape(port)):
        raise RuntimeError(f"these are no metrics of ours, on port {port}")


def scrape(port: int) -> bytes:
    """Ask for the metrics, as Prometheus does."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return bytes(answer.read())


def main() -> None:
    """Train in turns."""
    parser = ours.parser()
    parser.add_argument("--what", choices=("watching", "saving"), required=True)
    parser.add_argument("--turns", type=int, required=True)
    parser.add_argument("--round", type=int, default=0)
    given = parser.parse_intermixed_args()
    config, exchange, task = ours.start(given)
    phases, board = Phases(), Board()
    hooks = ours.hooks_of(config, exchange, task, phases, board)
    saving = [Saving(hook) for hook in hooks if isinstance(hook, SaveCheckpoints)]
    watches = given.what == "watching"
    added: list[Hook] = ours.without_saving(hooks) if watches else [*saving]
    port = config.cluster.metrics_port + given.rank
    taken = 0

    def turn(steps: int, hooks: Sequence[Hook], is_watched: bool = False) -> float:
        nonlocal taken
        clock = Clock()
        trainer = Trainer(
            step=task.step,
            batches=lambda first_step: ours.batches(task),
            rate=lambda step: common.RATE,
            total_steps=taken + steps,
            hooks=[*hooks, clock],
            phases=phases,
            stop_requested=lambda: False,
        )
        with looked_at(board, port, clock) if is_watched else nullcontext():
            taken, _ = trainer.run(taken)
        return clock.moments[-2] - clock.moments[0]

    steps = given.steps + 2  # the first and the last one are not timed
    # Builds the graph, has memory for copies; saves, one in so many steps, come in mid-turn then.
    turn(steps // 2, [] if watches else added)
    turns = []
    for number in range(given.turns):
        if (number + given.round) % 2:
            off, on = turn(steps, []), turn(steps, added, watches)
        else:
            on, off = turn(steps, added, watches), turn(steps, [])
        turns.append((on, off))
    if saving and not watches and not [*(config.run_path / "checkpoints").glob("step-*")]:
        raise RuntimeError("no checkpoint was written")
    print(json.dumps({"turns": turns, "blocked": phases.seconds["checkpoint"]}), flush=True)
    if not given.apart:
        exchange.shutdown()


if __name__ == "__main__":
    main()
