"""The file of results that a benchmark leaves, and the table that it prints of it."""

import json
import os
import platform
import subprocess
import time
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "results"


def row(
    name: str,
    unit: str,
    samples: list[float],
    goal: float | None = None,
    direction: str = "min",
) -> dict[str, Any]:
    """Return a row whose value is the samples' median.

    `direction` says which bound the goal is: `min`, the least that will do, `max`, or `within`,
    how far from 1 it may be.
    """
    value = median(samples)
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "goal": goal,
        "direction": direction,
        "ok": goal is None or _keeps(value, goal, direction),
        "samples": samples,
    }


def _keeps(value: float, goal: float, direction: str) -> bool:
    kept = {"min": value >= goal, "max": value <= goal, "within": abs(value - 1) <= goal}
    return kept[direction]


def write(suite: str, rows: list[dict[str, Any]], **more: Any) -> Path:
    """Write `results/SUITE.json` and return its path."""
    tree = {
        "suite": suite,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "rows": rows,
        **more,
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{suite}.json"
    _put(path, json.dumps(tree, indent=1) + "\n")
    return path


def bound(row: dict[str, Any]) -> str:
    """Return the bound of a row, for people; nothing if it has none."""
    sign = {"min": ">=", "max": "<=", "within": "1 +-"}[row["direction"]]
    return "" if row["goal"] is None else f"{sign} {row['goal']:g}"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows for people: value, spread and goal."""
    lines = []
    for line in rows:
        spread = f"{min(line['samples']):.4g} .. {max(line['samples']):.4g}"
        verdict = "" if line["goal"] is None else ("ok" if line["ok"] else "MISSED")
        value = f"{line['value']:.4g}"
        lines.append(
            f"{line['name']:38}{value:>8} {line['unit']:15}{spread:22}{bound(line):10}{verdict}"
        )
    return "\n".join(lines)


def into_document(document: Path, target: str, text: str) -> None:
    """Write `text` between the marks that a document has for `make TARGET`."""
    begin, end = (f"<!-- make {target}: {edge} -->\n" for edge in ("begin", "end"))
    head, begin, rest = document.read_text().partition(begin)
    _, end, tail = rest.partition(end)
    if not end:
        raise ValueError(f"{document}: has no place for what make {target} writes")
    _put(document, head + begin + text + end + tail)


def _put(path: Path, text: str) -> None:
    """Write a file whole or not at all: it may hold the results of hours."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


@cache
def commit() -> str:
    """Return the commit that was checked out when this was asked first: what this process runs.

    With `-dirty` if files differ from it.
    """
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    written = [":!benchmarks/results", ":!docs", ":!README.md"]  # by benchmarks themselves
    changes = ["git", "diff", "--quiet", "HEAD", "--", ".", *written]
    is_dirty = subprocess.run(changes, cwd=ROOT, capture_output=True).returncode == 1
    return (head.stdout.strip() or "unknown") + "-dirty" * is_dirty


def machine() -> str:
    """Return processor, cores, memory and software, but no name."""
    cpus = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} x {(cpus or [platform.machine()])[0]}, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    )
