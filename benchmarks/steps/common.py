"""What all programs share: command line, clock, and the meeting before the clock starts.

No import but of the standard library: some programs live in environments of their own.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

WARM_UP = 3  # steps: the first ones build graphs and get memory
SIZE, CLASSES = 227, 1000
MOMENTUM, WEIGHT_DECAY, RATE = 0.9, 5e-4, 1e-3
PARAMETERS = 62_383_848  # of the network, BatchNorm's statistics included


def parser() -> argparse.ArgumentParser:
    """Return what reads the arguments that every program takes."""
    found = argparse.ArgumentParser()
    found.add_argument("--batch", type=int, required=True, help="images of a rank in a step")
    found.add_argument("--steps", type=int, required=True, help="that are timed")
    found.add_argument("--rank", type=int, required=True)
    found.add_argument("--ranks", type=int, required=True)
    found.add_argument("--ports", type=lambda text: [*map(int, text.split(","))], required=True)
    found.add_argument("--folder", type=Path, required=True, help="of this run, for all ranks")
    return found


class Stopwatch:
    """Told of the end of every step, it knows the seconds of those after the warm-up."""

    def __init__(self, given: argparse.Namespace, meets: bool = True) -> None:
        """Start once all ranks have warmed up, if this rank `meets` them here."""
        self._given = given
        self._meets = meets
        self._ended = 0
        self._at = 0.0
        self.seconds: list[float] = []

    def __call__(self) -> None:
        """A step has ended."""
        now = time.perf_counter()
        self._ended += 1
        if self._ended > WARM_UP:
            self.seconds.append(now - self._at)
        elif self._ended == WARM_UP:
            if self._meets:
                meet(self._given)
            now = time.perf_counter()
        self._at = now

    @property
    def total_steps(self) -> int:
        """Steps to take in all."""
        return WARM_UP + int(self._given.steps)


def meet(given: argparse.Namespace, place: str = "ready") -> None:
    """Wait until every rank has come to this place; who runs them ends all if one has failed."""
    (given.folder / f"{place}-{given.rank}").touch()
    while len([*given.folder.glob(f"{place}-*")]) < given.ranks:
        time.sleep(0.005)


def report(stopwatch: Stopwatch, **more: Any) -> None:
    """Print what was measured."""
    print(json.dumps({"seconds": stopwatch.seconds, **more}), flush=True)
