"""What several test modules need: a prepared set, and folders of small images."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from alexnet.data.prepare import prepare

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow reads it
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")

ImageTree = Callable[..., Path]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as a prepared set. Shared: not to be written to."""
    folder = tmp_path_factory.mktemp("digits")
    prepare("digits", folder)
    return folder


@pytest.fixture
def image_tree(tmp_path: Path) -> ImageTree:
    """Make a folder `root` below tmp_path with an image, made from its name, at each path."""

    def make(*paths: str, root: str = "images", side: int = 8) -> Path:
        folder = tmp_path / root
        for path in paths:
            rng = np.random.default_rng(list(path.encode()))
            pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / path)
        return folder

    return make


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A run directory with a checkpoint of digits at step 7. Shared: not to be written to."""
    from alexnet.archive import open_archive
    from alexnet.config import RunConfig
    from alexnet.exchange import Alone
    from alexnet.task import Task

    run = tmp_path_factory.mktemp("run")
    data = {"path": str(digits), "image_size": 67}
    task = Task.build(RunConfig.model_validate({"data": data, "seed": 5}), Alone())
    state = {name: value.numpy() for name, value in task.step.variables.items()}
    open_archive(run, None).take_over("test").write(7, state, task.facts)
    (run / "config.yaml").write_text("checkpoint: {every: 5}")
    return run
