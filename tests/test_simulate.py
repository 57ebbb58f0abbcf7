"""`alexnet simulate`: quantities with units, what it prints, and what it draws."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from alexnet.errors import AlexnetError, ConfigError
from cluster.cli import cli
from cluster.quantities import BANDWIDTH, DELAY, SHARE, TIME, Quantity
from cluster.scaling import Scenario, predict
from tests.clusters import ROOT
from tests.test_cli import alexnet

EXAMPLE = ["--bandwidth=100Gbit", "--latency=5us", "--step-time=25ms"]


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["simulate", *EXAMPLE, *arguments], catch_exceptions=False)


@pytest.mark.parametrize(
    ("kind", "text", "amount"),
    [
        (BANDWIDTH, "100Gbit", 12.5e9),
        (BANDWIDTH, "1.5MB", 1.5e6),
        (BANDWIDTH, "800kbit", 1e5),
        (TIME, "25ms", 0.025),
        (TIME, "90min", 5400.0),
        (TIME, "2d", 172_800.0),
        (DELAY, "5us", 5e-6),
        (DELAY, "0s", 0.0),
        (SHARE, "15%", 0.15),
        (SHARE, "100%", 1.0),
    ],
)
def test_quantities(kind: Quantity, text: str, amount: float) -> None:
    assert kind.convert(text, None, None) == pytest.approx(amount)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (BANDWIDTH, ["", "100", "Gbit", "100 Gbit", "100Gbps", "100gbit", "-1Gbit", "0Gbit"]),
        (BANDWIDTH, ["1e3Gbit", ".5Gbit", "5.Gbit", "nanGbit", "٣Gbit", "9" * 400 + "MB", "25ms"]),
        (TIME, ["0ms", "25", "25msec", "25 ms", "25Gbit", "infs", "25ms\n"]),
        (DELAY, ["-5us", "5µs"]),
        (SHARE, ["0.5", "101%", "-1%"]),
    ],
)
def test_bad_quantities(kind: Quantity, texts: Sequence[str]) -> None:
    for text in texts:
        with pytest.raises(ConfigError, match=r"expected a number (above|from) 0 and one of"):
            kind.convert(text, None, None)


def test_a_bad_quantity_is_one_line() -> None:
    result = alexnet("simulate", "--step-time=25ms", "--bandwidth=100Gbps")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "alexnet: --bandwidth '100Gbps': expected a number above 0 and one of kbit, Mbit, Gbit, "
        "Tbit, kB, MB, GB, TB, as in 100Gbit"
    ]


def test_parts_that_do_not_fit_are_one_line() -> None:
    result = alexnet("simulate", *EXAMPLE, "--update-time=1s")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "an update of 1 s is no part of a step of 0.025 s" in result.stderr


def test_json_is_what_the_model_says() -> None:
    rows = [json.loads(line) for line in simulate("--workers=6", "--json").stdout.splitlines()]
    assert [row["workers"] for row in rows] == [1, 2, 4, 6]
    s = Scenario(step_time=0.025, bandwidth=12.5e9, latency=5e-6, write_bandwidth=1e9)
    told = predict(s, 6)
    assert rows[-1]["step"] == told.step
    assert rows[-1]["images_per_second"] == told.images_per_second
    assert rows[-1]["training_time"] == told.training_time


def test_options_reach_the_model() -> None:
    def last(*arguments: str) -> dict[str, float]:
        return json.loads(simulate("--workers=64", "--json", *arguments).stdout.splitlines()[-1])

    usual = last()
    for option in (
        "--batch=64",
        "--micro-batches=4",
        "--update-time=5ms",
        "--overlap=50%",
        "--dense-layers=factored",
        "--reader=500",
        "--checkpoint-every=10",
        "--write-bandwidth=1MB",
        "--blocked=100%",
        "--mtbf=1h",
        "--model=bn",
    ):
        assert last(option) != usual, option
    nodes = "--gpus-per-node=8"
    assert last(nodes, "--mtbf=1h") != last("--mtbf=1h")
    assert last(nodes, "--allreduce=hierarchical") != last(nodes)
    assert last("--gpus-per-node=64", "--node-bandwidth=1GB") != last("--gpus-per-node=64")
    assert last("--mtbf=1h", "--restart-time=10min") != last("--mtbf=1h")


def test_json_has_no_infinity() -> None:
    row = json.loads(simulate("--workers=1", "--json", "--mtbf=1us").stdout)
    assert row["training_time"] is None


def test_the_document_s_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/scaling.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    exec(blocks[0], {})
    steps = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert steps == sorted(steps) and 0.75 < steps[0] < steps[-1] < 1


def test_table_shows_every_figure() -> None:
    lines = simulate("--workers=1024", "--mtbf=60s").stdout.splitlines()
    assert len(lines) == 12
    assert lines[0].split()[-6:] == [
        "checkpoint",
        "images/s",
        "efficiency",
        "goodput",
        "100",
        "epochs",
    ]
    assert "…" not in "".join(lines)
    assert lines[-1].split()[0] == "1024"
    assert lines[-1].split()[-1] == "never"


def test_plot(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        assert simulate("--workers=8", f"--plot={tmp_path / name}").exit_code == 0
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    for title in ("images/s", "efficiency", "goodput", "hours to 100 epochs"):
        assert f"<!-- {title} -->" in drawn


def test_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    with pytest.raises(AlexnetError, match="pip install matplotlib"):
        simulate("--workers=8", f"--plot={tmp_path / 'a.svg'}")
    with pytest.raises(ConfigError, match=r"ends with \.svg"):
        simulate("--workers=8", f"--plot={tmp_path / 'a.gif'}")
    assert not list(tmp_path.iterdir())
