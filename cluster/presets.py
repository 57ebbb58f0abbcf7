"""The configs that come with this package, and what training by each of them costs."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from alexnet.config import load
from alexnet.data.shards import ShardSet
from alexnet.data.sources import TRAIN
from alexnet.errors import ConfigError, DataError
from alexnet.memory import FLOAT
from cluster.config import JobConfig
from cluster.scaling import IMAGES, layers_of

FOLDER = Path(__file__).parents[1] / "configs"  # installed beside this package, too
# Training images and classes of sets as published, by the folder that a config has them in.
PUBLISHED = {
    "digits": (1438, 10),
    "catdog": (2000, 2),
    "cifar10": (50_000, 10),
    "imagenet": (IMAGES, 1000),
}


def names() -> list[str]:
    """Return what the presets are called."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(config: str) -> Path:
    """Return the file that `config` names: a path, or a preset where there is no such file.

    Raises:
        ConfigError: a word that is neither.
    """
    path = Path(config)
    if path.is_file() or path.name != config or path.suffix:
        return path
    if config in names():
        return FOLDER / f"{config}.yaml"
    near = difflib.get_close_matches(config, names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(names())}"
    raise ConfigError(f"{config}: no such file, nor a preset; {hint}")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A config and what it costs; what depends on a set that is nowhere known is None."""

    name: str
    about: str  # its first sentence
    model: str
    image_size: int
    global_batch: int
    epochs: int
    training_images: int | None
    classes: int | None
    parameters: int | None
    flops_per_step: int | None  # of forward and backward passes
    steps: int | None

    @staticmethod
    def read(name: str) -> "Preset":
        """Read a preset, and count."""
        path = FOLDER / f"{name}.yaml"
        config = load(JobConfig, path)
        train, size = config.train, config.data.image_size
        images, classes = _size(config.data.path)
        layers = layers_of(config.model, size, classes) if classes else ()
        steps = images // train.global_batch * train.epochs if images else None
        operations = sum(layer.forward + layer.backward for layer in layers)
        return Preset(
            name=name,
            about=first_sentence(path.read_text()),
            model=config.model.name,
            image_size=size,
            global_batch=train.global_batch,
            epochs=train.epochs,
            training_images=images,
            classes=classes,
            parameters=sum(layer.size for layer in layers) // FLOAT or None,
            flops_per_step=2 * operations * train.global_batch or None,
            steps=min(steps, train.max_steps or steps) if steps else None,
        )

    @property
    def images(self) -> int | None:
        """That a whole run takes in."""
        return self.steps and self.steps * self.global_batch

    @property
    def flops(self) -> int | None:
        """Of a whole run."""
        return self.steps and self.flops_per_step and self.steps * self.flops_per_step


def first_sentence(text: str) -> str:
    """Return the first sentence of the comment that a file begins with."""
    comment = re.match(r"(?:#.*\n)*", text)
    lines = comment[0].splitlines() if comment else []
    words = " ".join(line.strip("# ") for line in lines)
    return re.split(r"(?<=\.)\s", words)[0]


def _size(path: str) -> tuple[int | None, int | None]:
    """Training images and classes of the set at `path`: of the one there, or as published."""
    try:
        dataset = ShardSet.open(path)
        return dataset.splits[TRAIN].rows, len(dataset.classes)
    except DataError:
        return PUBLISHED.get(Path(path).name, (None, None))
