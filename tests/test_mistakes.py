"""Mistakes as people make them: each yields one screen that names the cause and the remedy."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from tests.clusters import BIN, free_ports, ray_cluster
from tests.disks import small_disk

COLUMNS, LINES = 80, 24


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A command line in a folder with `photos/`, what it ends with, and what it says."""

    command: str
    exit_code: int
    cause: str
    remedy: str
    variables: dict[str, str] = field(default_factory=dict)


TRAIN = "train catdog data.path=data/photos run_dir=runs/a "
MISTAKES = {
    "a key misspelt": Mistake(
        command=TRAIN + "train.epoch=3",
        exit_code=2,
        cause="unknown key train.epoch",
        remedy="did you mean epochs?",
    ),
    "a preset misspelt": Mistake(
        command="train catdgo data.path=data/photos",
        exit_code=2,
        cause="catdgo: no such file, nor a preset",
        remedy="did you mean catdog?",
    ),
    "a verb misspelt": Mistake(
        command="trian catdog",
        exit_code=2,
        cause="No such command 'trian'",
        remedy="Did you mean 'train'?",
    ),
    "a word for a number": Mistake(
        command=TRAIN + "schedule.learning_rate=fast",
        exit_code=2,
        cause="schedule.learning_rate = 'fast'",
        remedy="should be a valid number",
    ),
    "a tab in a config": Mistake(
        command="train tab.yaml",
        exit_code=2,
        cause=r"tab.yaml: not YAML: while scanning for the next token found character '\t'",
        remedy="line 2, column 1",
    ),
    "photos where a set belongs": Mistake(
        command="train catdog data.path=photos run_dir=runs/a",
        exit_code=3,
        cause="photos: no such dataset",
        remedy="run `alexnet prepare`",
    ),
    "an empty class": Mistake(
        command="prepare with-empty data/other",
        exit_code=3,
        cause="folder 'birds' has no images",
        remedy="remove it or fill it",
    ),
    "a full disk": Mistake(
        command="prepare photos full/photos",
        exit_code=3,
        cause="full/photos: the disk is full",
        remedy="make room and run it again",
    ),
    "a damaged set": Mistake(
        command="verify data/damaged",
        exit_code=3,
        cause="train-00000-of-00001.parquet",
        remedy="row group 0",
    ),
    "too many workers for the batch": Mistake(
        command=TRAIN + "cluster.workers=64",
        exit_code=2,
        cause="cluster.workers = 64: a global batch of 32 has 2 micro-batches of 16",
        remedy="so 1 to 2 workers",
    ),
    "micro-batches that do not add up": Mistake(
        command=TRAIN + "train.micro_batch=5",
        exit_code=2,
        cause="global_batch 32 is not a multiple of micro_batch 5",
        remedy="micro_batch",
    ),
    "images too small for the network": Mistake(
        command=TRAIN + "data.image_size=32",
        exit_code=2,
        cause="data.image_size = 32",
        remedy="should be greater than or equal to 67",
    ),
    "a folder that is no run": Mistake(
        command=TRAIN + "--replace run_dir=photos",
        exit_code=2,
        cause="photos: not a run directory, it holds ",
        remedy="name another",
    ),
    "more GPUs than there are": Mistake(
        command=TRAIN + "cluster.gpus_per_worker=64",
        exit_code=2,
        cause="1 workers x 1 CPU, 64 GPU asked for, this machine has ",
        remedy="lower cluster.workers, cluster.cpus_per_worker or cluster.gpus_per_worker",
    ),
    "a run that is not there": Mistake(
        command="evaluate runs/none",
        exit_code=3,
        cause="runs/none: no such run, checkpoint or export",
        remedy="`alexnet runs`",
    ),
    "a set of other classes": Mistake(
        command="evaluate runs/digits data/photos",
        exit_code=2,
        cause="data/photos: its classes (cats, dogs) are not the 10 ",
        remedy="name a set with these",
    ),
    "a run of another set": Mistake(
        command="train smoke data.path=data/photos data.source=null run_dir=runs/digits "
        "train.global_batch=8 train.micro_batch=8 cluster.metrics_port=0",
        exit_code=2,
        cause="a checkpoint of another model",
        remedy="name another run_dir or pass --replace",
    ),
    "text among the images": Mistake(
        command="predict runs/digits notes.txt",
        exit_code=3,
        cause="1 of 1 could not be read as images",
        remedy="notes.txt  not an image",
    ),
    "a format that is none": Mistake(
        command="export runs/digits model.tflite",
        exit_code=2,
        cause="model.tflite: an export ends in ",
        remedy=".keras, .h5, .onnx or, as a SavedModel, in /",
    ),
    "a cluster that is not there": Mistake(
        command=f"status --address http://127.0.0.1:{free_ports(1)[0]}",
        exit_code=1,
        cause="no answer from http://127.0.0.1:",
        remedy="--address or in RAY_API_SERVER_ADDRESS",
    ),
    "a stale token": Mistake(
        command="status",
        exit_code=1,
        cause="no entry to http://127.0.0.1:",
        remedy="the token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token",
        variables={"RAY_AUTH_TOKEN": "0" * 32},
    ),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, untrained_run: Path) -> Iterator[Path]:
    """A folder as somebody who begins might have it."""
    folder = tmp_path_factory.mktemp("work")
    for name in ("cats", "dogs"):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(30):
            Image.new("RGB", (9, 9), (index * 8, 0, 0)).save(
                folder / "photos" / name / f"{index}.png"
            )
    shutil.copytree(folder / "photos" / "cats", folder / "with-empty" / "cats")
    (folder / "with-empty" / "birds").mkdir()
    (folder / "tab.yaml").write_text("train:\n\tepochs: 3\n")
    (folder / "notes.txt").write_text("not a picture")
    shutil.copytree(untrained_run, folder / "runs" / "digits")
    assert alexnet(folder, "prepare photos data/photos").returncode == 0
    shutil.copytree(folder / "data" / "photos", folder / "data" / "damaged")
    shard = next((folder / "data" / "damaged").glob("train-*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    yield folder


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ray_cluster(1, tmp_path_factory.mktemp("ray")) as cluster:
        yield cluster.dashboard


def alexnet(folder: Path, command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    known.pop("TF_CPP_MIN_LOG_LEVEL")  # nobody has set it
    return subprocess.run(
        [BIN / "alexnet", *shlex.split(command)],
        cwd=folder,
        env={**known, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


def screen_lines(text: str) -> int:
    return sum(max(1, -(-len(line) // COLUMNS)) for line in re.split("[\r\n]", text))


@pytest.mark.ray
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_on_one_screen(
    name: str, workplace: Path, request: pytest.FixtureRequest
) -> None:
    mistake = MISTAKES[name]
    variables = dict(mistake.variables)
    if name == "a stale token":
        variables["RAY_API_SERVER_ADDRESS"] = request.getfixturevalue("dashboard")
    if name == "a full disk":
        with small_disk(workplace / "full", "4k"):
            done = alexnet(workplace, mistake.command)
    else:
        done = alexnet(workplace, mistake.command, **variables)
    assert done.returncode == mistake.exit_code, done.stdout
    assert mistake.cause in done.stdout
    assert mistake.remedy in done.stdout
    assert not re.search(r"Traceback|^[IWE]0000 ", done.stdout, re.MULTILINE), done.stdout
    assert screen_lines(done.stdout) <= LINES, done.stdout
