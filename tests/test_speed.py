"""What `make bench` and `make accuracy` make of what they measured: ratios, verdicts, tables."""

from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benchmarks import accuracy, resultfile, speed
from benchmarks.speed import entries, in_markdown, merged
from benchmarks.steps import common
from benchmarks.steps.contest import Figure, Ratio, Row, in_turns, ratios
from benchmarks.steps.peers import Measured
from benchmarks.steps.rows import rows


def measured(*ranks: list[float], batch: int = 8, **more: float) -> Measured:
    return Measured(batch=batch, ranks=[{"seconds": seconds, **more} for seconds in ranks])


def test_a_pace_is_that_of_all_ranks() -> None:
    found = measured([1.0, 1.0, 4.0], [2.0, 2.0, 2.0])
    assert found.images_per_second == 8 / 1 + 8 / 2  # medians: what is rare does not count
    assert found.step == 1.5


def test_a_ratio_is_of_one_round() -> None:
    found = {
        "ours": measured([0.5], [0.5], blocked=0.3, sent=10.0),
        "theirs": measured([1.0], [1.0], blocked=2.0, sent=100.0),
    }
    wanted = [
        Ratio(name="pace", above="ours", below="theirs"),
        Ratio(name="step", above="ours", below="theirs", of="step"),
        Ratio(name="wait", above="ours", below="theirs", of="blocked"),
        Ratio(name="wire", above="ours", below="theirs", of="sent"),
    ]
    expected = {"pace": [2.0], "step": [0.5], "wait": [0.15], "wire": [0.1]}
    assert ratios(found, wanted) == expected


def test_every_other_round_goes_backwards() -> None:
    assert [in_turns("abc", number) for number in range(3)] == [
        ["a", "b", "c"],
        ["c", "b", "a"],
        ["a", "b", "c"],
    ]


def test_the_clock_starts_when_all_ranks_have_warmed_up(tmp_path: Path) -> None:
    arguments = [
        "--batch=8",
        "--steps=2",
        "--rank=0",
        "--ranks=1",
        "--ports=1",
        f"--folder={tmp_path}",
    ]
    stopwatch = common.Stopwatch(common.parser().parse_args(arguments))
    for _ in range(stopwatch.total_steps):
        assert not stopwatch.seconds or (tmp_path / "ready-0").exists()
        stopwatch()
    assert len(stopwatch.seconds) == 2


def test_drift_cancels_out_over_an_even_number_of_rounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["make bench", "--rounds", "5", "ddp-8"])
    with pytest.raises(SystemExit, match="2"):
        speed.main()
    assert "--rounds is an even number" in capsys.readouterr().err


def row(name: str, *figures: Figure) -> Row:
    return Row(name=name, about="", figures=figures, measure=lambda bench, number: {})


@pytest.mark.parametrize(
    ("goal", "direction", "ok"),
    [
        (1.0, "min", True),
        (1.2, "min", False),
        (1.0, "max", False),
        (0.15, "within", True),
        (0.05, "within", False),
        (None, "min", True),
    ],
)
def test_the_median_must_keep_the_bound(goal: float | None, direction: str, ok: bool) -> None:
    figure = Figure(name="f", goal=goal, direction=direction)
    samples = [0.9, 1.1, 1.3]
    (line,) = entries(row("r", figure), {"f": samples})
    assert (line["value"], line["ok"], line["unit"]) == (median(samples), ok, "ratio")


def test_rows_that_were_not_run_keep_their_results() -> None:
    table = [row("a"), row("b"), row("c")]
    before = [{"row": name, "value": 1} for name in ("b", "c", "gone")]
    found = merged(table, table[1], [{"row": "b", "value": 2}], before)
    assert found == [{"row": "b", "value": 2}, {"row": "c", "value": 1}]
    found = merged(table, table[0], [{"row": "a", "value": 3}], found)
    assert [line["row"] for line in found] == ["a", "b", "c"]


def line(name: str, **changed: Any) -> dict[str, Any]:
    common = {"row": "r", "name": name, "value": 1.0, "samples": [0.9, 1.0, 1.2]}
    bound = {"goal": 0.95, "direction": "min", "ok": True}
    seen = {"command": "make bench", "date": "2026-01-02T03", "commit": "c" * 40, "machine": "m"}
    return {**common, **bound, **seen, "variants": [], **changed}


def test_results_take_the_place_of_those_before_in_the_document(tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    filled = "before\n<!-- make x: begin -->\n{}<!-- make x: end -->\nafter\n"
    document.write_text(filled.format("old\n"))
    for text in ("one\n", "two\n"):
        resultfile.into_document(document, "x", text)
    assert document.read_text() == filled.format("two\n")
    with pytest.raises(ValueError, match="no place for what make y writes"):
        resultfile.into_document(document, "y", "")
    assert "two" in document.read_text()


def test_a_line_of_results_is_a_row_of_a_table() -> None:
    text = in_markdown([line("one"), line("two"), line("three", row="s", variants=["p --fast"])])
    assert "| two | 1.000 | 0.900 .. 1.200 | 3 | >= 0.95 |" in text
    names = "r, s (quickest: p --fast)"
    assert f"\n{names}: `make bench`, 2026-01-02, commit cccccccccc, on m.\n" in text


def test_a_missed_bound_is_told() -> None:
    assert "| <= 0.1 **missed** |" in in_markdown([line("x", goal=0.1, direction="max", ok=False)])


def test_names_of_rows_and_figures_are_their_own() -> None:
    table = rows()
    names = [row.name for row in table]
    figures = [figure.name for row in table for figure in row.figures]
    assert len(names) == len({*names})
    assert len(figures) == len({*figures})


@pytest.mark.parametrize(
    ("document", "target"), [(speed.DOCUMENT, "bench"), (accuracy.DOCUMENT, "accuracy")]
)
def test_the_documents_have_their_place_for_results(
    document: Path, target: str, tmp_path: Path
) -> None:
    (tmp_path / "copy.md").write_text(document.read_text())
    resultfile.into_document(tmp_path / "copy.md", target, "")


def report(name: str, **changed: Any) -> dict[str, Any]:
    seen = {"images_seen": 6000, "images_per_second": 50.0, "top1_by_pass": [0.7, 0.8, 0.75]}
    ended = {"top1": 0.75, "ended_at": "2026-01-02T03:04:05+00:00", "machine": "m"}
    return {"name": name, **seen, **ended, **changed}


def test_a_training_is_a_row_of_a_table_and_a_missed_goal_is_told() -> None:
    reports = {"catdog-long-0": report("catdog-long-0"), "cifar10-0": report("cifar10-0")}
    missed = resultfile.row("a goal", "top-1", [0.75], 0.8)
    text = accuracy.in_markdown(reports, [missed])
    assert (
        "| `catdog seed=0 train.epochs=60` | 6,000 | 2.0 | 0.8000 | 0.7500 | 2026-01-02 |" in text
    )
    assert "| `cifar10 seed=0` |" in text and "catdog-seed" not in text
    assert "| a goal | 0.7500 | >= 0.8 **missed** |" in text
    assert text.endswith("\nOn m.\n")


def test_comments_of_a_preset_change_no_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "ROOT", tmp_path)
    (tmp_path / "configs").mkdir()
    preset = tmp_path / "configs" / "catdog.yaml"

    def recipe(text: str) -> dict[str, str]:
        preset.write_text(text)
        return accuracy.CATDOG_LONG.recipe

    assert recipe("seed: 1 # why\n") == recipe("seed: 1\n") != recipe("seed: 2\n")
