"""README and docs by their own words: their commands run as they stand there, on 200 photos."""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image, ImageDraw

from cluster.cli import cli
from tests.clusters import BIN, ROOT, RayCluster, ray_cluster

TUTORIAL = ROOT / "docs" / "tutorial.md"
PAGES = [ROOT / "README.md", ROOT / "k8s" / "README.md", *sorted(ROOT.glob("docs/*.md"))]
KUBERNETES = "there is no API server here: manifests are checked, and played with podman"
NOT_RUN = {
    "make": "by the pipeline",
    "git": "by the pipeline",
    "source": "the tests are in the environment already",
    "export": "the tests are given these variables",
    "ray": "tests.clusters starts head and nodes with addresses of their own",
    "podman": "there is no registry here",
    "kubectl": KUBERNETES,
    "cluster=$(kubectl": KUBERNETES,
    "sed": KUBERNETES,
    "tar": KUBERNETES,
    "cat": KUBERNETES,
}


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages, each with its lines joined."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(r"\\\n\s*", "", text) for language, text in found if language in languages]


def commands(page: Path) -> list[str]:
    """The command lines of a page, without comments and drawings of folders."""
    lines = [
        line.split("  #")[0].strip()
        for block in blocks(page, "", "sh")
        for line in block.splitlines()
    ]
    return [line for line in lines if re.match(r"(\w+ |alexnet$|cluster=)", line)]


def photograph(folder: Path, count: int) -> None:
    """Draw circles and squares, in any colours, on noise."""
    rng = np.random.default_rng(0)
    for kind in ("circles", "squares"):
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(rng.integers(0, 120, (180, 240, 3), np.uint8))
            left, top, side = (int(x) for x in rng.integers((10, 10, 60), (120, 60, 110)))
            draw = ImageDraw.Draw(image)
            shape = draw.ellipse if kind == "circles" else draw.rectangle
            shape((left, top, left + side, top + side), fill=tuple(rng.integers(128, 256, 3)))
            image.save(folder / kind / f"{number:03}.jpg")


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with 200 photos, and the configs of a checkout."""
    photograph(tmp_path / "photos", 100)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def run(script: str, folder: Path, environment: Mapping[str, str] = os.environ) -> str:
    """Run commands until one fails; return all that they say."""
    done = subprocess.run(
        ["bash", "-m", "-o", "pipefail", "-ec", script],
        cwd=folder,
        env={**environment, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_every_command_of_the_tutorial(workplace: Path) -> None:
    (server,) = blocks(TUTORIAL, "python")
    (workplace / "serve.py").write_text(server)
    told = run("\n".join([*blocks(TUTORIAL, "sh"), "kill %1"]), workplace)
    assert "train: 1" in told and "2 classes: circles, squares" in told
    assert "about 0:" in told  # the dry run's time
    assert "completed: " in told
    assert (workplace / "runs" / "photos" / "report.html").stat().st_size > 10_000
    assert "from the checkpoint on" in told
    assert re.search(r'\{"circles": 0\.\d+, "squares": 0\.\d+\}|\{"circles": [01]\.0, ', told)


@pytest.mark.ray
@pytest.mark.slow
def test_every_command_for_one_machine(workplace: Path) -> None:
    (workplace / "holiday").symlink_to(workplace / "photos" / "squares")
    (workplace / "data").mkdir()
    (workplace / "data" / "catdog").symlink_to("photos")
    told = ""
    for page in (page for page in PAGES if page != TUTORIAL):
        for command in commands(page):
            if command.split()[0] == "alexnet" and not needs_a_cluster(command):
                command = command.replace("=/runs/", f"={workplace}/runs/")
                told += f"{command}\n" + run(command, workplace)
    for sign in ("2 classes: circles, squares", "completed: ", "top1", "holiday/000.jpg", "dense"):
        assert sign in told
    assert {path.name for path in workplace.iterdir()} >= {
        "photos.keras",
        "model.keras",
        "alexnet.schema.json",
    }


@pytest.mark.ray
@pytest.mark.slow
def test_every_command_for_a_cluster(workplace: Path) -> None:
    for name in ("catdog", "photos"):
        run(f"alexnet prepare photos {workplace}/data/{name}", workplace)
    told = ""
    with ray_cluster(2, workplace) as cluster:
        variables = {**cluster.environment(), "RAY_API_SERVER_ADDRESS": cluster.dashboard}
        for page in PAGES:
            for command in commands(page):
                if needs_a_cluster(command):
                    told += run(on(cluster, workplace, command), ROOT, variables)
    assert told.count("SUCCEEDED") > 3
    assert "kind: RayJob" in told


def needs_a_cluster(command: str) -> bool:
    return bool(re.match(r"alexnet (submit|status(;|$)|render)|ray job submit", command))


def on(cluster: RayCluster, folder: Path, command: str) -> str:
    """What a reader makes of a command: its paths, its names, and less of the epochs."""
    for place in ("data", "runs"):
        if "render" not in command:
            command = command.replace(f"=/{place}/", f"={folder}/{place}/")
    command = command.replace("http://head:8265", cluster.dashboard)
    command = command.replace("JOB", "$(alexnet status | tail -1 | cut -d' ' -f1)")
    command = command.replace("| kubectl replace --force -f -", "")
    return re.sub(r"(submit configs/\S+|train configs/\S+)", r"\1 train.epochs=1", command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_is_run_above_or_there_is_a_reason(page: Path) -> None:
    tutorial = "\n".join(blocks(TUTORIAL, "sh"))
    for command in commands(page):
        is_run = command.startswith("alexnet ") or needs_a_cluster(command)
        assert is_run or command in tutorial or command.split()[0] in NOT_RUN, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_verb_and_option_is_there(page: Path) -> None:
    inline = re.findall(r"`(alexnet [^`]+)`", page.read_text())
    for command in [*inline, *filter(re.compile("alexnet ").match, commands(page))]:
        words = shlex.split(" ".join(re.split(r"[;|>]", command)[0].split()), comments=True)
        verb: click.Command = cli
        for word in words[1:]:
            if isinstance(verb, click.Group) and not word.startswith("["):
                assert word in verb.commands, command
                verb = verb.commands[word]
            if word.lstrip("[").startswith("--"):
                options = {name for each in verb.params for name in each.opts}
                assert word.strip("[]") in options, command


def test_every_target_of_make_is_there() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"`make ([a-z0-9-]+)", page.read_text())
        named += [line.split()[1] for line in commands(page) if line.startswith("make ")]
        assert set(named) <= targets
