"""The page of a run: whatever is there is on it, whatever is not is told, and it needs nothing."""

import base64
import json
import math
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from alexnet.data.images import encode_jpeg
from alexnet.errors import ConfigError
from alexnet.report import bounds
from alexnet.report.charts import MOST, Curve, chart, thin, ticks
from alexnet.report.confusion import Confusion
from alexnet.report.page import render, write_report
from alexnet.report.timeline import attempts, timeline
from cluster.cli import cli
from tests.browser import Browser, browser, missing

SCORES = {"top1": 0.875, "top5": 0.991, "loss": 0.412, "images": 64}
NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "</style><h1>out</h1>",
    "\u202eright to left\u202c",
    "a" * 300,
    "\U0001f408 \u0645\u0631\u062d\u0628\u0627 \u200b",
    "' onmouseover='alert(1)",
]
FILES = ("config.yaml", "summary.json", "metrics.jsonl", "events.jsonl", "evaluation.json")


def jpeg(seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (112, 112, 3), np.uint8)
    return base64.b64encode(encode_jpeg(pixels, 80)).decode()


def made_up(run: Path, steps: int = 200, every: int = 10, classes: tuple[str, ...] = ()) -> Path:
    """A run of 100 epochs with everything that one leaves behind, two attempts."""
    names = list(classes or ("cat", "dog", "horse"))
    run.mkdir()
    write_json(run / "summary.json", summary())
    write_lines(run / "metrics.jsonl", metrics(steps, every))
    write_lines(run / "events.jsonl", EVENTS)
    write_json(run / "evaluation.json", evaluation(names))
    (run / "config.yaml").write_text("run_dir: /runs/pets\nseed: 7\n")
    return run


def write_json(path: Path, what: Any) -> None:
    path.write_text(json.dumps(what))


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "status": "completed",
        "exit_code": 0,
        "world_size": 2,
        "attempts": 2,
        "steps": 200,
        "skipped_steps": 0,
        "eval": SCORES,
        "images_per_second": 1234.5,
        "phase_seconds": {"data": 41, "compute": 50, "exchange": 9, "checkpoint": 1, "eval": 2},
        "wall_seconds": {"productive": 50.0, "data": 41.0, "exchange": 9.0, "start_up": 10.0},
        "goodput_ratio": 0.4545,
        "weights_sha256": "6012b3",
        "started_at": "2026-11-26T01:19:39+00:00",
        "ended_at": "2026-11-26T01:20:18+00:00",
        **changes,
    }


def metrics(steps: int, every: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    records: list[dict[str, Any]] = []
    for step in range(every, steps + 1, every):
        epoch, noise = 100 * step / steps, float(rng.random())
        loss = math.exp(-epoch / 30) + 0.1 * noise
        record = {"step": step, "epoch": round(epoch, 3), "time": 1000.0 + step}
        figures = {"accuracy": 1 - loss / 2, "learning_rate": 0.1, "images_per_second": 900 + noise}
        records.append({"kind": "step", **record, "loss": loss, **figures})
        if math.floor(epoch) > math.floor(epoch - 100 * every / steps):
            records.append({"kind": "evaluation", **record, **SCORES})
    return records


def evaluation(classes: list[str]) -> dict[str, Any]:
    last = len(classes) - 1
    counts = [[label, label, 20] for label in range(len(classes))] + [[0, last, 4]]
    right = {"class": 1, "answer": 1, "probability": 0.97, "jpeg": jpeg(1)}
    wrong = {"class": 0, "answer": last, "probability": 0.93, "jpeg": jpeg(2)}
    return {
        "step": 200,
        "classes": classes,
        "scores": SCORES,
        "confusion": counts,
        "samples": [right] * 12,
        "mistakes": [wrong] * 12,
    }


EVENTS: list[dict[str, Any]] = [
    {"kind": "launch", "step": 0, "time": 990, "environment": {"python": "3.11", "ray": "2.60"}},
    {"kind": "attempt", "step": 0, "time": 1000, "workers": 3},
    {"kind": "training", "step": 0, "time": 1010},
    {"kind": "lost", "step": 120, "time": 1130, "reason": "rank 1: its process died"},
    {"kind": "attempt", "step": 120, "time": 1131, "workers": 2},
    {"kind": "training", "step": 100, "time": 1141},
    {"kind": "completed", "step": 200, "time": 1241, "goodput_ratio": 0.5},
]


class Page(HTMLParser):
    """The tags and the words of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.words += data + " "


def words(run: Path) -> str:
    return " ".join(Page(render(run)).words.split())


def test_everything_that_a_run_leaves_is_on_its_page(tmp_path: Path) -> None:
    shown = words(made_up(tmp_path / "pets"))
    for expected in (
        "pets completed 2026-11-26 01:19 UTC",
        "top-1, held out 87.5 %",
        "goodput 45 %",
        "41 % waiting for data : add readers",
        "37 % waiting for data : add readers",  # of the launch
        "cat taken for horse 4, 17 % of the class",
        "horse 93 % is cat",  # a mistake
        "dog 97 %",  # a sample
        "1 3 workers, steps 0 to 120, 2 min 10 s: lost rank 1: its process died",
        "2 2 workers, steps 100 to 200, 1 min 50 s: completed",
        "python 3.11",
        "run_dir: /runs/pets seed: 7",
    ):
        assert expected in shown
    page = Page(render(tmp_path / "pets"))
    assert [tag for tag, _ in page.tags].count("img") == 24
    assert [tag for tag, _ in page.tags].count("svg") == 4


@pytest.mark.parametrize(
    ("absent", "told"),
    [
        ("summary.json", "The last launch has left no summary"),
        ("metrics.jsonl", "No step has been logged"),
        ("events.jsonl", "No attempt has been noted"),
        ("evaluation.json", "No evaluation has come to its end"),
        ("config.yaml", "No config.yaml is left"),
    ],
)
@pytest.mark.parametrize("damage", [None, "", "{", "[]\n", "\x00", '{"step": 3}\n'])
def test_what_is_missing_or_damaged_is_told_in_its_place(
    tmp_path: Path, absent: str, told: str, damage: str | None
) -> None:
    run = made_up(tmp_path / "pets")
    (run / absent).unlink()
    if damage is not None and absent != "config.yaml":
        (run / absent).write_text(damage)
    assert told in words(run)


def test_a_launch_that_failed_before_its_first_step(tmp_path: Path) -> None:
    failed = {"status": "failed", "exit_code": 1, "error": "rank 0: <b>no</b>", "eval": None}
    nothing: dict[str, Any] = {"images_per_second": None, "phase_seconds": {}, "steps": 0}
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run/summary.json", summary(**failed, **nothing, wall_seconds={}))
    write_lines(tmp_path / "run/events.jsonl", EVENTS[:2])
    shown = words(tmp_path / "run")
    for expected in (
        "run failed",
        "rank 0: <b>no</b>",
        "Not evaluated yet",
        "No time has been accounted for",
        "no step, 0.0 s: no end is known",
    ):
        assert expected in shown


def test_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory"):
        render(tmp_path)


def test_text_of_others_stays_text(tmp_path: Path) -> None:
    """Class names, the run's name, reasons, settings, the environment."""
    plain = Page(render(made_up(tmp_path / "plain", classes=tuple("abcdefgh"))))
    run = made_up(tmp_path / "<b>&{{ 1 }}", classes=tuple(NASTY))
    write_json(run / "summary.json", summary(error=NASTY[1]))
    (run / "config.yaml").write_text("\n".join(NASTY))
    events = [
        {**event, "reason": NASTY[0]} if event["kind"] == "lost" else event for event in EVENTS
    ]
    events[0] = {**events[0], "environment": dict.fromkeys(NASTY, NASTY[3])}
    write_lines(run / "events.jsonl", events)
    found = Page(render(run))
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in plain.tags} | {"p"}
    assert not [name for _, names in found.tags for name in names if name.startswith("on")]
    for name in NASTY:
        assert name in found.words
    assert [values["src"] for tag, values in found.tags if tag == "img"] == [
        values["src"] for tag, values in plain.tags if tag == "img"
    ]


def test_a_run_of_a_hundred_epochs_stays_small(tmp_path: Path) -> None:
    classes = tuple(f"class number {number}" for number in range(1000))
    run = made_up(tmp_path / "run", steps=100_000, every=1, classes=classes)
    write_lines(run / "events.jsonl", EVENTS * 500)
    assert write_report(run).stat().st_size < 2_000_000
    assert "960 before them are not shown" in words(run)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"data": 41, "compute": 59}, "41 % waiting for data: add readers"),
        ({"data": 10, "compute": 85, "exchange": 5}, "85 % computing: more or faster devices"),
        ({"exchange": 60, "data": 30, "compute": 10}, "60 % exchanging gradients"),
        ({"checkpoint": 25, "productive": 75}, "25 % waiting for checkpoints: write them less"),
        ({"eval": 50, "compute": 50}, "50 % evaluating: do so less often"),
        ({"start_up": 30, "productive": 70}, "30 % starting up: a longer run pays"),
        ({"detection": 30, "productive": 70}, "30 % noticing that ranks were lost: lower"),
        ({"replay": 30, "productive": 70}, "30 % taking steps again after a loss: write check"),
        ({"idle": 30, "productive": 70}, "30 % between attempts, and at the end"),
        ({"data": 19, "exchange": 19, "productive": 62}, "62 % computing"),
        ({"data": 10, "idle": 10}, "50 % waiting for data"),
        ({"data": 10, "unheard of": 1000}, "100 % waiting for data"),
    ],
)
def test_the_sentence_on_what_bounds_a_run(seconds: dict[str, float], expected: str) -> None:
    known = {name: value for name, value in seconds.items() if name != "unheard of"}
    assert str(bounds.sentence(bounds.parts(known))).startswith(expected)
    assert bounds.parts(seconds)[0].kind in ("productive", bounds.parts(known)[0].kind)


@pytest.mark.parametrize("seconds", [{}, {"data": 0.0, "compute": 0.0}, {"data": -1.0}])
def test_no_time_no_sentence(seconds: dict[str, float]) -> None:
    assert bounds.parts(seconds) == []
    assert bounds.sentence([]) is None


@given(st.floats(0, 1e12, allow_subnormal=False))
def test_ticks_are_few_and_cover_the_axis(end: float) -> None:
    found = ticks(end)
    assert found[0] == 0
    assert found[-1] >= end * (1 - 1e-6)
    assert 2 <= len(found) <= 7
    assert all(second > first for first, second in pairwise(found))


@given(st.lists(st.floats(-1e6, 1e6), max_size=2 * MOST + 5))
def test_thin_points_keep_order_mean_and_extremes(values: list[float]) -> None:
    means = thin([(float(at), value) for at, value in enumerate(values)])
    assert len(means) <= MOST
    assert [mean.x for mean in means] == sorted(mean.x for mean in means)
    assert min(values, default=0) == min((mean.least for mean in means), default=0)
    assert max(values, default=0) == max((mean.largest for mean in means), default=0)


def test_a_chart_leaves_out_what_is_no_number_and_cuts_off_what_is_far() -> None:
    values = [1.0] * 50 + [math.nan, math.inf, 1000.0]
    found = chart("Loss", [Curve(name="training", points=[*enumerate(values)])])
    assert found is not None
    assert "nan" not in found.lines[0].path + found.lines[0].band
    assert found.beyond == "1,000"
    assert found.y[-1].label == "5"
    assert chart("Loss", [Curve(name="training", points=[(0.0, math.nan)])]) is None


def test_confusion_of_few_and_of_many_classes() -> None:
    counts = [(0, 0, 9), (0, 1, 1), (1, 1, 5), (1, 0, 5), (2, 2, 1)]
    few = Confusion.of(["a", "b", "c"], counts)
    assert [[cell.images for cell in row.cells] for row in few.matrix] == [
        [9, 1, 0],
        [5, 5, 0],
        [0, 0, 1],
    ]
    assert [row.right for row in few.matrix] == [0.9, 0.5, 1.0]
    assert [(pair.name, pair.answer, pair.share) for pair in few.pairs] == [
        ("b", "a", 0.5),
        ("a", "b", 0.1),
    ]
    many = Confusion.of([f"class {n}" for n in range(1000)], counts)
    assert not many.matrix
    assert [row.name for row in many.worst] == ["class 1", "class 0", "class 2"]


def test_attempts_that_nobody_has_seen_the_end_of() -> None:
    """The driver was killed, and a later launch goes on."""
    events = [*EVENTS[:3], {**EVENTS[0], "time": 5000}, {**EVENTS[1], "time": 5001, "step": 40}]
    found = attempts(events, [{"step": 30, "time": 1040}, {"step": 50, "time": 5030}])
    assert [(a.end, a.first_step, a.last_step, a.ended) for a in found] == [
        ("open", 0, 30, 1040),
        ("open", 40, 50, 5030),
    ]


def test_a_timeline_leaves_out_the_time_between_attempts() -> None:
    later = [{**event, "time": event["time"] + 9000} for event in EVENTS]
    found = timeline([*EVENTS, *later], [], shown=3)
    assert found.left_out == 1
    assert found.seconds == 110 + 130 + 110
    assert [bar.pause for bar in found.bars] == [0, 1000 + 9000 - 1241, 1]
    last = found.bars[-1]
    assert last.at + last.start_up + last.training == pytest.approx(1)
    assert found.bars[1].start_up == pytest.approx(10 / 350)


def test_the_verb_writes_the_page_anew(tmp_path: Path) -> None:
    run = made_up(tmp_path / "pets")
    done = CliRunner().invoke(cli, ["report", str(run), "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert not (run / "report.html").exists()
    assert CliRunner().invoke(cli, ["report", str(run)]).exit_code == 0
    assert "87.5" in (run / "report.html").read_text()
    assert sorted(path.name for path in run.iterdir()) == sorted([*FILES, "report.html"])


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if absent := missing():
        pytest.skip(f"no {' and no '.join(absent)} here")
    with browser() as running:
        yield running


SMALLEST_LETTERS = """
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let least = 99;
while (walker.nextNode())
  if (walker.currentNode.data.trim())
    least = Math.min(
      least, parseFloat(getComputedStyle(walker.currentNode.parentElement).fontSize));
return least;
"""
BESIDE_THE_PAGE = """
return [...document.querySelectorAll("main *")]
  .filter(e => !e.closest(".scroll, pre, svg") && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 100));
"""
GROUND = "return getComputedStyle(document.body).backgroundColor"
SEEN = "return [...document.images].filter(i => i.complete && i.naturalWidth).length"


@pytest.mark.parametrize("kind", ["full", "nasty", "many", "empty"])
def test_the_page_in_a_browser(tmp_path: Path, chromium: Browser, kind: str) -> None:
    """On a phone and at a desk, in light and dark: nothing loaded, no complaint, all in sight."""
    ten = tuple(f"a long class name {number}" for number in range(10))
    classes = {"full": ten, "nasty": tuple(NASTY), "many": tuple(str(n) for n in range(1000))}
    run = made_up(tmp_path / "run", classes=classes.get(kind, ()))
    if kind == "empty":
        for name in FILES[1:]:
            (run / name).unlink()
    page = write_report(run)
    grounds = set()
    for width in (400, 1200):
        for scheme in ("light", "dark"):
            chromium.look_at(page, width, scheme)
            asked = [url for url in chromium.requests() if not url.startswith("data:")]
            assert asked == [page.as_uri()]
            assert chromium.console() == []
            assert chromium.run("return [innerWidth, document.documentElement.scrollWidth]") == [
                width,
                width,
            ]
            assert chromium.run(BESIDE_THE_PAGE) == []
            assert chromium.run(SMALLEST_LETTERS) >= 11
            assert chromium.run(SEEN) == (0 if kind == "empty" else 24)
            grounds.add(chromium.run(GROUND))
    assert len(grounds) == 2


def test_a_browser_s_complaints_are_heard(tmp_path: Path, chromium: Browser) -> None:
    """So that none means that there are none."""
    page = tmp_path / "page.html"
    page.write_text("<script>console.error('oh')</script><img src=http://127.0.0.1:9/x.png>")
    chromium.look_at(page, 400, "light")
    assert any("oh" in line for line in chromium.console())
    assert "http://127.0.0.1:9/x.png" in chromium.requests()
