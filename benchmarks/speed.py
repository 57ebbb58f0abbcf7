"""`make bench`: how fast a step is, as ratios of interleaved runs.

A row runs its peers one after the other, each in fresh processes with a core a rank, and takes
the ratio of what they measured; the next round goes through them backwards. Medians over rounds
count, and their spread is shown. Our ranks have all their hooks and default settings, only the
images lie ready; what Ray and the driver take besides is in a row of its own. A peer that has
variants runs in the one that a first trial found the quickest.

    make bench                                    # all rows, six rounds: hours
    make bench ARGS="ddp-8 mwms-8 --rounds 8"     # these
    make bench ARGS="--quick"                     # does everything work? nothing is written
    make bench ARGS="--list"

Results are in `results/speed.json` and, as a table, in `docs/performance.md`; rows that were not
run keep what an earlier run has left there, with its date and commit.
"""

import argparse
import json
import shlex
import signal
import sys
import time
import traceback
from collections import defaultdict
from typing import Any

from benchmarks import resultfile
from benchmarks.faults.matrix import Skipped
from benchmarks.steps.contest import Bench, Row, Samples
from benchmarks.steps.rows import rows

SUITE = "speed"
DOCUMENT = resultfile.ROOT / "docs" / "performance.md"
Tree = dict[str, Any]


def main() -> int:
    """Run the chosen rows; return 1 if one of them could not be measured."""
    table = rows()
    chosen, rounds, quick = _arguments(table)
    resultfile.commit()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nobody is left behind
    failed = False
    for row in chosen:
        print(f"{row.name}: {row.about}", flush=True)
        try:
            _run(table, row, rounds, quick)
        except Skipped as why:
            print(f"  skipped: {why}", flush=True)
        except Exception:  # the rows behind it are not to pay for it
            print(f"  FAILED: {traceback.format_exc()}", flush=True)
            failed = True
    return failed


def _run(table: list[Row], row: Row, rounds: int, quick: bool) -> None:
    bench = Bench(quick=quick)
    samples: Samples = defaultdict(list)
    runs = []
    for number in range(rounds):
        found = row.measure(bench, number)
        runs.append(bench.runs)
        bench.runs = []
        for name, values in found.items():
            samples[name] += values
        print(f"  round {number + 1}: {_shown(found)}", flush=True)
        if not quick:
            seen = {"variants": bench.chosen, "runs": runs}
            _write(table, row, samples, seen, is_whole=number + 1 == rounds)
    print(
        "  only a trial:" if quick else "",
        resultfile.table(entries(row, samples)),
        flush=True,
        sep="\n",
    )


def _arguments(table: list[Row]) -> tuple[list[Row], int, bool]:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="all, where none is named")
    parser.add_argument("--rounds", type=int, default=6, help="an even number")
    parser.add_argument("--quick", action="store_true", help="one round of next to nothing")
    parser.add_argument("--list", action="store_true", help="name the rows and do nothing")
    given = parser.parse_args()
    by_name = {row.name: row for row in table}
    if unknown := sorted({*given.rows} - {*by_name}):
        parser.error(f"no row {unknown[0]}; there are {', '.join(by_name)}")
    if given.list:
        for row in table:
            print(f"{row.name:12}{row.about}")
        sys.exit(0)
    if given.rounds % 2:
        parser.error("every other round goes backwards: --rounds is an even number")
    chosen = [by_name[name] for name in given.rows] or table
    return chosen, 1 if given.quick else given.rounds, given.quick


def _shown(found: Samples) -> str:
    return ", ".join(f"{name}: {value:.3f}" for name, (value, *_) in found.items())


def entries(row: Row, samples: Samples) -> list[Tree]:
    """Return a line of results for each figure that was measured: its median, and its bound."""
    return [
        resultfile.row(figure.name, "ratio", samples[figure.name], figure.goal, figure.direction)
        for figure in row.figures
        if samples.get(figure.name)
    ]


def merged(table: list[Row], row: Row, new: list[Tree], before: list[Tree]) -> list[Tree]:
    """Return the results with those of one row taken anew, all in the order of the table."""
    order = [other.name for other in table]
    kept = [line for line in before if line["row"] in order and line["row"] != row.name]
    return sorted([*kept, *new], key=lambda line: order.index(line["row"]))


def _write(table: list[Row], row: Row, samples: Samples, facts: Tree, is_whole: bool) -> None:
    """Leave what was measured; some rounds of a row take the place of nothing."""
    path = resultfile.FOLDER / f"{SUITE}.json"
    before: Tree = json.loads(path.read_text()) if path.exists() else {}
    if not is_whole and row.name in before.get("whole", []):
        return
    whole = {*before.get("whole", []), *([row.name] if is_whole else [])}
    seen = {
        "row": row.name,
        "about": row.about,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": resultfile.commit(),
        "command": f'make bench ARGS="{shlex.join(sys.argv[1:])}"',
        "machine": resultfile.machine(),
        "variants": facts["variants"],
    }
    new = [{**line, **seen} for line in entries(row, samples)]
    lines = merged(table, row, new, before.get("rows", []))
    runs = {**before.get("runs", {}), row.name: facts["runs"]}
    resultfile.write(SUITE, lines, whole=sorted(whole), runs=runs)
    resultfile.into_document(DOCUMENT, "bench", in_markdown(lines))


def in_markdown(lines: list[Tree]) -> str:
    """Return a table of the results, and under it how each row was had."""
    text = "| what | median | least .. most | rounds | bound |\n|---|---|---|---|---|\n"
    runs: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for line in lines:
        samples = line["samples"]
        bound = resultfile.bound(line) + ("" if line["ok"] else " **missed**")
        spread = f"{min(samples):.3f} .. {max(samples):.3f}"
        text += f"| {line['name']} | {line['value']:.3f} | {spread} | {len(samples)} | {bound} |\n"
        seen = (line["command"], line["date"][:10], line["commit"][:10], line["machine"])
        found = f" (quickest: {', '.join(line['variants'])})" if line["variants"] else ""
        if line["row"] + found not in runs[seen]:
            runs[seen].append(line["row"] + found)
    for (command, date, commit, machine), names in runs.items():
        text += f"\n{', '.join(names)}: `{command}`, {date}, commit {commit}, on {machine}.\n"
    return text


if __name__ == "__main__":
    sys.exit(main())
