"""What `alexnet simulate` shows of predictions: a table, JSON, a plot."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from alexnet.errors import AlexnetError, ConfigError
from cluster.quantities import in_words
from cluster.scaling import EPOCHS, Prediction

WIDTH = 120  # columns that the table may take


def table(predictions: Sequence[Prediction]) -> Table:
    """Return a row for each number of workers: a step and its parts, and what that comes to."""
    shown = Table(box=None, pad_edge=False)
    who = ("workers", "FC layers", "MB sent")
    step = ("step ms", "compute", "exchange", "input", "checkpoint")
    run = ("images/s", "efficiency", "goodput", f"{EPOCHS} epochs")
    for name in who + step + run:
        shown.add_column(name, justify="right", no_wrap=True)
    for p in predictions:
        parts = (p.step, p.compute, p.exchange, p.input, p.checkpoint)
        shown.add_row(
            str(p.workers),
            p.dense_layers,
            f"{p.sent / 1e6:.1f}",
            *(f"{1e3 * part:.2f}" for part in parts),
            f"{p.images_per_second:,.0f}",
            f"{p.efficiency:.3f}",
            f"{p.goodput:.3f}",
            in_words(p.training_time),
        )
    return shown


def as_json(p: Prediction) -> dict[str, Any]:
    """Return all of a prediction's figures: bytes, seconds and shares."""
    figures = {
        "step": p.step,
        "images_per_second": p.images_per_second,
        "efficiency": p.efficiency,
        "goodput": p.goodput,
        "training_time": p.training_time if p.training_time < math.inf else None,
    }
    return asdict(p) | figures


def check_plot(file: Path) -> None:
    """Raise AlexnetError unless `plot` could write to `file`."""
    if file.suffix != ".svg":
        raise ConfigError(f"--plot {file}: expected a name that ends with .svg")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise AlexnetError(
            "--plot needs matplotlib, which is not installed: pip install matplotlib"
        ) from None


def plot(predictions: Sequence[Prediction], file: Path) -> None:
    """Draw images/s, efficiency, goodput and training time over workers, as an SVG file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    workers = [p.workers for p in predictions]
    first = predictions[0].images_per_second
    panels = {
        "images/s": [p.images_per_second for p in predictions],
        "efficiency": [p.efficiency for p in predictions],
        "goodput": [p.goodput for p in predictions],
        f"hours to {EPOCHS} epochs": [p.training_time / 3600 for p in predictions],
    }
    ideal = {
        "images/s": [first * n for n in workers],
        f"hours to {EPOCHS} epochs": [predictions[0].training_time / 3600 / n for n in workers],
    }
    with mpl.rc_context({"svg.hashsalt": "alexnet"}):  # the same file each time
        figure = Figure(figsize=(9, 6), layout="constrained")
        for axes, (name, values) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
            axes.set_xscale("log", base=2)
            if name in ideal:
                axes.plot(workers, ideal[name], "--", color="grey", label="ideal")
                axes.set_yscale("log")
                axes.legend()
            else:
                axes.set_ylim(0, 1.05)
            axes.plot(workers, values, "o-")
            axes.set(title=name, xlabel="workers")
            axes.grid(alpha=0.3)
        figure.savefig(file, metadata={"Date": None})
