"""The command line: mistakes are told in one line, with the right exit code."""

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.clusters import ROOT, start, wait_until

SMOKE = str(ROOT / "configs" / "smoke.yaml")


def alexnet(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "cluster", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def write_images(folder: Path, *classes: str, count: int = 12) -> Path:
    for class_name in classes:
        (folder / class_name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (9, 9), (index * 20, 0, 0)).save(folder / class_name / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("overrides", "code", "expected"),
    [
        (["data.source=null", "data.path={tmp}/none"], 3, "no such dataset"),
        (["data.source={tmp}/none", "data.path={tmp}/set"], 3, "no such dataset"),
        (["data.path={set}", "cluster.workers=3"], 2, "1 to 2 workers"),
        (["data.path={set}", "train.micro_bach=3"], 2, "did you mean micro_batch?"),
        (["data.path={set}", "optimiser.momentum=0.5"], 2, "did you mean optimizer?"),
        (["data.path={set}", "train.epochs=0"], 2, "train.epochs = 0: input should be"),
        (["data.path={set}", "train.global_batch=50"], 2, "not a multiple of micro_batch 32"),
        (["data.path={set}", "data.image_size=66"], 2, "greater than or equal to 67"),
        (["nonsense"], 2, "expected key=value"),
        (["=3"], 2, "override '=3': expected key=value"),
        (["train.=3"], 2, "override 'train.=3': expected key=value"),
        (["cluster.gpus_per_worker=-1"], 2, "cluster.gpus_per_worker"),
        (["cluster.max_workers=1", "cluster.min_workers=2"], 2, "less than min_workers 2"),
    ],
)
def test_bad_settings(
    tmp_path: Path, digits: Path, overrides: list[str], code: int, expected: str
) -> None:
    filled = [text.format(tmp=tmp_path, set=digits) for text in overrides]
    run = tmp_path / "run"
    result = alexnet("train", SMOKE, f"run_dir={run}", *filled)
    assert result.returncode == code
    assert len(result.stderr.splitlines()) == 1
    assert expected in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_config(tmp_path: Path) -> None:
    result = alexnet("train", str(tmp_path / "none.yaml"))
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "none.yaml: cannot read the config" in result.stderr


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_a_traceback_wherever_it_stands(tmp_path: Path, before: bool) -> None:
    command = ["train", str(tmp_path / "none.yaml")]
    result = alexnet(*(["--debug", *command] if before else [*command, "--debug"]))
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert "none.yaml: cannot read the config" in result.stderr.splitlines()[-1]


def test_a_stop_while_data_are_prepared(tmp_path: Path) -> None:
    log, run = tmp_path / "log", tmp_path / "run"
    driver = start(["train", SMOKE, f"data.path={tmp_path / 'set'}", f"run_dir={run}"], {}, log)
    wait_until(lambda: "preparing digits" in log.read_text(), 60, "the preparation")
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=30) == 75, log.read_text()
    assert "run it again" in log.read_text().splitlines()[-1]
    assert not run.exists()


def test_print_config_is_what_a_run_would_use(tmp_path: Path) -> None:
    printed = alexnet("train", SMOKE, "train.epochs=3", "--print-config").stdout
    assert "  epochs: 3\n" in printed
    config = tmp_path / "again.yaml"
    config.write_text(printed)
    assert alexnet("train", str(config), "--print-config").stdout == printed


def test_empty_class_folder(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", "cats", "dogs")
    (images / "birds").mkdir()
    result = alexnet("prepare", str(images), str(tmp_path / "set"))
    assert result.returncode == 3
    assert "folder 'birds' has no images" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "set").exists()


def test_text_named_jpg_is_left_out_and_counted(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", "cats", "dogs")
    (images / "cats" / "notes.jpg").write_text("not a picture")
    result = alexnet("prepare", str(images), str(tmp_path / "set"), "--validation-share=0.3")
    assert result.returncode == 0, result.stderr
    assert "left out: 1 unreadable" in result.stdout
    assert (tmp_path / "set" / "rejected.csv").read_text().splitlines()[1:] == [
        "cats/notes.jpg,not an image"
    ]
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert sum(split["rows"] for split in manifest["splits"].values()) == 24


def test_a_folder_that_is_no_run_is_not_replaced(tmp_path: Path, digits: Path) -> None:
    precious = tmp_path / "thesis.tex"
    precious.touch()
    result = alexnet("train", SMOKE, f"data.path={digits}", f"run_dir={tmp_path}", "--replace")
    assert result.returncode == 2
    assert "not a run directory" in result.stderr
    assert precious.exists()


@pytest.mark.ray
def test_interrupt_leaves_no_process(tmp_path: Path, digits: Path) -> None:
    """Ctrl-C goes to all processes of a terminal, as here to all of the session's."""
    marker = uuid.uuid4().hex
    environment = {**os.environ, "ALEXNET_TEST": marker}
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)
    run, log = tmp_path / "run", tmp_path / "log"
    overrides = [f"data.path={digits}", f"run_dir={run}", "train.log_every=1"]
    overrides += ["cluster.metrics_port=0"]
    driver = start(["train", SMOKE, *overrides], environment, log, new_session=True)
    wait_until(lambda: "step      3" in log.read_text(), 120, "three steps")
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait(timeout=60) == 75, log.read_text()
    wait_until(lambda: not marked_processes(marker), 15, "the end of all processes")

    result = alexnet("evaluate", str(run))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["images"] == 359


def marked_processes(marker: str) -> list[psutil.Process]:
    marked = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ALEXNET_TEST") == marker:
                marked.append(process)
        except psutil.Error:
            continue
    return [process for process in marked if process.status() != psutil.STATUS_ZOMBIE]
