"""docs/tutorial.md by its own words: every command in it, one after the other, on 200 photos."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.clusters import BIN, ROOT

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
LEFT = """
kill %1
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL)


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


@pytest.mark.ray
@pytest.mark.slow
def test_every_command_of_the_tutorial(tmp_path: Path) -> None:
    photograph(tmp_path / "photos", 100)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (server,) = blocks("python")
    (tmp_path / "serve.py").write_text(server)
    script = "set -e\n" + "\n".join(blocks("sh")) + LEFT
    done = subprocess.run(
        ["bash", "-m", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=800,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert "train: 1" in told and "2 classes: circles, squares" in told
    assert "about 0:" in told  # the dry run's time
    assert "completed: " in told
    assert (tmp_path / "runs" / "photos" / "report.html").stat().st_size > 10_000
    assert "from the checkpoint on" in told
    assert re.search(r'\{"circles": 0\.\d+, "squares": 0\.\d+\}|\{"circles": [01]\.0, ', told)
