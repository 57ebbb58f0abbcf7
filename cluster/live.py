"""A run as a terminal shows it: how far it is, how it goes, and where the time goes."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.spinner import Spinner
from rich.text import Text

REFRESH = 4  # times a second
BAR = 20  # characters
COLOURS = {
    "compute": "green",
    "exchange": "blue",
    "data": "yellow",
    "checkpoint": "magenta",
    "eval": "cyan",
}


class LiveView:
    """Stands below the lines that are printed, and is drawn anew as long as it is on."""

    def __init__(self, console: Console) -> None:
        """Show a run on `console`, which is a terminal."""
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(BAR),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("time left"),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("", total=None)
        self._waiting = Spinner("dots", "starting")
        self._phases: Mapping[str, float] = {}
        self._last: dict[str, dict[str, Any]] = {}  # records, by kind
        self._saved_at = 0.0
        self._slowest: tuple[int, float] | None = None
        self._steps = False  # of this attempt, one at least
        self._live = Live(
            self, console=console, refresh_per_second=REFRESH, transient=True, redirect_stderr=False
        )

    def on(self) -> None:
        """Put it on the terminal."""
        self._live.start(refresh=True)

    def off(self) -> None:
        """Take it off the terminal."""
        self._live.stop()

    def plan(self, total_steps: int) -> None:
        """The run has so many steps."""
        self._progress.update(self._task, total=total_steps)

    def start(self, what: str) -> None:
        """Show that there are no steps yet, at first or after a fault, but `what`."""
        self._steps = False
        self._waiting.update(text=what)

    def at(self, step: int, phases: Mapping[str, float], slowest: tuple[int, float] | None) -> None:
        """The ranks are at `step` and have spent that much time; `slowest`: see `Stragglers`."""
        self._steps = self._steps or any(phases.values())
        self._progress.update(self._task, completed=step)
        self._phases, self._slowest = phases, slowest

    def record(self, record: dict[str, Any]) -> None:
        """A rank has left a record."""
        self._last[record["kind"]] = record
        if record["kind"] == "checkpoint":
            self._saved_at = time.monotonic()

    def __rich__(self) -> RenderableType:
        if not self._steps:
            return self._waiting
        lines = [self._figures(), self._phase_bar(), self._notes()]
        return Group(self._progress, *(line for line in lines if line))

    def _figures(self) -> Text:
        step = self._last.get("step")
        if step is None:
            return Text()
        parts = [
            f"epoch {step['epoch']:.2f}",
            "loss -" if step["loss"] is None else f"loss {step['loss']:.4f}",
            "accuracy -" if step["accuracy"] is None else f"accuracy {step['accuracy']:.3f}",
            f"lr {step['learning_rate']:.4g}",
            f"{step['images_per_second']:.1f} images/s",
        ]
        return _line(parts)

    def _phase_bar(self) -> Text:
        whole = sum(self._phases.values())
        if not whole:
            return Text()
        bar, words = Text(no_wrap=True, overflow="ellipsis"), []
        for name, colour in COLOURS.items():
            part = self._phases.get(name, 0.0) / whole
            bar.append("\u2588" * round(BAR * part), style=colour)
            if part >= 0.005:
                words.append((f"  {name} {part:.0%}", colour))
        for word, colour in words:
            bar.append(word, style=colour)
        return bar

    def _notes(self) -> Text:
        parts = []
        if scores := self._last.get("evaluation"):
            parts.append(f"held out: top-1 {scores['top1']:.4f}")
        if saved := self._last.get("checkpoint"):
            parts.append(
                f"checkpoint: step {saved['step']}, {time.monotonic() - self._saved_at:.0f} s ago"
            )
        if self._slowest:
            rank, times = self._slowest
            parts.append(f"slowest: rank {rank}, {times:.1f} x")
        return _line(parts)


def _line(parts: list[str]) -> Text:
    return Text("  ".join(parts), no_wrap=True, overflow="ellipsis")
