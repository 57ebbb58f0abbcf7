"""`make soak`: an hour of training, a fault drawn at random every minute, and the same model.

Two ranks train, warm processes standing by, and a fault is done to them every minute until the time
is over. A driver that has died or was stopped is started again, as whoever runs it would do.
Meanwhile memory, open handles and threads of the driver and the ranks are looked at, and /dev/shm.
Then a run that nothing happens to takes as many steps, in one rank: sums are exact, so it must come
to the same weights. Goodput is the steps that count, at the pace of the median step, over the time.

    make soak                              # an hour, and the unbroken run
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
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil

from alexnet.records import read_records
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
from benchmarks.faults.runs import Launch, Site, prepared_digits
from benchmarks.faults.storage import STATE, flip

SUITE = "soak"
FAULT_SECONDS, SAMPLE_SECONDS = 60.0, 10.0
DRIVER_SHARE = 1 / 6  # of the faults that end the driver: what it holds begins anew with it
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
    f"train.epochs={ENDLESS}",  # the learning rate depends on no last step
)


def main() -> int:
    """Run the soak and the unbroken training; return 1 if the soak has missed something."""
    given = _arguments()
    data = prepared_digits()
    soak = Soak(Site(SUITE, data), random.Random(given.seed))
    reason = ""
    try:
        with marking(soak.site.folder), bounded(90 * given.minutes + 300):
            soak.run(60 * given.minutes)
    except (Missed, OSError, psutil.Error) as error:
        reason = str(error) or type(error).__name__
    orphans = end_all(soak.site.folder, 0 if reason else ORPHAN_SECONDS)
    left_in_shm = soak.samples.left_in_shm()
    if not reason and _unbroken(data, soak.steps) != soak.weights_sha256:
        reason = f"WRONG MODEL: other weights than the unbroken run after step {soak.steps}"
    rows = _rows(soak, orphans, left_in_shm, passed=not reason)
    resultfile.write(SUITE, rows, seed=given.seed, reason=reason, steps=soak.steps)
    print(f"{resultfile.table(rows)}\n{reason or 'same model'}")
    return not all(row["ok"] for row in rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    return parser.parse_args()


def _unbroken(data: Path, steps: int) -> str:
    """Return the hash of the weights after these steps of a run that nothing happens to."""
    site = Site(f"{SUITE}-unbroken", data)
    print(f"unbroken: {steps} steps", flush=True)
    alone = ("cluster.workers=1", f"train.max_steps={steps}", f"checkpoint.every={ENDLESS}")
    site.launch(*SETTINGS, *alone).expect(0)
    return str(site.summary["weights_sha256"])


class Soak:
    """One training through many faults."""

    def __init__(self, site: Site, draw: random.Random) -> None:
        """Train in `site`, with faults that `draw` draws."""
        self.site = site
        self.draw = draw
        self.done: Counter[str] = Counter()
        self.samples = Samples()
        self.seconds = 0.0
        self.launches = 0
        self.steps = 0
        self.step_seconds = 0.0  # the median
        self.weights_sha256 = ""
        self.launch = self.start()

    def run(self, seconds: float) -> None:
        """Train for as long; stop as a user would, and keep what it has come to."""
        began = time.monotonic()
        try:
            self._follow(began, seconds)
            self.launch.await_step(1, after=time.monotonic())  # all has been mended
            self.launch.driver.terminate()
            self.launch.expect(75)
        finally:
            self.seconds = time.monotonic() - began
        records = read_records(self.site.run / "metrics.jsonl")
        told = [record["time"] for record in records if record["kind"] == "step"]
        self.step_seconds = median(after - before for before, after in pairwise(told))
        self.steps = self.site.summary["steps"]
        self.weights_sha256 = self.site.summary["weights_sha256"]

    @property
    def goodput(self) -> float:
        """The share of the time that the steps would have taken undisturbed."""
        return self.steps * self.step_seconds / self.seconds

    def _follow(self, began: float, seconds: float) -> None:
        fault_at, sample_at = began + FAULT_SECONDS, began + SAMPLE_SECONDS
        while (now := time.monotonic()) < began + seconds:
            self.launch.check_alive("the time is over")
            if now >= sample_at:
                sample_at = now + SAMPLE_SECONDS
                self.samples.take(now - began, self.launch.driver.pid, self.site.ranks().values())
            if now >= fault_at:
                fault_at = now + FAULT_SECONDS
                self._strike(now - began)
            time.sleep(0.2)

    def _strike(self, at: float) -> None:
        faults = DRIVER_FAULTS if self.draw.random() < DRIVER_SHARE else RANK_FAULTS
        name = self.draw.choice(list(faults))
        reached = max((step for _, step in self.launch.steps()), default=0)
        print(f"{at:6.0f} s  step {reached:>5}  {name}", flush=True)
        faults[name](self)
        self.done[name] += 1

    def start(self) -> Launch:
        """Start the training, or go on with it."""
        self.launches += 1
        return self.site.launch(*SETTINGS, f"train.max_steps={ENDLESS}")

    def start_again(self) -> None:
        """Go on once nobody is left of a driver that has ended."""
        self.launch.end()
        await_ends(marked(self.site.folder), timeout=ORPHAN_SECONDS)
        self.launch = self.start()

    def rank(self, rank: int) -> psutil.Process:
        """Return the process of a rank, as soon as there is one."""
        while not ((found := self.site.ranks().get(rank)) and is_alive(found)):
            self.launch.check_alive(f"rank {rank} was there")
            time.sleep(0.1)
        return found


def _kill_driver(soak: Soak) -> None:
    soak.launch.driver.kill()
    soak.start_again()


def _stop_driver(soak: Soak) -> None:
    soak.launch.driver.terminate()
    soak.launch.expect(75)
    soak.start_again()


def _damage_checkpoint(soak: Soak) -> None:
    if checkpoints := soak.site.checkpoints():
        flip(checkpoints[-1] / STATE)
    _kill_driver(soak)


RANK_FAULTS: dict[str, Callable[[Soak], None]] = {
    "kill-rank": lambda soak: soak.rank(1).kill(),
    "kill-rank-0": lambda soak: soak.rank(0).kill(),
    "freeze-rank": lambda soak: soak.rank(soak.draw.randrange(2)).suspend(),
}
DRIVER_FAULTS: dict[str, Callable[[Soak], None]] = {
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
    soak: Soak, orphans: list[str], left_in_shm: float, passed: bool
) -> list[dict[str, object]]:
    """Return the rows of the result file."""
    return [
        resultfile.row("same model as unbroken", "of 1", [float(passed)], goal=1.0),
        resultfile.row("duration", "min", [round(soak.seconds / 60, 1)]),
        resultfile.row("faults", "", [float(soak.done.total())]),
        *(
            resultfile.row(f"faults: {name}", "", [float(soak.done[name])])
            for name in (*RANK_FAULTS, *DRIVER_FAULTS)
        ),
        resultfile.row("launches", "", [float(soak.launches)]),
        resultfile.row("goodput", "ratio", [round(soak.goodput, 3)]),
        *(
            resultfile.row(f"growth: {name}", "ratio", [value], MOST_GROWTH, "max")
            for name, value in soak.samples.growth().items()
        ),
        resultfile.row("left in /dev/shm", "MiB", [left_in_shm], 1.0, "max"),
        resultfile.row("processes left", "", [float(len(orphans))], 0.0, "max"),
    ]


if __name__ == "__main__":
    sys.exit(main())
