"""`alexnet config`: show, diff, schema, presets; and the page that lists every setting."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from alexnet.config import flat, load, schema
from alexnet.data.shards import ShardSet
from alexnet.errors import ConfigError
from cluster.cli import cli
from cluster.config import JobConfig
from cluster.presets import PUBLISHED, Preset, find, first_sentence, names
from cluster.tables import _short
from tests.clusters import ROOT
from tests.test_cli import alexnet
from tests.test_config import CONFIGS

TOOL = runpy.run_path(str(ROOT / "tools" / "configuration.py"))
SCHEMA = Draft202012Validator(schema(JobConfig))


def config(*arguments: str) -> str:
    found = CliRunner().invoke(cli, ["config", *arguments], catch_exceptions=False)
    assert found.exit_code == 0
    return found.stdout


def test_show_is_what_train_would_use(tmp_path: Path) -> None:
    shown = config("show", "smoke", "train.epochs=3")
    assert "  epochs: 3\n" in shown
    (tmp_path / "again.yaml").write_text(shown)
    assert config("show", str(tmp_path / "again.yaml")) == shown
    train = CliRunner().invoke(cli, ["train", "smoke", "train.epochs=3", "--print-config"])
    assert train.stdout == shown


def test_diff_names_what_differs(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: {epochs: 3}")
    (tmp_path / "b.yaml").write_text("train: {epochs: 10}\ndata: {source: digits}")
    a, b = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    assert json.loads(config("diff", a, b, "--json")) == {
        "data.source": [None, "digits"],
        "train.epochs": [3, 10],
    }
    rows = [line.split() for line in config("diff", a, b).splitlines()]
    assert ["train.epochs", "3", "10"] in rows
    assert config("diff", a, a) == "the same settings\n"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_takes_every_config_there_is(path: Path) -> None:
    SCHEMA.validate(yaml.safe_load(path.read_text()))


def test_the_schema_is_one_and_takes_a_resolved_config() -> None:
    printed = json.loads(config("schema"))
    Draft202012Validator.check_schema(printed)
    assert printed == SCHEMA.schema
    SCHEMA.validate(yaml.safe_load(config("show", "imagenet")))


@pytest.mark.parametrize(
    "tree",
    [
        {"trian": {}},
        {"train": {"epoch": 1}},
        {"train": {"epochs": 0}},
        {"data": {"augment": {"shift": 1}}},
        {"model": {"name": "vgg"}},
        {"cluster": {"workers": "all"}},
        {"cluster": {"gpus_per_worker": -1}},
        {"schedule": {"milestones": [2]}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_program_refuses(tree: dict[str, Any], tmp_path: Path) -> None:
    assert not SCHEMA.is_valid(tree)
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError):
        load(JobConfig, tmp_path / "bad.yaml")


def test_presets_are_the_files_there_are() -> None:
    assert names() == sorted(path.stem for path in CONFIGS)
    rows = [json.loads(line) for line in config("presets", "--json").splitlines()]
    assert [row["name"] for row in rows] == names()
    for row in rows:
        assert row["about"][0].isupper() and row["about"][-1] == "."
        assert None not in row.values(), row["name"]
        assert row["images"] == row["steps"] * row["global_batch"]
        assert row["flops"] == row["steps"] * row["flops_per_step"]


def test_what_presets_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters as the networks tell them; operations of the 2012 network as counted by hand."""
    monkeypatch.chdir(tmp_path)  # where no set is prepared
    smoke, imagenet, large = map(Preset.read, ("smoke", "imagenet", "imagenet-32k"))
    assert (smoke.parameters, smoke.steps, smoke.images) == (21_627_658, 220, 220 * 64)
    assert imagenet.parameters == 60_970_728
    assert imagenet.flops_per_step == pytest.approx(512 * 4.1e9, rel=0.02)
    assert (imagenet.steps, large.steps) == (100 * 2502, 100 * 39)
    assert large.flops_per_step == 64 * (imagenet.flops_per_step or 0)


def test_a_prepared_set_says_how_large_it_is(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = ShardSet.open(digits)
    rows = dataset.splits["train"].rows
    assert (rows, len(dataset.classes)) == PUBLISHED["digits"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "catdog").symlink_to(digits)
    found = Preset.read("catdog")
    assert (found.training_images, found.classes) == (rows, 10)
    assert found.steps == rows // 32 * 10


def test_presets_in_a_table() -> None:
    lines = config("presets").splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split()[-4:] == ["params", "FLOP/step", "images", "FLOP/run"]
    assert "…" not in "".join(lines)
    assert [line.split()[0] for line in lines[1 : 1 + len(names())]] == names()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# One at 0.1. Two.\nseed: 1", "One at 0.1."),
        ("# One goes\n# on. Two.\n#\n#   three", "One goes on."),
        ("seed: 1\n# Later.", ""),
        ("", ""),
    ],
)
def test_first_sentence(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (7, "7.00"), (999, "999"), (999_600, "1.00 M"), (60_970_728, "61.0 M"),
     (1418e9, "1.42 T"), (532e15, "532 P"), (3e18, "3.00 E")],
)  # fmt: skip
def test_large_numbers_in_three_digits(count: int | None, text: str) -> None:
    assert _short(count) == text


def test_a_config_is_a_file_or_else_a_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("catdog") == ROOT / "configs" / "catdog.yaml"
    assert find("other.yaml") == Path("other.yaml")
    assert find("some/catdog") == Path("some/catdog")
    Path("catdog").mkdir()
    assert find("catdog") == ROOT / "configs" / "catdog.yaml"
    Path("catdog").rmdir()
    Path("catdog").touch()
    assert find("catdog") == Path("catdog")
    with pytest.raises(ConfigError, match=r"did you mean cifar10\?"):
        find("cifar")
    with pytest.raises(ConfigError, match="known here: catdog, catdog-seed, cifar10"):
        find("xyz")


def test_a_wrong_name_is_one_line() -> None:
    found = alexnet("train", "catdgo")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "alexnet: catdgo: no such file, nor a preset; did you mean catdog?\n"


def test_the_page_of_settings_is_what_the_tool_writes() -> None:
    assert TOOL["PAGE"].read_text() == TOOL["page"](), (
        "docs/configuration.md is not what the settings say; mend it with: "
        ".venv/bin/python tools/configuration.py"
    )


def test_the_page_has_every_setting_once() -> None:
    page = TOOL["page"]()
    for key in flat(JobConfig().model_dump()):
        assert page.count(f"\n| `{key}` |") == 1


@pytest.mark.slow
def test_presets_are_installed_with_the_program(tmp_path: Path) -> None:
    """As the image has them: from a wheel, with no checkout in sight."""
    source, site = tmp_path / "source", tmp_path / "site"
    for name in ("alexnet", "cluster", "configs", "k8s"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", site, source], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "config", "presets", "--json"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == names(), done.stderr
