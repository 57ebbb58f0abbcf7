"""Mistakes as people make them: each yields one screen that names the cause and the remedy."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.clusters import BIN, free_ports, ray_cluster
from tests.disks import small_disk

COLUMNS, LINES = 80, 24
TRAIN = "train catdog data.path=data/photos run_dir=runs/a "
MISTAKES = [
    pytest.param(
        TRAIN + "train.epoch=3",
        2,
        "unknown key train.epoch",
        "did you mean epochs?",
        id="a key misspelt",
    ),
    pytest.param(
        "train catdgo data.path=data/photos",
        2,
        "catdgo: no such file, nor a preset",
        "did you mean catdog?",
        id="a preset misspelt",
    ),
    pytest.param(
        "trian catdog", 2, "No such command 'trian'", "Did you mean 'train'?", id="a verb misspelt"
    ),
    pytest.param(
        TRAIN + "schedule.learning_rate=fast",
        2,
        "schedule.learning_rate = 'fast'",
        "should be a valid number",
        id="a word for a number",
    ),
    pytest.param(
        "train tab.yaml",
        2,
        r"tab.yaml: not YAML: while scanning for the next token found character '\t'",
        "line 2, column 1",
        id="a tab in a config",
    ),
    pytest.param(
        "train catdog data.path=photos run_dir=runs/a",
        3,
        "photos: no such dataset",
        "run `alexnet prepare`",
        id="photos where a set belongs",
    ),
    pytest.param(
        "prepare with-empty data/other",
        3,
        "folder 'birds' has no images",
        "remove it or fill it",
        id="an empty class",
    ),
    pytest.param(
        "verify data/damaged",
        3,
        "train-00000-of-00001.parquet: row group 0",
        "copy these files anew, or prepare the set again",
        id="a damaged set",
    ),
    pytest.param(
        TRAIN + "cluster.workers=64",
        2,
        "cluster.workers = 64: a global batch of 32 has 2 micro-batches of 16",
        "so 1 to 2 workers",
        id="too many workers for the batch",
    ),
    pytest.param(
        TRAIN + "train.micro_batch=5",
        2,
        "global_batch 32",
        "is not a multiple of micro_batch 5",
        id="micro-batches that do not add up",
    ),
    pytest.param(
        TRAIN + "data.image_size=32",
        2,
        "data.image_size = 32",
        "should be greater than or equal to 67",
        id="images too small for the network",
    ),
    pytest.param(
        TRAIN + "--replace run_dir=photos",
        2,
        "photos: not a run directory, it holds ",
        "name another",
        id="a folder that is no run",
    ),
    pytest.param(
        TRAIN + "cluster.gpus_per_worker=64",
        2,
        "1 workers x 1 CPU, 64 GPU asked for, this machine has ",
        "lower cluster.workers, cluster.cpus_per_worker or cluster.gpus_per_worker",
        id="more GPUs than there are",
    ),
    pytest.param(
        "evaluate runs/none",
        3,
        "runs/none: no such run, checkpoint or export",
        "`alexnet runs`",
        id="a run that is not there",
    ),
    pytest.param(
        "evaluate runs/digits data/photos",
        2,
        "data/photos: its classes (cats, dogs) are not the 10 ",
        "name a set with these",
        id="a set of other classes",
    ),
    pytest.param(
        "train smoke data.path=data/photos data.source=null run_dir=runs/digits "
        "train.global_batch=8 train.micro_batch=8 cluster.metrics_port=0",
        2,
        "a checkpoint of another model",
        "name another run_dir or pass --replace",
        id="a run of another set",
    ),
    pytest.param(
        "predict runs/digits notes.txt",
        3,
        "1 of 1 could not be read as images",
        "notes.txt  not an image",
        id="text among the images",
    ),
    pytest.param(
        "export runs/digits model.tflite",
        2,
        "model.tflite: an export ends in ",
        ".keras, .h5, .onnx or, as a SavedModel, in /",
        id="a format that is none",
    ),
    pytest.param(
        f"status --address http://127.0.0.1:{free_ports(1)[0]}",
        1,
        "no answer from http://127.0.0.1:",
        "--address or in RAY_API_SERVER_ADDRESS",
        id="a cluster that is not there",
    ),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, untrained_run: Path) -> Path:
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
    return folder


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


def told(folder: Path, command: str, **variables: str) -> tuple[int, str]:
    """The exit code of a mistake and what is said of it, which fits on one screen."""
    done = alexnet(folder, command, **variables)
    assert not re.search(r"Traceback|^[IWE]0000 ", done.stdout, re.MULTILINE), done.stdout
    assert screen_lines(done.stdout) <= LINES, done.stdout
    return done.returncode, done.stdout


@pytest.mark.ray
@pytest.mark.parametrize(("command", "exit_code", "cause", "remedy"), MISTAKES)
def test_a_mistake_is_told_with_its_remedy(
    workplace: Path, command: str, exit_code: int, cause: str, remedy: str
) -> None:
    code, text = told(workplace, command)
    assert code == exit_code, text
    assert cause in text
    assert remedy in text


def test_a_full_disk(workplace: Path) -> None:
    with small_disk(workplace / "full", "4k"):
        code, text = told(workplace, "prepare photos full/photos")
    assert code == 3
    assert "full/photos: the disk is full; make room and run it again" in text


@pytest.mark.ray
def test_a_stale_token(workplace: Path, tmp_path: Path) -> None:
    with ray_cluster(1, tmp_path) as cluster:
        stale = {"RAY_AUTH_TOKEN": "0" * 32, "RAY_API_SERVER_ADDRESS": cluster.dashboard}
        code, text = told(workplace, "status", **stale)
    assert code == 1
    assert f"no entry to {cluster.dashboard}: the token in RAY_AUTH_TOKEN, " in text
