"""What `alexnet doctor` shows: a line a check, or JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cluster.doctor.finding import Finding

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}
Named = tuple[str, Finding]


def line(name: str, finding: Finding) -> RenderableType:
    """Return a check as it is shown, with its remedy below where there is one."""
    mark, colour = MARKS[finding.status]
    row = Table.grid(padding=(0, 1))
    for width in (9, 16):
        row.add_column(width=width)
    row.add_column(overflow="fold")
    row.add_row(Text(f"{mark} {finding.status}", colour), Text(name), Text(finding.found))
    if finding.remedy:
        row.add_row("", "", Text(f"-> {finding.remedy}", "bold"))
    return row


def total(found: Sequence[Named]) -> str:
    """Return how many checks came to what."""
    counts = Counter(finding.status for _, finding in found)
    problems = f"{counts['problem']} problem" + "s" * (counts["problem"] != 1)
    warnings = f"{counts['warning']} warning" + "s" * (counts["warning"] != 1)
    return f"{len(found)} checks: {counts['ok']} ok, {warnings}, {problems}"


def as_json(found: Sequence[Named]) -> dict[str, Any]:
    """Return all that was found."""
    return {"checks": [{"name": name, **asdict(finding)} for name, finding in found]}
