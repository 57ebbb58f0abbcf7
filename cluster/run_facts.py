"""What is said of a run: in a list, alone, and beside another one. Flat, for tables and JSON."""

import logging
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from alexnet.archive import open_archive
from alexnet.config import differences
from alexnet.errors import AlexnetError, ConfigError
from alexnet.records import CONFIG
from cluster.runs import Run, number

SCORES = ("top1", "top5", "loss", "images")

Facts = dict[str, Any]
Pairs = dict[str, tuple[Any, Any]]
log = logging.getLogger(__name__)


def row(run: Run) -> Facts:
    """Return what a list of runs says of this one."""
    return {
        "run": str(run.path),
        "status": run.status,
        "model": run.settings.get("model.name"),
        "data": run.settings.get("data.path"),
        "steps": run.steps,
        "top1": (run.evaluation or {}).get("top1"),
        "images_per_second": run.images_per_second,
        "seen_at": datetime.fromtimestamp(run.seen_at).astimezone().isoformat(timespec="seconds"),
    }


def state(run: Run) -> Facts:
    """Return all that can be said of a run now."""
    phases, lease = run.phase_seconds, run.lease or {}
    spent = sum(phases.values())
    numbers = ("total_steps", "epoch", "loss", "accuracy", "learning_rate")
    return {
        **row(run),
        "process": lease.get("pid") if run.is_held else None,
        "host": lease.get("host") if run.is_held else None,
        "attempts": lease.get("generation"),  # of all launches
        **{name: number(run.last.get(name)) for name in numbers},
        "seconds_left": run.seconds_left,
        "evaluation": _scores(run.evaluation),
        "best": _scores(run.best),
        "checkpoint": _checkpoint(run),
        "phases": {name: s / spent for name, s in phases.items()} if spent > 0 else {},
        "exit_code": run.summary.get("exit_code") if run.has_ended else None,
        "error": run.summary.get("error") if run.has_ended else None,
    }


def results(run: Run) -> Facts:
    """Return what a run is compared with others by."""
    seconds = run.summary.get("wall_seconds") or {}
    return {
        **{name: (run.evaluation or {}).get(name) for name in ("top1", "top5", "loss")},
        "images_per_second": run.images_per_second,
        "steps": run.steps,
        "wall_seconds": round(sum(seconds.values()), 3) if seconds else None,
        "goodput_ratio": run.summary.get("goodput_ratio"),
        "weights_sha256": run.summary.get("weights_sha256"),
    }


def compared(a: Run, b: Run) -> tuple[Pairs, Pairs]:
    """Return the settings of two runs that are not the same, and their results.

    Raises:
        ConfigError: one has no settings that can be read.
    """
    for run in (a, b):
        if not run.settings:
            raise ConfigError(f"{run.path}: nothing to compare, it has no readable {CONFIG}")
    settings = differences(a.settings, b.settings)
    settings.pop("run_dir", None)
    left, right = results(a), results(b)
    return settings, {name: (left[name], right[name]) for name in left}


def _checkpoint(run: Run) -> Facts | None:
    """Which is the newest; one in a store may be out of reach from here."""
    store = run.settings.get("checkpoint.path")
    try:
        written = open_archive(run.path, store).latest()
    except (OSError, AlexnetError) as error:
        log.warning("%s: no answer: %s", store or run.path, error)
        return None
    if written is None:
        return None
    return {"step": written.step, "age_seconds": max(0.0, round(time.time() - written.at, 3))}


def _scores(record: Mapping[str, Any] | None) -> Facts | None:
    """An evaluation's figures, and its step if that is told."""
    if record is None:
        return None
    return {name: record[name] for name in ("step", *SCORES) if name in record}
