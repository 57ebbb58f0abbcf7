"""What is exported answers as the checkpoint does, to somebody who has never seen this package."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from alexnet.checkpoint import write_files
from alexnet.config import ModelConfig
from alexnet.data.shards import ShardSet
from alexnet.errors import AlexnetError, ConfigError, DataError
from alexnet.export import export, format_of
from alexnet.formats import FORMATS, WITH_LAYERS, Format
from alexnet.model import build_model
from alexnet.step import model_variables
from alexnet.trained import Trained
from cluster import cli
from tests.clusters import ROOT

SIDE = 67
HAS_ONNX = all(map(find_spec, FORMATS[".onnx"].needs))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs pip install tf2onnx onnxruntime")
ENDS = [pytest.param(end, marks=needs_onnx) if end == ".onnx" else end for end in FORMATS]


def lively(model: keras.Model) -> keras.Model:
    """Give every variable numbers that matter, and every image answers of its own."""
    rng = np.random.default_rng(3)
    for key, variable in model_variables(model).items():
        if key.endswith("kernel"):
            deviation = np.sqrt(2 / np.prod(variable.shape[:-1]))  # signals keep their size
            variable.assign(rng.normal(0, deviation, variable.shape))
        else:
            variable.assign(rng.uniform(0.1, 0.3, variable.shape))
    images = rng.integers(0, 256, (8, 1, 1, 3)) * rng.random((8, SIDE, SIDE, 1), np.float32)
    logits = np.asarray(model(images.astype(np.float32), training=False))
    kernel = model.get_layer("logits").kernel
    kernel.assign(kernel * (2 / logits.std(axis=0).mean()))
    return model


def save(name: str, digits: Path, folder: Path) -> Path:
    """Write a checkpoint of a lively network to `folder`."""
    dataset, config = ShardSet.open(digits), ModelConfig.model_validate({"name": name})
    colours = {"mean": dataset.mean, "std": dataset.std}
    view = {"image_size": SIDE, "fit": "stretch", "resize": 256, "evaluation_crops": 1}
    model = lively(build_model(config, SIDE, len(dataset.classes), dataset.mean, dataset.std))
    facts = {
        "step": 7,
        "dataset": str(digits),
        "model": {**config.model_dump(), **colours, **view, "classes": dataset.classes},
        "order": {"micro_batch": 8},
    }
    state = {key: variable.numpy() for key, variable in model_variables(model).items()}
    write_files(folder, state, facts)
    return folder


@pytest.fixture(scope="module", params=["seed", "bn"])
def another(
    request: pytest.FixtureRequest, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    return Trained.load(str(save(request.param, digits, tmp_path_factory.mktemp("checkpoint"))))


@pytest.fixture(scope="module")
def checkpoint(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the network of 2012, which has groups, LRN and dropout."""
    return save("original", digits, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def trained(checkpoint: Path) -> Trained:
    return Trained.load(str(checkpoint))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As large as the network's view, so that no two ways to resize can differ."""
    pixels = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def exports(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied: a model is 90 MB."""
    folder = tmp_path / "exports"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def alexnet(*arguments: object) -> int:
    """Run the command line here; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["alexnet", *map(str, arguments)])
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(SystemExit) as end:
            cli.main()
    return int(end.value.code or 0)


@pytest.mark.parametrize("end", ENDS)
def test_other_models(another: Trained, end: str, exports: Path, digits: Path) -> None:
    found = export(another, f"{exports}/model{end}")
    assert found.images == f"100 held-out images of {digits}"
    assert found.difference < 1e-5
    assert [path.name for path in exports.iterdir()] == [f"model{end}".rstrip("/")]


def test_the_guide_s_own_code(
    checkpoint: Path, trained: Trained, photo: Path, exports: Path, digits: Path
) -> None:
    """Each format by the library that it is for, as docs/export.md says, in another process."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    ends = [end for end in FORMATS if HAS_ONNX or end != ".onnx"]
    for end in ends:
        assert alexnet("export", checkpoint, f"{exports}/model{end}", "--images", photo) == 0
    shutil.copy(photo, exports / "photo.jpg")  # told by its first bytes, not by its name
    asking = [block for block in blocks if "chances" in block]
    assert len(asking) == len(FORMATS)
    usable = [block for block in asking if HAS_ONNX or "onnx" not in block]
    told = "print('told', json.dumps([about, chances.tolist()]))\n"
    program = blocks[0] + "".join(block + told for block in usable)
    program += "import sys\nassert not {'alexnet', 'cluster'} & set(sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=exports, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr

    (found,) = trained.predict([photo])
    printed = done.stdout.splitlines()
    assert printed[::2] == [next(iter(found.probabilities))] * len(usable)
    for line in printed[1::2]:
        about, (chances,) = json.loads(line.removeprefix("told "))
        assert about == {
            "checkpoint": str(checkpoint),
            "step": 7,
            "dataset": str(digits),
            "classes": list(trained.classes),
            "image_size": SIDE,
            "fit": "stretch",
            "resize": 256,
            "evaluation_crops": 1,
        }
        named = dict(zip(about["classes"], chances, strict=True))
        assert named == pytest.approx(found.probabilities, abs=1e-5)
    assert max(found.probabilities.values()) > 0.2  # a model of few opinions would prove little


@pytest.mark.parametrize("end", WITH_LAYERS)
def test_a_file_is_as_good_as_its_checkpoint(
    trained: Trained, end: str, exports: Path, photo: Path
) -> None:
    """To `predict`, `evaluate` and `export`."""
    export(trained, f"{exports}/model{end}", [photo])
    again = Trained.load(f"{exports}/model{end}")
    assert model_variables(again.model).keys() == model_variables(trained.model).keys()
    assert (again.name, again.step) == (trained.name, trained.step)
    assert (again.classes, again.data) == (trained.classes, trained.data)
    (one,), (other,) = trained.predict([photo]), again.predict([photo])
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_other_files_are_no_models(exports: Path, trained: Trained) -> None:
    (exports / "text.keras").write_text("a text")
    (exports / "text.h5").write_text("a text")
    keras.Model(trained.model.input, trained.model.output).save(exports / "other.keras")
    for name in ("text.keras", "text.h5", "other.keras"):
        with pytest.raises(DataError, match=f"{name}: not an exported model: .") as error:
            Trained.load(f"{exports}/{name}")
        assert "\n" not in str(error.value)
    for name in ("none.keras", "none.h5"):
        with pytest.raises(DataError, match=f"{name}: no such run, checkpoint or export"):
            Trained.load(f"{exports}/{name}")
    with pytest.raises(DataError, match="leave --best out"):
        Trained.load(f"{exports}/text.keras", best=True)


@pytest.mark.parametrize("shift", [2e-3, np.nan])
def test_other_answers_leave_nothing(
    trained: Trained,
    exports: Path,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    shift: float,
) -> None:
    def write(model: keras.Model, description: str, path: Path) -> None:
        bias = model.get_layer("logits").bias
        before = bias.numpy()
        bias.assign(before + np.float32(shift) * np.arange(len(before)))
        form.write(model, description, path)
        bias.assign(before)

    form = FORMATS[".keras"]
    monkeypatch.setitem(FORMATS, ".keras", Format(write=write, read=form.read))
    with pytest.raises(AlexnetError, match=r"from .* on 1 images, at most 0.0001 allowed"):
        export(trained, f"{exports}/model.keras", [photo])
    assert list(exports.iterdir()) == []


def test_what_cannot_be_read_again_leaves_nothing(
    trained: Trained, exports: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = Format(write=lambda model, text, path: model.save(path), read=FORMATS[".keras"].read)
    monkeypatch.setitem(FORMATS, ".keras", form)  # the description is left out
    with pytest.raises(AlexnetError, match=r"cannot be written: .*alexnet\.json") as error:
        export(trained, f"{exports}/model.keras", [photo])
    assert error.value.exit_code == 1
    assert list(exports.iterdir()) == []


def test_random_pixels_where_the_set_is_not_to_be_had(trained: Trained, exports: Path) -> None:
    nowhere = trained.data.model_copy(update={"path": f"{exports}/nowhere"})
    found = export(replace(trained, data=nowhere), f"{exports}/model.keras")
    assert found.images.startswith("100 images of random pixels (")
    assert "nowhere: no such dataset" in found.images


def test_a_file_that_is_no_image_is_told(trained: Trained, exports: Path) -> None:
    (exports / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"notes.txt: not an image"):
        export(trained, f"{exports}/model.keras", [exports / "notes.txt"])
    assert [path.name for path in exports.iterdir()] == ["notes.txt"]


def test_names_that_cannot_be_written(
    checkpoint: Path, exports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (exports / "there.keras").touch()
    (exports / "there").mkdir()
    expected = {
        "model.pb": "an export ends in .keras, .h5, .onnx or, as a SavedModel, in /",
        "model": "an export ends in .keras, .h5, .onnx or, as a SavedModel, in /",
        "there.keras": "there already",
        "there/": "there already",
        "none/model.h5": "no such folder",
    }
    for name, problem in expected.items():
        assert alexnet("export", checkpoint, f"{exports}/{name}") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"alexnet: {exports}/{name}: {problem}")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needy = replace(FORMATS[".onnx"], needs=("json", "no_such_package"))
    monkeypatch.setitem(FORMATS, ".onnx", needy)
    with pytest.raises(ConfigError, match="needs more packages: pip install json no_such_package"):
        format_of("model.onnx")
