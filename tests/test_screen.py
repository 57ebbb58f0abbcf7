"""Lines where output is no terminal; on one, a view below them that never leaves its 80 columns."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from cluster.live import LiveView
from cluster.preview import Preview
from cluster.screen import Screen

STEP = {
    "kind": "step",
    "step": 120,
    "epoch": 2.5,
    "loss": 0.4123,
    "accuracy": 0.9,
    "learning_rate": 0.02,
    "images_per_second": 157.25,
}
EVALUATION = {"kind": "evaluation", "step": 100, "top1": 0.9721, "top5": 1.0, "loss": 0.1}
EVALUATION |= {"images": 359}
CHECKPOINT = {"kind": "checkpoint", "step": 100}
PHASES = {"data": 1.0, "compute": 70.0, "exchange": 25.0, "checkpoint": 2.0, "eval": 2.0}


def shown(use: Callable[[Screen], None], is_terminal: bool) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, width=80, color_system=None)
    with Screen(console) as screen:
        use(screen)
    return output.getvalue()


def go(screen: Screen) -> None:
    screen.preview(Preview(rows=(("model", "seed"), ("run", "/runs/r")), total_steps=240))
    for record in (STEP, EVALUATION, CHECKPOINT):
        screen.record(record)
    screen.say("rank 1: its process died; starting again from the newest checkpoint")


def test_no_terminal_has_plain_lines() -> None:
    lines = shown(go, is_terminal=False).splitlines()
    assert lines[:2] == ["model       seed", "run         /runs/r"]
    assert lines[2].startswith("step    120  epoch   2.50  loss 0.4123  accuracy 0.900  lr 0.02")
    assert lines[3].startswith("step    100  held out: top-1 0.9721")
    assert lines[4:] == [
        "step    100  checkpoint",
        "rank 1: its process died; starting again from the newest checkpoint",
    ]


def test_on_a_terminal_steps_and_checkpoints_are_no_lines() -> None:
    text = shown(go, is_terminal=True)
    assert "held out: top-1 0.9721" in text
    assert "its process died" in text
    assert "step    120" not in text
    assert "step    100  checkpoint" not in text


def test_time_is_told_from_timed_steps() -> None:
    said = shown(lambda screen: screen.expect(1.5, 2400), is_terminal=False)
    assert said.split(None, 1)[1].startswith("about 1:00:00 for 2400 steps of 1.50 s")


def view(*records: dict[str, Any], **at: Any) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    live = LiveView(console)
    live.plan(240)
    live.start("ranks are starting")
    if at:
        live.at(**at)
    for record in records:
        live.record(record)
    with console.capture() as captured:
        console.print(live)
    return captured.get().splitlines()


def test_before_the_first_step_it_says_so() -> None:
    (line,) = view()
    assert "ranks are starting" in line
    (line,) = view(step=0, phases=dict.fromkeys(PHASES, 0.0), slowest=None)
    assert "ranks are starting" in line


def test_it_tells_how_far_how_well_and_where_the_time_goes() -> None:
    lines = view(STEP, EVALUATION, CHECKPOINT, step=120, phases=PHASES, slowest=(3, 1.84))
    assert "120/240" in lines[0] and "50 %" in lines[0]
    assert lines[1] == "epoch 2.50  loss 0.4123  accuracy 0.900  lr 0.02  157.2 images/s"
    assert "compute 70%  exchange 25%  data 1%  checkpoint 2%  eval 2%" in lines[2]
    assert lines[2].count("\u2588") == 19  # of 20: 14 of compute, 5 of exchange, no half ones
    assert (
        lines[3] == "held out: top-1 0.9721  checkpoint: step 100, 0 s ago  slowest: rank 3, 1.8 x"
    )
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("missing", ["loss", "accuracy"])
def test_steps_that_were_all_skipped_have_no_figures(missing: str) -> None:
    lines = view({**STEP, missing: None}, step=120, phases=PHASES, slowest=None)
    assert f"{missing} -" in lines[1]
