"""What a run is put together from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexnet.config import RunConfig
from alexnet.exchange import Alone
from alexnet.task import Task


@pytest.mark.parametrize(
    ("settings", "white"),
    [
        ({}, 1.84),  # (255 - 78) / 96, in each colour of the digits
        ({"data": {"standardize": False}}, 1.0),
        ({"model": {"name": "original"}}, 177.0),
    ],
)
def test_how_a_pixel_is_seen(settings: dict[str, Any], white: float, digits: Path) -> None:
    data = {"path": str(digits), "image_size": 67, **settings.get("data", {})}
    task = Task.build(RunConfig.model_validate({**settings, "data": data}), Alone())
    pixels = np.full((1, 67, 67, 3), 255.0, np.float32)
    seen = task.step.model.get_layer("normalize")(pixels).numpy()
    np.testing.assert_allclose(seen, white, rtol=0.03)
    mean, std = (np.array(task.facts["model"][name]) for name in ("mean", "std"))
    np.testing.assert_allclose(seen[0, 0, 0], (255 - mean) / std, rtol=1e-5)
