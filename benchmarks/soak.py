"""`make soak`: an hour of training, a fault drawn at random every minute, and the same model.

First an unbroken run is stopped after two fifths of the time: its steps are what the soak has to
come to, and its weights what it has to end with. Then the same training is started with two ranks,
warm processes standing by, and a fault is done to it every minute until it has taken these steps. A
driver that has died or was stopped is started again, as whoever runs it would do. Meanwhile memory,
open handles and threads of the driver and the ranks are looked at, and /dev/shm.

    make soak                              # an hour
    make soak ARGS="--minutes 4 --seed 7"

Results are in `results/soak.json`; what it leaves on the disk is in `runs/chaos/rows/soak/`.
"""

import argparse
import random
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from statistics import median

import psutil

from benchmarks import resultfile
from benchmarks.faults.processes import (
    Missed,
    await_ends,
    bounded,
    end_all,
    is_alive,
    marked,
    marking,
)
from benchmarks.faults.runs import Launch, Reference, Site, prepared_digits
from benchmarks.faults.storage import STATE, flip

SUITE = "soak"
UNBROKEN_SHARE = 0.4  # of the time: faults cost more than as much again
FAULT_SECONDS, SAMPLE_SECONDS = 60.0, 10.0
SETTLED_SECONDS = 30.0  # a process that is younger still grows
ORPHAN_SECONDS = 30.0
MOST_GROWTH = 1.1
ENDLESS = 10**6
MIB = 2**20
SETTINGS = (
    "checkpoint.every=20",
    "cluster.standby_after=30",
    "cluster.stall_timeout=45",
    f"cluster.max_restarts={ENDLESS}",
    f"train.epochs={ENDLESS}",  # it ends by its steps
)


def main() -> int:
    """Run the unbroken training and the soak; return 1 if the soak has missed something."""
    given = _arguments()
    data = prepared_digits()
    steps, reference, productive = _unbroken(data, UNBROKEN_SHARE * 60 * given.minutes)
    print(f"unbroken: {steps} steps, {productive:.0f} s of them productive", flush=True)
    soak = Soak(Site(SUITE, data, reference), steps, random.Random(given.seed))
    reason = ""
    try:
        with marking(soak.site.folder), bounded(240 * given.minutes + 300):
            soak.run()
    except (Missed, OSError, psutil.Error) as error:
        reason = str(error) or type(error).__name__
    orphans = end_all(soak.site.folder, 0 if reason else ORPHAN_SECONDS)
    rows = _rows(soak, productive, orphans, passed=not reason)
    resultfile.write(SUITE, rows, seed=given.seed, reason=reason, faults=dict(soak.done))
    print(f"{resultfile.table(rows)}\n{reason or 'same model'}")
    return not all(row["ok"] for row in rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    return parser.parse_args()


def _unbroken(data: Path, seconds: float) -> tuple[int, Reference, float]:
    """Train for some time; return the steps taken, what they came to, and their seconds.

    The learning rate depends on no last step, so that a longer run goes through the same states.
    """
    site = Site(f"{SUITE}-unbroken", data)
    launch = site.launch(*SETTINGS, f"train.max_steps={ENDLESS}")
    first = launch.await_step(1)
    time.sleep(seconds)
    launch.driver.terminate()
    launch.expect(75)
    summary = site.summary
    reference = Reference(
        weights_sha256=summary["weights_sha256"],
        cold_start=round(first - launch.started, 2),
        goodput=summary["goodput_ratio"],
    )
    return summary["steps"], reference, summary["wall_seconds"]["productive"]


class Soak:
    """One training through many faults."""

    def __init__(self, site: Site, steps: int, draw: random.Random) -> None:
        """Take `steps` in `site`, with faults that `draw` draws."""
        self.site = site
        self.draw = draw
        self.done: Counter[str] = Counter()
        self.samples = Samples()
        self.seconds = 0.0
        self.launches = 0
        self._settings = (*SETTINGS, f"train.max_steps={steps}")
        self.launch = self.start()

    def run(self) -> None:
        """Go on until all steps are taken; miss unless they have come to the unbroken model."""
        began = time.monotonic()
        try:
            self._follow(began)
        finally:
            self.seconds = time.monotonic() - began
        self.launch.expect(0)
        self.site.check_model()

    def _follow(self, began: float) -> None:
        fault_at, sample_at = began + FAULT_SECONDS, began + SAMPLE_SECONDS
        while self.launch.driver.poll() is None:
            now = time.monotonic()
            if now >= sample_at:
                sample_at = now + SAMPLE_SECONDS
                self.samples.take(now - began, self.launch.driver.pid, self.site.ranks().values())
            if now >= fault_at:
                fault_at = now + FAULT_SECONDS
                self._strike(now - began)
            time.sleep(0.2)

    def _strike(self, at: float) -> None:
        name = self.draw.choice(list(FAULTS))
        reached = max((step for _, step in self.launch.steps()), default=0)
        print(f"{at:6.0f} s  step {reached:>5}  {name}", flush=True)
        with suppress(psutil.NoSuchProcess):  # it has just ended by itself
            FAULTS[name](self)
            self.done[name] += 1

    def start(self) -> Launch:
        """Start the training, or go on with it."""
        self.launches += 1
        return self.site.launch(*self._settings)

    def start_again(self) -> None:
        """Go on once nobody is left of a driver that has ended."""
        self.launch.end()
        await_ends(marked(self.site.folder), timeout=ORPHAN_SECONDS)
        self.launch = self.start()

    def rank(self, rank: int) -> psutil.Process:
        """Return the process of a rank, as soon as there is one."""
        while not ((found := self.site.ranks().get(rank)) and is_alive(found)):
            if self.launch.driver.poll() is not None:
                raise psutil.NoSuchProcess(self.launch.driver.pid)
            time.sleep(0.1)
        return found


def _kill_driver(soak: Soak) -> None:
    soak.launch.driver.kill()
    soak.start_again()


def _stop_driver(soak: Soak) -> None:
    soak.launch.driver.terminate()
    if (code := soak.launch.end()) == 75:
        soak.start_again()
    elif code:
        raise Missed(f"exit code {code}, not 75, after SIGTERM: {soak.launch}")


def _damage_checkpoint(soak: Soak) -> None:
    if checkpoints := soak.site.checkpoints():
        flip(checkpoints[-1] / STATE)
    _kill_driver(soak)


FAULTS: dict[str, Callable[[Soak], None]] = {
    "kill-rank": lambda soak: soak.rank(1).kill(),
    "kill-rank-0": lambda soak: soak.rank(0).kill(),
    "freeze-rank": lambda soak: soak.rank(soak.draw.randrange(2)).suspend(),
    "kill-driver": _kill_driver,
    "stop-driver": _stop_driver,
    "flip-checkpoint": _damage_checkpoint,
}


class Samples:
    """What the processes have held of the machine, looked at again and again."""

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._shm_before = _shm_bytes()

    def take(self, at: float, driver: int, ranks: Iterable[psutil.Process]) -> None:
        """Look at the driver and at the largest rank, unless they are young."""
        with suppress(psutil.Error):
            self._look(at, "driver", [psutil.Process(driver)])
            self._look(at, "rank", list(ranks))

    def _look(self, at: float, role: str, processes: list[psutil.Process]) -> None:
        settled = [p for p in processes if time.time() - p.create_time() > SETTLED_SECONDS]
        figures: dict[str, Callable[[psutil.Process], float]] = {
            "memory": lambda process: process.memory_info().rss,
            "handles": lambda process: process.num_fds(),
            "threads": lambda process: process.num_threads(),
        }
        for name, figure in figures.items():
            if settled:
                self._values[f"{role} {name}"].append((at, max(map(figure, settled))))

    def growth(self) -> dict[str, float]:
        """Return each median of the last quarter of the time, over that of the first."""
        found = {}
        for name, values in self._values.items():
            end = max(at for at, _ in values)
            first = [value for at, value in values if at <= end / 4]
            last = [value for at, value in values if at >= end * 3 / 4]
            if first and last:
                found[name] = round(median(last) / median(first), 3)
        return found

    def left_in_shm(self) -> float:
        """Return the MiB by which /dev/shm has more in it than before, now that all have gone."""
        return round((_shm_bytes() - self._shm_before) / MIB, 1)


def _shm_bytes() -> int:
    return shutil.disk_usage("/dev/shm").used


def _rows(
    soak: Soak, productive: float, orphans: list[str], passed: bool
) -> list[dict[str, object]]:
    """Return the rows of the result file."""
    return [
        resultfile.row("same model as unbroken", "of 1", [float(passed)], goal=1.0),
        resultfile.row("duration", "min", [round(soak.seconds / 60, 1)]),
        resultfile.row("faults", "", [float(soak.done.total())]),
        *(resultfile.row(f"faults: {name}", "", [float(soak.done[name])]) for name in FAULTS),
        resultfile.row("launches", "", [float(soak.launches)]),
        resultfile.row("goodput", "ratio", [round(productive / soak.seconds, 3)]),
        *(
            resultfile.row(f"growth: {name}", "ratio", [value], MOST_GROWTH, "max")
            for name, value in soak.samples.growth().items()
        ),
        resultfile.row("left in /dev/shm", "MiB", [soak.samples.left_in_shm()], 1.0, "max"),
        resultfile.row("processes left", "", [float(len(orphans))], 0.0, "max"),
    ]


if __name__ == "__main__":
    sys.exit(main())
