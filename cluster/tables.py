"""What `runs`, `status RUN` and `config` show: tables of 80 columns."""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.presets import Preset
from cluster.quantities import PREFIXES, in_words
from cluster.run_facts import Pairs, row
from cluster.runs import Run

WIDTH = 80
NOTHING = "-"
HASH = 12  # digits shown of one


def show(table: Table) -> None:
    """Print a table as it is, in a terminal or not."""
    Console(width=WIDTH, markup=False, emoji=False, highlight=False).print(table)


def listing(runs: Iterable[Run], folder: Path) -> Table:
    """Return a row a run; names are those below `folder`."""
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "status", "model", "data"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("status", "model"))
    for heading in ("steps", "top-1", "images/s", "ago"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        facts, name = row(run), run.path.relative_to(folder)
        table.add_row(
            str(name if name.parts else run.path),
            facts["status"],
            _text(facts["model"]),
            Path(facts["data"] or NOTHING).name,
            str(facts["steps"]),
            _figure(facts["top1"], 4),
            _figure(facts["images_per_second"], 1),
            in_words(max(0.0, time.time() - run.seen_at)),
            style="bold" if run.is_held else "",
        )
    return table


def description(state: Mapping[str, Any]) -> Table:
    """Return the `state` of a run, a line a subject."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _lines(state).items():
        if text:
            table.add_row(name, text)
    return table


def _lines(state: Mapping[str, Any]) -> dict[str, str]:
    left, checkpoint, code = state["seconds_left"], state["checkpoint"], state["exit_code"]
    who = f", process {state['process']} on {state['host']}" if state["process"] else ""
    total = f" of {state['total_steps']}" if state["total_steps"] else ""
    epoch = "" if state["epoch"] is None else f", epoch {state['epoch']:.2f}"
    pace = f"{_figure(state['images_per_second'], 1)} images/s"
    return {
        "run": state["run"],
        "status": f"{state['status']}{who}" + ("" if code is None else f", exit code {code}"),
        "error": state["error"] or "",
        "step": f"{state['steps']}{total}{epoch}",
        "pace": pace + ("" if left is None else f", {in_words(left)} left"),
        "training": f"loss {_figure(state['loss'], 4)}  accuracy {_figure(state['accuracy'], 3)}  "
        f"lr {_figure(state['learning_rate'], 4, 'g')}",
        "held out": _score(state["evaluation"]),
        "best": _score(state["best"]),
        "checkpoint": f"step {checkpoint['step']}, {in_words(checkpoint['age_seconds'])} ago"
        if checkpoint
        else NOTHING,
        "attempts": _text(state["attempts"]),
        "phases": "  ".join(f"{name} {share:.0%}" for name, share in state["phases"].items()),
    }


def _score(scores: Mapping[str, Any] | None) -> str:
    if not scores:
        return NOTHING
    step = f" at step {scores['step']}" if "step" in scores else ""
    names = {"top-1": "top1", "top-5": "top5", "loss": "loss"}
    told = "  ".join(f"{name} {_figure(scores.get(key), 4)}" for name, key in names.items())
    return f"{told}{step}"


def pairs(found: Mapping[str, tuple[Any, ...]], what: str, a: str, b: str) -> Table:
    """Return two values by name, side by side."""
    table = Table(box=None, pad_edge=False)
    table.add_column(what, no_wrap=True)
    for name in (a, b):
        table.add_column(name, overflow="fold")
    for key, values in found.items():
        table.add_row(key, *(_text(value) for value in values))
    return table


def results(found: Pairs, a: str, b: str) -> Table:
    """Return the results of two runs side by side, figures as they are told elsewhere."""
    digits = {"top1": 4, "top5": 4, "loss": 4, "images_per_second": 1, "goodput_ratio": 3}
    shown: dict[str, tuple[Any, ...]] = {
        name: tuple(_figure(value, digits[name]) for value in values)
        for name, values in found.items()
        if name in digits
    }
    left, right = found["weights_sha256"]
    same = {None: "", True: " (the same)", False: ""}[left == right if left else None]
    shown["steps"] = found["steps"]
    shown["wall time"] = tuple(in_words(s) if s else NOTHING for s in found["wall_seconds"])
    shown["weights"] = (_text(left)[:HASH], _text(right)[:HASH] + same)
    return pairs(shown, "result", a, b)


def costs(presets: Iterable[Preset]) -> Table:
    """Return what training by each preset takes."""
    table = Table(box=None, pad_edge=False)
    for name in ("preset", "model"):
        table.add_column(name, no_wrap=True)
    for name in ("input", "batch", "epochs", "params", "FLOP/step", "images", "FLOP/run"):
        table.add_column(name, justify="right", no_wrap=True)
    for p in presets:
        counts = (p.parameters, p.flops_per_step, p.images, p.flops)
        numbers = (p.image_size, p.global_batch, p.epochs)
        table.add_row(p.name, p.model, *map(str, numbers), *map(_short, counts))
    return table


def about(presets: Iterable[Preset]) -> Table:
    """Return what each preset says of itself."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    for preset in presets:
        table.add_row(preset.name, preset.about)
    return table


def _short(count: int | None) -> str:
    """A large number in three digits, as in 62.4 M."""
    if count is None:
        return NOTHING
    rounded = float(f"{count:.3g}")
    units = {"": 1.0, **PREFIXES, "P": 1e15, "E": 1e18}
    unit = max((name for name in units if rounded >= units[name]), key=units.__getitem__)
    return f"{rounded / units[unit]:#.3g}".rstrip(".") + f" {unit}".rstrip()


def _text(value: Any) -> str:
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else json.dumps(value)


def _figure(value: Any, digits: int, kind: str = "f") -> str:
    return f"{value:.{digits}{kind}}" if isinstance(value, int | float) else NOTHING
