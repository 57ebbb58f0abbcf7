"""`make accuracy DATA=DIR`: train the presets on real images and write down what they score.

DIR holds `catdog.tar` and `cifar10.tar.gz`, as docs/recipes.md describes them. Every run is one
`alexnet train` below `runs/accuracy/`; what has been trained is not trained again, and what was
broken off goes on, so that the hours this takes need not be in one piece. Results are in
`results/accuracy.json`, the plot in `docs/large-batch.svg`.

    make accuracy DATA=data ARGS="catdog --list"       # those whose name begins so
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import resultfile
from benchmarks.resultfile import ROOT

SUITE = "accuracy"
RUNS = ROOT / "runs" / SUITE
PLOT = ROOT / "docs" / "large-batch.svg"
ARCHIVES = {"catdog": "catdog.tar", "cifar10": "cifar10.tar.gz"}
TIMES = 32  # the large batch, in base batches


@dataclass(frozen=True, kw_only=True)
class Training:
    """A preset, changed or not, with a seed."""

    preset: str
    dataset: str
    seed: int = 0
    variant: str = ""
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """That of its folder."""
        return "-".join(filter(None, [self.preset, self.variant, str(self.seed)]))

    @property
    def folder(self) -> Path:
        """Its run directory."""
        return RUNS / self.name

    @property
    def command(self) -> list[str]:
        """What trains it, from the project's root."""
        places = [f"data.path={RUNS / 'data' / self.dataset}", f"run_dir={self.folder}"]
        own = [*places, f"seed={self.seed}", *self.changes]
        return ["alexnet", "train", f"configs/{self.preset}.yaml", *own]

    @property
    def is_done(self) -> bool:
        """Whether it has been trained to its end."""
        summary = self.folder / "summary.json"
        return summary.exists() and json.loads(summary.read_text())["status"] == "completed"

    def train(self) -> None:
        """Train it, from where it was left; its log is beside its folder."""
        print(f"{self.name}: {shlex.join(self.command[1:])}", flush=True)
        with (RUNS / f"{self.name}.log").open("ab") as log:
            command = [sys.executable, "-m", "cluster", *self.command[1:]]
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Its evaluations and logged steps, in order; what was trained twice counts once."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return sorted(map(json.loads, lines), key=lambda record: record["step"])

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """One a pass, as a rule."""
        return [record for record in self.records if record["kind"] == "evaluation"]

    @property
    def last(self) -> float:
        """Held-out top-1 at the end."""
        return float(self.evaluations[-1]["top1"])

    @property
    def best(self) -> float:
        """Held-out top-1 of the best pass."""
        return float(max(each["top1"] for each in self.evaluations))

    @property
    def report(self) -> dict[str, Any]:
        """What the results say of it."""
        summary = json.loads((self.folder / "summary.json").read_text())
        steps = [record for record in self.records if record["kind"] == "step"]
        rates = sorted(step["images_per_second"] for step in steps)
        return {
            "name": self.name,
            "command": shlex.join(self.command).replace(f"{ROOT}/", ""),
            "ended_at": summary["ended_at"],
            "images_seen": summary["images_seen"],
            "images_per_second": round(rates[len(rates) // 2], 1),
            "hours": round(summary["images_seen"] / rates[len(rates) // 2] / 3600, 2),
            "top1": round(self.last, 4),
            "top5": round(self.evaluations[-1]["top5"], 4),
            "top1_of_the_best_pass": round(self.best, 4),
            "top1_by_pass": [round(each["top1"], 4) for each in self.evaluations],
        }


SEEDS = range(3)
SEED_RECIPE = [Training(preset="catdog-seed", dataset="catdog", seed=seed) for seed in SEEDS]
CATDOG = [Training(preset="catdog", dataset="catdog", seed=seed) for seed in SEEDS]
CATDOG_LONG = Training(
    preset="catdog", dataset="catdog", variant="long", changes=("train.epochs=100",)
)
CIFAR10 = Training(preset="cifar10", dataset="cifar10")
LARGE = ("train.global_batch=4096", "schedule.warmup_steps=36")
LARS = Training(
    preset="cifar10",
    dataset="cifar10",
    variant="lars",
    changes=(*LARGE, "optimizer.name=lars", "schedule.learning_rate=8"),
)
LARGE_SGD = Training(
    preset="cifar10",
    dataset="cifar10",
    variant="sgd",
    changes=(*LARGE, "schedule.base_batch=128"),  # linear scaling
)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What trainings are to come to."""

    name: str
    unit: str = "top-1"
    trainings: Sequence[Training]
    samples: Callable[[], list[float]]
    bound: float | None = None  # the least that will do


GOALS = (
    Goal(
        name="catdog-seed, best pass",
        trainings=SEED_RECIPE,
        samples=lambda: [each.best for each in SEED_RECIPE],
    ),
    Goal(
        name="catdog, last pass",
        trainings=CATDOG,
        samples=lambda: [each.last for each in CATDOG],
    ),
    Goal(
        name="catdog above catdog-seed",
        unit="top-1, means",
        trainings=[*SEED_RECIPE, *CATDOG],
        samples=lambda: [mean(x.last for x in CATDOG) - mean(x.best for x in SEED_RECIPE)],
        bound=0.10,
    ),
    Goal(
        name="catdog, more passes",
        trainings=[CATDOG_LONG],
        samples=lambda: [CATDOG_LONG.last],
        bound=0.80,
    ),
    Goal(name="cifar10", trainings=[CIFAR10], samples=lambda: [CIFAR10.last], bound=0.85),
    Goal(
        name=f"LARS, {TIMES} x the batch, of small",
        unit="ratio",
        trainings=[CIFAR10, LARS],
        samples=lambda: [LARS.last / CIFAR10.last],
        bound=0.99,
    ),
    Goal(
        name=f"LARS above SGD, {TIMES} x the batch",
        trainings=[LARS, LARGE_SGD],
        samples=lambda: [LARS.last - LARGE_SGD.last],
        bound=0.001,
    ),
)
TRAININGS = [*SEED_RECIPE, *CATDOG, CATDOG_LONG, CIFAR10, LARS, LARGE_SGD]


def main() -> int:
    """Train what is asked for and not trained yet; report all that is. Return 1 for a miss."""
    given = _arguments()
    chosen = [each for each in TRAININGS if each.name.startswith(given.names)]
    if given.list:
        print(*(f"{each.name:20}{shlex.join(each.command)}" for each in chosen), sep="\n")
        return 0
    for dataset in sorted({each.dataset for each in chosen}):
        _prepare(given.data / ARCHIVES[dataset], RUNS / "data" / dataset)
    for each in chosen:
        if not each.is_done:
            each.train()
    done = [each for each in TRAININGS if each.is_done]
    rows = _rows(done)
    resultfile.write(SUITE, rows, trainings=[each.report for each in done])
    print(resultfile.table(rows))
    if {CIFAR10, LARS, LARGE_SGD} <= {*done}:
        _plot()
    return not all(row["ok"] for row in rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make accuracy")
    parser.add_argument("names", nargs="*", help="beginnings of names; none: all")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DATA", "data")))
    parser.add_argument("--list", action="store_true", help="the trainings and their commands")
    given = parser.parse_args()
    given.names = tuple(given.names) or ("",)
    return given


def _prepare(archive: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "cluster", "prepare", str(archive), str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)


def _rows(done: Sequence[Training]) -> list[dict[str, Any]]:
    """The figures of all goals whose trainings are done."""
    return [
        resultfile.row(each.name, each.unit, each.samples(), each.bound)
        for each in GOALS
        if {*each.trainings} <= {*done}
    ]


def _plot() -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for training, label in (
        (CIFAR10, "SGD, small batch"),
        (LARS, f"LARS, {TIMES} times as large"),
        (LARGE_SGD, f"SGD, {TIMES} times as large, rate scaled linearly"),
    ):
        found = training.evaluations
        axes.plot([x["epoch"] for x in found], [x["top1"] for x in found], label=label)
    axes.set(xlabel="epoch", ylabel="held-out top-1", title="CIFAR-10, AlexNet-BN")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
