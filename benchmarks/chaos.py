"""`make chaos`: every fault, done to real processes, ends in the same model or in a clear stop.

Each row launches a tiny training on a Ray of its own (two ranks, 12 steps, a checkpoint every four,
exact sums), injects one fault from outside, and compares the final weights with those of an
unbroken run of the same seed. A row has a bound on its time, and whoever is left of its processes
when it is over is killed and fails it. `--rounds 3` goes through the rows three times.

    make chaos                                    # all rows
    make chaos ARGS="kill-rank flip-checkpoint"   # these
    make chaos ARGS="--list"

Results are in `results/chaos.json`; rows that were not run keep what an earlier run has left there,
with its date and commit. What the rows leave on the disk is in `runs/chaos/`.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from typing import Any

from benchmarks import resultfile
from benchmarks.faults import attempts, launches, nodes, storage
from benchmarks.faults.matrix import FAULTS, UNITS, Outcome, measured, run_row
from benchmarks.faults.runs import Reference, prepared_digits, unbroken

MODULES = (attempts, launches, nodes, storage)  # importing them registers their rows
SUITE = "chaos"
Tree = dict[str, Any]


def main() -> int:
    """Run the chosen rows; return 1 if one has failed."""
    chosen, rounds = _arguments()
    data = prepared_digits()
    reference = unbroken(data)
    print(f"an unbroken run: {reference.cold_start} s to its first step, goodput ", end="")
    print(f"{reference.goodput}\n{_line('fault', list(UNITS), 'result')}", flush=True)
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    for _ in range(rounds):
        for name in chosen:
            outcome = run_row(FAULTS[name], data, reference)
            outcomes[name].append(outcome)
            print(_shown(outcome), flush=True)
            _write(outcomes, reference)
    return any(outcome.status == "failed" for row in outcomes.values() for outcome in row)


def _arguments() -> tuple[list[str], int]:
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="all, where none is named")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="name the rows and do nothing")
    given = parser.parse_args()
    if unknown := sorted({*given.rows} - {*FAULTS}):
        parser.error(f"no row {unknown[0]}; there are {', '.join(FAULTS)}")
    if given.list:
        for name, row in FAULTS.items():
            print(f"{name:20}{row.inject.__doc__}")
        sys.exit(0)
    return given.rows or list(FAULTS), given.rounds


def _shown(outcome: Outcome) -> str:
    values = measured(outcome.figures)
    cells = [f"{values[name]:g}" if name in values else "-" for name in UNITS]
    verdict = "" if outcome.status == "passed" else f"{outcome.status.upper()}: "
    return _line(outcome.name, cells, verdict + outcome.reason)


def _line(name: str, cells: list[str], result: str) -> str:
    return f"{name:20}" + "".join(f"{cell:>10}" for cell in cells) + f"  {result}"


def _write(outcomes: dict[str, list[Outcome]], reference: Reference) -> None:
    """Leave the results of these rows beside those that are there of others."""
    before = _before()
    rows, faults = _entries(outcomes)
    kept_rows = [row for row in before.get("rows", []) if row["fault"] not in outcomes]
    kept_faults = [row for row in before.get("faults", []) if row["name"] not in outcomes]
    order = list(FAULTS)
    resultfile.write(
        SUITE,
        sorted([*kept_rows, *rows], key=lambda row: order.index(row["fault"])),
        cold_start_seconds=reference.cold_start,
        unbroken_goodput=reference.goodput,
        faults=sorted([*kept_faults, *faults], key=lambda row: order.index(row["name"])),
    )


def _before() -> Tree:
    path = resultfile.FOLDER / f"{SUITE}.json"
    tree: Tree = json.loads(path.read_text()) if path.exists() else {}
    for kind, key in (("rows", "fault"), ("faults", "name")):
        tree[kind] = [row for row in tree.get(kind, []) if row[key] in FAULTS]
    return tree


def _entries(outcomes: dict[str, list[Outcome]]) -> tuple[list[Tree], list[Tree]]:
    """Return a row for every figure, and for every fault whether it passed and what was said."""
    seen = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": resultfile.commit(),
    }
    rows, faults = [], []
    for name, tried in outcomes.items():
        statuses = [outcome.status for outcome in tried]
        said = [{"status": outcome.status, "reason": outcome.reason} for outcome in tried]
        faults.append({"name": name, "rounds": said, **seen})
        if "skipped" not in statuses:
            passed = [float(status == "passed") for status in statuses]
            row = resultfile.row(f"{name}: passed", "rounds", passed, goal=1.0)
            rows.append({**row, "ok": all(passed), "fault": name, **seen})
        for figure, unit in UNITS.items():
            values = [measured(outcome.figures).get(figure) for outcome in tried]
            if samples := [value for value in values if value is not None]:
                goal = tried[-1].goals.get(figure)
                row = resultfile.row(f"{name}: {figure}", unit, samples, goal, "max")
                within = goal is None or max(samples) <= goal
                rows.append({**row, "ok": within, "fault": name, **seen})
    return rows, faults


if __name__ == "__main__":
    sys.exit(main())
