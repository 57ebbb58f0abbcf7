"""A program of somebody's own trains a network of its own, on a real Ray cluster."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from alexnet.errors import ConfigError
from cluster.parcel import pack, unpack
from tests.clusters import ROOT, RayCluster, ray_cluster

CONFIG = """
data: {{path: {data}, image_size: 67}}
train: {{global_batch: 24, micro_batch: 8, max_steps: 2, log_every: 1, check_replicas_every: 1}}
exchange: {{dense_layers: factored}}
schedule: {{learning_rate: 0.01}}
checkpoint: {{every: 2}}
cluster: {{workers: 2, threads_per_worker: 1, metrics_port: 0}}
"""
MINE = """
import keras


def network(image_size, classes, width=8):
    x = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(width, 9, 8, activation="relu")]
    return keras.Sequential([*x, keras.layers.Flatten(), keras.layers.Dense(classes)])


def another(image_size, classes):
    return network(image_size, classes, width=4)
"""
PROGRAM = """
import json, os
from pathlib import Path
from alexnet.errors import AlexnetError
from cluster import launch
from mine import another, network


def refused(network, **settings):
    try:
        launch(network, "config.yaml", **settings)
    except AlexnetError as error:
        return error.exit_code, str(error)


first = launch(network, "config.yaml", run_dir="run")
errors = [refused(another, run_dir="run"), refused(lambda size, classes: 3, run_dir="other")]
last = launch(network, "config.yaml", "train.max_steps=4", run_dir=Path("run"), train={"epochs": 1})
gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
Path("said.json").write_text(json.dumps([first, errors, last, gpus]))
"""
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(2, tmp_path_factory.mktemp("ray")) as running:
        yield running


def python(folder: Path, cluster: RayCluster, *arguments: str, timeout: float = 600) -> str:
    """Run Python in `folder`, and return what it has printed."""
    environment = {**cluster.environment(), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "none"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def launched(
    tmp_path_factory: pytest.TempPathFactory, digits: Path, cluster: RayCluster
) -> tuple[Path, list[Any]]:
    """Where three launches of one program were, and what it has said of them."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "config.yaml").write_text(CONFIG.format(data=digits))
    (folder / "mine.py").write_text(MINE)
    (folder / "program.py").write_text(PROGRAM)
    python(folder, cluster, "program.py")
    said: list[Any] = json.loads((folder / "said.json").read_text())
    return folder, said


@pytest.mark.ray
def test_it_trains_and_goes_on(launched: tuple[Path, list[Any]]) -> None:
    """With weights that are compared by hash on both ranks after each step."""
    folder, (first, _, last, gpus) = launched
    assert (first["status"], first["steps"], first["world_size"]) == ("completed", 2, 2)
    assert (last["status"], last["steps"], last["attempts"]) == ("completed", 4, 1)
    assert first["weights_sha256"] != last["weights_sha256"]
    assert json.loads((folder / "run" / "summary.json").read_text()) == last
    settings = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert settings["model"]["name"] == "own"
    steps = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    assert [each["step"] for each in steps if each["kind"] == "step"] == [1, 2, 3, 4]
    assert gpus == "none"


@pytest.mark.ray
def test_mistakes_are_errors_with_exit_codes(launched: tuple[Path, list[Any]]) -> None:
    folder, (_, errors, _, _) = launched
    (code, other), (wrong, nothing) = errors
    assert (code, wrong) == (2, 2)
    assert re.search(r"a checkpoint of another model: network.*filters is 8 there, 4 here", other)
    assert nothing == "network(67, 10): returned int; expected a keras.Model"
    assert not (folder / "other" / "summary.json").exists()


@pytest.mark.ray
def test_the_verbs_take_its_run(launched: tuple[Path, list[Any]], cluster: RayCluster) -> None:
    folder, (_, _, last, _) = launched
    scores = json.loads(python(folder, cluster, "-m", "cluster", "evaluate", "run"))
    assert scores["top1"] == pytest.approx(last["eval"]["top1"])
    Image.new("RGB", (40, 30), "white").save(folder / "white.png")
    arguments = ["-m", "cluster", "predict", "run", "white.png", "--json"]
    told = json.loads(python(folder, cluster, *arguments))
    assert sum(told["probabilities"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.ray
@pytest.mark.slow
def test_the_walk_through(digits: Path, cluster: RayCluster, tmp_path: Path) -> None:
    """Each Python block of docs/own-model.md, in order, with two steps of small batches."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "smoke.yaml").write_text(CONFIG.format(data=digits))
    own, resnet, ending, use = BLOCK.findall((ROOT / "docs" / "own-model.md").read_text())
    for at, block in enumerate([own[: own.index("launch(network")] + ending, resnet, use]):
        (tmp_path / f"{at}.py").write_text(block)
        python(tmp_path, cluster, f"{at}.py", timeout=900)
    for run, name in [("small", "sequential"), ("resnet", "resnet50")]:
        records = [json.loads(line) for line in (tmp_path / "runs" / run / "metrics.jsonl").open()]
        assert [each["step"] for each in records if each["kind"] == "step"] == [1, 2]
        assert name in (tmp_path / "runs" / run / "logs" / "rank-0.log").read_text()


def test_importing_it_is_light() -> None:
    heavy = "{'ray', 'tensorflow', 'keras', 'pyarrow', 'pydantic', 'rich'}"
    program = f"import sys; from cluster import launch; sys.exit(str({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "set()"


def test_what_cannot_travel_is_told() -> None:
    with pytest.raises(ConfigError, match=r"network = 3: expected a function"):
        pack(3)  # type: ignore[arg-type]
    lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"cannot be sent to the ranks: .*lock"):
        pack(lambda image_size, classes: lock)
    with pytest.raises(ConfigError, match=r"cannot be loaded at a rank: No module named 'nowhere'"):
        unpack(b"cnowhere\nnetwork\n.")
