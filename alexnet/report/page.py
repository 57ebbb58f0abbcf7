"""A run on one page: what its directory holds, as HTML that needs nothing else.

Whatever is read may be missing, and is text of others: the template escapes all of it, and tells
the browser to load nothing and to run no program.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from alexnet.errors import ConfigError
from alexnet.records import (
    CONFIG,
    EVALUATION,
    EVENTS,
    METRICS,
    REPORT,
    SUMMARY,
    read_records,
    write_whole,
)
from alexnet.report import bounds
from alexnet.report.charts import Chart, Curve, chart
from alexnet.report.confusion import Confusion
from alexnet.report.timeline import timeline

LONGEST = 400  # letters of a reason that are shown
APART = "\N{NO-BREAK SPACE}"
MANY = 64_000  # letters of the settings


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run directory to `out` (None: into it) and return where it is.

    Raises:
        ConfigError: no run directory.
    """
    path = out or run / REPORT
    write_whole(path, render(run))
    return path


def render(run: Path) -> str:
    """Return the page of a run directory.

    Raises:
        ConfigError: no run directory.
    """
    if not any((run / name).exists() for name in (CONFIG, SUMMARY, METRICS, EVENTS)):
        raise ConfigError(f"{run}: not a run directory")
    templates = Environment(
        loader=PackageLoader("alexnet.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "percent": percent,
        "css": lambda share: f"{100 * share:.3f}%",
        "duration": duration,
        "figure": figure,
        "moment": moment,
        "short": partial(_short, most=LONGEST),
    }
    return templates.get_template("page.html").render(contents(run))


def contents(run: Path) -> dict[str, Any]:
    """Return all that the template shows, by name."""
    summary, found = _json(run / SUMMARY, "status"), _json(run / EVALUATION, "confusion")
    metrics, events = _records(run / METRICS), _records(run / EVENTS)
    launches = [event["environment"] for event in events if event["kind"] == "launch"]
    evaluations = [record for record in metrics if record["kind"] == "evaluation"]
    latest = evaluations[-1] if evaluations else found.get("scores")
    return {
        "name": run.absolute().name,
        "written": datetime.now(UTC).isoformat(),
        "summary": summary,
        "scores": summary.get("eval") or latest,
        "epoch": max((record.get("epoch", 0) for record in metrics), default=None),
        "step": max((record["step"] for record in metrics), default=0),
        "spikes": sum(record["kind"] == "loss_spike" for record in metrics),
        "charts": charts(metrics),
        "spent": spent(summary),
        "evaluation": found,
        "confusion": Confusion.of(found["classes"], found["confusion"]) if found else None,
        "timeline": timeline(events, metrics),
        "environment": environment(launches[-1]) if launches else {},
        "config": _text(run / CONFIG),
    }


def charts(metrics: Sequence[dict[str, Any]]) -> list[Chart]:
    """Return the curves for which there are values."""

    def curve(name: str, key: str, kind: str = "step") -> Curve:
        found = [record for record in metrics if record["kind"] == kind]
        points = [(r["epoch"], r[key]) for r in found if r.get(key) is not None]
        return Curve(name=name, points=points)

    loss = [curve("training", "loss"), curve("held out", "loss", "evaluation")]
    accuracy = [curve("training", "accuracy"), curve("held out", "top1", "evaluation")]
    found = [
        chart("Loss", loss),
        chart("Accuracy", accuracy, top=1.0),
        chart("Images per second", [curve("all workers", "images_per_second")]),
        chart("Learning rate", [curve("rate", "learning_rate")]),
    ]
    return [each for each in found if each]


def spent(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return where the steps' time, and the launch's, went."""
    figures = {
        "Of the steps": bounds.of_steps(summary.get("phase_seconds") or {}),
        "Of the launch": summary.get("wall_seconds") or {},
    }
    found = {title: bounds.parts(seconds) for title, seconds in figures.items()}
    return [
        {"title": title, "parts": parts, "sentence": bounds.sentence(parts)}
        for title, parts in found.items()
        if parts
    ]


def environment(facts: dict[str, Any]) -> dict[str, str]:
    """Return what a launch has noted of its environment, in words."""
    shown = {name.replace("_", " "): value for name, value in facts.items() if value}
    if "memory bytes" in shown:
        shown["memory"] = f"{shown.pop('memory bytes') / 2**30:.1f} GiB"
    return {
        name: ", ".join(value) if isinstance(value, list) else str(value)
        for name, value in shown.items()
    }


def percent(share: float, digits: int = 0) -> str:
    """Return a share as percents."""
    return f"{100 * share:.{digits}f}{APART}%"


def duration(seconds: float) -> str:
    """Return seconds in the two units that matter."""
    if seconds < 60:
        return f"{seconds:.1f}{APART}s" if seconds < 10 else f"{seconds:.0f}{APART}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{APART}min {rest}{APART}s"
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}{APART}h {minutes}{APART}min"
        if hours < 48
        else f"{hours // 24}{APART}d {hours % 24}{APART}h"
    )


def figure(value: float | None, digits: int = 0) -> str:
    """Return a number with its thousands apart."""
    return "–" if value is None else f"{value:,.{digits}f}".replace(",", APART)


def moment(text: str) -> str:
    """Return a time of ISO 8601 for people."""
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _short(text: Any, most: int) -> str:
    line = str(text)
    return line if len(line) <= most else f"{line[:most]} ..."


def _json(path: Path, key: str) -> dict[str, Any]:
    """Return what a file says that has a `key`; nothing, if it is not there or damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and key in found else {}


def _records(path: Path) -> list[dict[str, Any]]:
    return [record for record in read_records(path) if {"kind", "time"} <= record.keys()]


def _text(path: Path) -> str | None:
    try:
        return _short(path.read_text(errors="replace"), MANY)
    except OSError:
        return None
