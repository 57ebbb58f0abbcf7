"""`make accuracy DATA=DIR`: train the presets on real images and write down what they score.

DIR holds `catdog.tar` and `cifar10.tar.gz`, as docs/recipes.md describes them. Every run is one
`alexnet train` below `runs/accuracy/`. What was broken off goes on, and what is in
`results/accuracy.json` already, of the preset as it stands, is not trained again: the hours that
this takes need not be in one piece, nor on one machine. The tables are in the README as well, the
plot in `docs/large-batch.svg`.

    make accuracy DATA=data ARGS="catdog --list"       # those whose name begins so
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import sub, truediv
from pathlib import Path
from statistics import mean, median
from typing import Any

import yaml

from alexnet.data.shards import MANIFEST
from alexnet.records import read_records
from benchmarks import resultfile
from benchmarks.resultfile import ROOT

SUITE = "accuracy"
RUNS = ROOT / "runs" / SUITE
DOCUMENT = ROOT / "README.md"
PLOT = ROOT / "docs" / "large-batch.svg"
ARCHIVES = {"catdog": "catdog.tar", "cifar10": "cifar10.tar.gz"}
TIMES = 32  # the large batch, in base batches
Report = dict[str, Any]  # of a training that has come to its end
Reports = dict[str, Report]  # by name


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
        return ["alexnet", "train", f"configs/{self.preset}.yaml", *places, *self.settings]

    @property
    def settings(self) -> list[str]:
        """What is not as in the preset, but for the places of data and run."""
        return [f"seed={self.seed}", *self.changes]

    @property
    def recipe(self) -> dict[str, str]:
        """What decides its outcome, but for code and data."""
        command = shlex.join(self.command).replace(f"{ROOT}/", "")
        preset = yaml.safe_load((ROOT / "configs" / f"{self.preset}.yaml").read_text())
        settings = json.dumps(preset, sort_keys=True).encode()  # its comments decide nothing
        return {"command": command, "preset_sha256": hashlib.sha256(settings).hexdigest()}

    def train(self) -> Report:
        """Train it, from where it was left; its log is beside its folder."""
        print(f"{self.name}: {shlex.join(self.command[1:])}", flush=True)
        RUNS.mkdir(parents=True, exist_ok=True)
        with (RUNS / f"{self.name}.log").open("ab") as log:
            command = [sys.executable, "-m", "cluster", *self.command[1:]]
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)
        return self._report()

    def _report(self) -> Report:
        summary = json.loads((self.folder / "summary.json").read_text())
        # In their order; what was trained twice counts once.
        records = sorted(read_records(self.folder / "metrics.jsonl"), key=lambda one: one["step"])
        evaluations = [record for record in records if record["kind"] == "evaluation"]
        rate = median(line["images_per_second"] for line in records if line["kind"] == "step")
        return {
            "name": self.name,
            **self.recipe,
            "seed": self.seed,
            "ended_at": summary["ended_at"],
            "commit": resultfile.commit(),
            "machine": resultfile.machine(),
            "images_seen": summary["images_seen"],
            "images_per_second": round(rate, 1),
            "hours": round(summary["images_seen"] / rate / 3600, 2),
            "top1": evaluations[-1]["top1"],
            "top5": evaluations[-1]["top5"],
            "epochs": [each["epoch"] for each in evaluations],
            "top1_by_pass": [each["top1"] for each in evaluations],
        }


SEEDS = range(3)
SEED_RECIPE = [Training(preset="catdog-seed", dataset="catdog", seed=seed) for seed in SEEDS]
CATDOG = [Training(preset="catdog", dataset="catdog", seed=seed) for seed in SEEDS]
CATDOG_LONG = Training(
    preset="catdog", dataset="catdog", variant="long", changes=("train.epochs=60",)
)
CIFAR10 = Training(preset="cifar10", dataset="cifar10")
# Small batch against large: as many epochs, the same micro-batches, a pass of warm-up.
COMPARED = ("data.image_size=67", "train.epochs=12", "train.micro_batch=16")
BASE = 32  # images a step
SMALL_SGD = Training(
    preset="cifar10",
    dataset="cifar10",
    variant="small",
    changes=(
        *COMPARED,
        f"train.global_batch={BASE}",
        "schedule.learning_rate=0.01",
        "schedule.warmup_steps=1562",
    ),
)
LARGE = (*COMPARED, f"train.global_batch={TIMES * BASE}", "schedule.warmup_steps=48")
LARS = Training(
    preset="cifar10",
    dataset="cifar10",
    variant="lars",
    changes=(*LARGE, "optimizer.name=lars", "schedule.learning_rate=12"),
)
LARGE_SGD = Training(
    preset="cifar10",
    dataset="cifar10",
    variant="sgd",
    changes=(*LARGE, "schedule.learning_rate=0.01", f"schedule.base_batch={BASE}"),
)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What trainings are to come to."""

    name: str
    unit: str = "top-1"
    trainings: Sequence[Training]
    samples: Callable[[Sequence[Report]], list[float]]  # of the reports of `trainings`
    bound: float | None = None  # the least that will do


def _last(reports: Sequence[Report]) -> list[float]:
    return [float(report["top1"]) for report in reports]


def _best(reports: Sequence[Report]) -> list[float]:
    return [float(max(report["top1_by_pass"])) for report in reports]


def _above_seed(reports: Sequence[Report]) -> list[float]:
    seed, own = reports[: len(SEEDS)], reports[len(SEEDS) :]
    return [mean(_last(own)) - mean(_best(seed))]


GOALS = (
    Goal(name="catdog-seed, best pass", trainings=SEED_RECIPE, samples=_best),
    Goal(name="catdog, last pass", trainings=CATDOG, samples=_last),
    Goal(
        name="catdog above catdog-seed",
        unit="top-1, means",
        trainings=[*SEED_RECIPE, *CATDOG],
        samples=_above_seed,
        bound=0.10,
    ),
    Goal(name="catdog, more passes", trainings=[CATDOG_LONG], samples=_last, bound=0.80),
    Goal(name="cifar10", trainings=[CIFAR10], samples=_last, bound=0.85),
    Goal(
        name=f"LARS, {TIMES} x the batch, of small",
        unit="ratio",
        trainings=[LARS, SMALL_SGD],
        samples=lambda reports: [truediv(*_last(reports))],
        bound=0.99,
    ),
    Goal(
        name=f"LARS above SGD, {TIMES} x the batch",
        trainings=[LARS, LARGE_SGD],
        samples=lambda reports: [sub(*_last(reports))],
        bound=0.001,
    ),
)
LARGE_BATCH = {
    SMALL_SGD: f"SGD, {BASE} images a step",
    LARS: f"LARS, {TIMES} times as large",
    LARGE_SGD: f"SGD, {TIMES} times as large, rate scaled linearly",
}
TRAININGS = [*SEED_RECIPE, *CATDOG, CATDOG_LONG, CIFAR10, SMALL_SGD, LARS, LARGE_SGD]


def main() -> int:
    """Train what is asked for and not trained yet; report all that is. Return 1 for a miss."""
    given = _arguments()
    chosen = [each for each in TRAININGS if each.name.startswith(given.names)]
    if given.list:
        print(*(f"{each.name:20}{shlex.join(each.command)}" for each in chosen), sep="\n")
        return 0
    reports = _kept()
    missing = [each for each in chosen if each.name not in reports]
    for dataset in sorted({each.dataset for each in missing}):
        _prepare(given.data / ARCHIVES[dataset], RUNS / "data" / dataset)
    for each in missing:
        reports[each.name] = each.train()
        _write(reports)
    rows = _write(reports)
    print(resultfile.table(rows))
    return not all(row["ok"] for row in rows)


def _kept() -> Reports:
    """Return what has been trained before, of recipes that are still the same."""
    path = resultfile.FOLDER / f"{SUITE}.json"
    before: list[Report] = json.loads(path.read_text())["trainings"] if path.exists() else []
    recipes = {each.name: each.recipe for each in TRAININGS}
    return {
        report["name"]: report
        for report in before
        if report["name"] in recipes and recipes[report["name"]].items() <= report.items()
    }


def _write(reports: Reports) -> list[dict[str, Any]]:
    """Leave the reports, and the rows of all goals whose trainings are done; return these."""
    rows = []
    for goal in GOALS:
        if all(each.name in reports for each in goal.trainings):
            samples = goal.samples([reports[each.name] for each in goal.trainings])
            samples = [round(sample, 4) for sample in samples]
            rows.append(resultfile.row(goal.name, goal.unit, samples, goal.bound))
    done = [reports[each.name] for each in TRAININGS if each.name in reports]
    resultfile.write(SUITE, rows, trainings=done)
    resultfile.into_document(DOCUMENT, SUITE, in_markdown(reports, rows))
    if all(each.name in reports for each in LARGE_BATCH):
        _plot(reports)
    return rows


def in_markdown(reports: Reports, rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of what was trained, and one of what it was to come to."""
    text = "| `alexnet train` | images seen | minutes | best pass | last pass | date |\n"
    text += "|---|---|---|---|---|---|\n"
    for training in (each for each in TRAININGS if each.name in reports):
        report = reports[training.name]
        command = shlex.join([training.preset, *training.settings])
        minutes = report["images_seen"] / report["images_per_second"] / 60
        seen = f"{report['images_seen']:,} | {minutes:.1f}"
        scores = f"{max(report['top1_by_pass']):.4f} | {report['top1']:.4f}"
        text += f"| `{command}` | {seen} | {scores} | {report['ended_at'][:10]} |\n"
    text += "\n| held-out top-1 | median | bound |\n|---|---|---|\n"
    for row in rows:
        verdict = "" if row["ok"] else " **missed**"
        bound = "" if row["goal"] is None else f">= {row['goal']:g}{verdict}"
        text += f"| {row['name']} | {row['value']:.4f} | {bound} |\n"
    machines = sorted({report["machine"] for report in reports.values()})
    return f"{text}\nOn {'; '.join(machines)}.\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make accuracy")
    parser.add_argument("names", nargs="*", help="beginnings of names; none: all")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DATA", "data")))
    parser.add_argument("--list", action="store_true", help="the trainings and their commands")
    given = parser.parse_args()
    given.names = tuple(given.names) or ("",)
    return given


def _prepare(archive: Path, folder: Path) -> None:
    if (folder / MANIFEST).exists():
        return
    command = [sys.executable, "-m", "cluster", "prepare", str(archive), str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)


def _plot(reports: Reports) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for training, label in LARGE_BATCH.items():
        report = reports[training.name]
        axes.plot(report["epochs"], report["top1_by_pass"], label=label)
    axes.set(xlabel="epoch", ylabel="held-out top-1", title="CIFAR-10 at 67 x 67, AlexNet-BN")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
