"""A trained model as it is used: found by its name, scored, asked about images."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
import yaml

from alexnet.archive import Archive, open_archive
from alexnet.checkpoint import Checkpoint, read
from alexnet.config import DataConfig, ModelConfig
from alexnet.data.augment import Fitter
from alexnet.data.images import normalise
from alexnet.data.sources import IMAGE_SUFFIXES
from alexnet.errors import ConfigError, DataError
from alexnet.exchange import Alone
from alexnet.formats import WITH_LAYERS, read_layers
from alexnet.model import build_model
from alexnet.own_model import rebuild
from alexnet.step import model_variables
from alexnet.task import VIEW, evaluator, open_dataset
from alexnet.weight_average import AVERAGE

AT_ONCE = 32  # images
PROBABILITIES = "probabilities"  # the layer that is put behind the logits of what is exported
NO_COLOURS = ((0.0,) * 3,) * 3  # nothing is augmented here


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of an image, or why it says nothing."""

    image: str
    probabilities: dict[str, float]  # by class, the likeliest first
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model with its weights, its classes, and how it sees an image."""

    name: str  # of the checkpoint
    step: int
    model: keras.Model  # from images to logits
    classes: tuple[str, ...]
    data: DataConfig  # its path is the set that it was trained on
    micro_batch: int

    @staticmethod
    def load(name: str, best: bool = False) -> "Trained":
        """Build the model of a checkpoint.

        Args:
            name: a checkpoint folder; or a run directory, or the URI of its archive: then its
                newest one that verifies; or a .keras or .h5 file that was exported.
            best: of a run, the one that scored highest while it was trained.

        Raises:
            DataError: nothing of that name, or no checkpoint that verifies.
        """
        if "://" not in name and not Path(name).exists():
            raise DataError(f"{name}: no such run, checkpoint or export (see `alexnet runs`)")
        if Path(name).suffix in WITH_LAYERS and not best:
            return _exported(Path(name))
        saved = _best(name) if best else _newest(name)
        settings = dict(saved.facts["model"])
        view = {key: settings.pop(key) for key in VIEW}
        classes = settings.pop("classes")
        model, variables = _built(saved, settings, view["image_size"], len(classes))
        for key, variable in variables.items():
            variable.assign(saved.state.get(AVERAGE + key, saved.state[key]))
        return Trained(
            name=str(saved.path),
            step=saved.step,
            model=model,
            classes=tuple(classes),
            data=DataConfig(path=saved.facts["dataset"], **view),
            micro_batch=saved.facts["order"]["micro_batch"],
        )

    def evaluate(self, dataset_path: str | None = None) -> dict[str, Any]:
        """Score on a prepared set's validation split (None: of the set it was trained on).

        Raises:
            DataError: no such dataset.
            ConfigError: its classes are not the model's.
        """
        data = self.data.model_copy(update={"path": dataset_path or self.data.path})
        dataset = open_dataset(data)
        if dataset.classes != self.classes:
            raise ConfigError(
                f"{data.path}: its classes ({_listed(dataset.classes)}) are not the "
                f"{len(self.classes)} that {self.name} was trained on "
                f"({_listed(self.classes)}); name a set with these"
            )
        score = evaluator(self.model, dataset, data, self.micro_batch, Alone())
        scores, confusion = score(), score.confusion
        by_class = confusion.diagonal() / np.maximum(1, confusion.sum(1))
        return {
            "checkpoint": self.name,
            "step": self.step,
            **scores,
            "top1_by_class": dict(zip(self.classes, by_class.round(4).tolist(), strict=True)),
            "confusion": confusion.tolist(),
        }

    def predict(self, images: Sequence[Path]) -> Iterator[Prediction]:
        """Yield what the model says of each image file, in order; one that is none has a problem.

        An image is turned upright as its EXIF says, and has its transparent parts made white.
        """
        fitter = Fitter(self.data, NO_COLOURS)
        size, views = self.data.image_size, self.data.evaluation_crops
        for at in range(0, len(images), AT_ONCE):
            paths = images[at : at + AT_ONCE]
            pixels = np.zeros((len(paths), views, size, size, 3), np.uint8)
            problems = [_fit(fitter, path, out) for path, out in zip(paths, pixels, strict=True)]
            for path, chances, problem in zip(paths, self._ask(pixels), problems, strict=True):
                order = [] if problem else np.argsort(-chances, kind="stable").tolist()
                probabilities = {self.classes[label]: float(chances[label]) for label in order}
                yield Prediction(image=str(path), probabilities=probabilities, problem=problem)

    def _ask(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return probabilities [n, classes] of [n, views, size, size, 3]: means over the views."""
        flat = pixels.reshape(-1, *pixels.shape[2:]).astype(np.float32)
        chances = keras.ops.softmax(self.model(flat, training=False))
        by_view = np.asarray(chances).reshape(*pixels.shape[:2], -1)
        return np.asarray(by_view.mean(axis=1))


def image_files(names: Iterable[str]) -> list[Path]:
    """Return files as they are named, and those in folders that are called like images, sorted.

    Raises:
        DataError: a name of nothing, or a folder without an image.
    """
    files: list[Path] = []
    for path in map(Path, names):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise DataError(f"{path}: no image in it ({', '.join(sorted(IMAGE_SUFFIXES))})")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    return files


def _fit(fitter: Fitter, path: Path, out: npt.NDArray[np.uint8]) -> str | None:
    """Write the views of an image file into `out`; return why not, if so."""
    try:
        upright, _ = normalise(path.read_bytes())
        fitter.evaluate(upright, out)
    except (OSError, DataError) as error:
        return str(getattr(error, "strerror", None) or error)
    return None


def _built(
    saved: Checkpoint, settings: dict[str, Any], image_size: int, classes: int
) -> tuple[keras.Model, dict[str, tf.Variable]]:
    """Return the model of a checkpoint, untrained, and its variables by their names there."""
    if settings["name"] == "own":
        try:
            return rebuild(settings["network"])
        except DataError as error:
            raise DataError(f"{saved.path}: {error}") from error
    colours = settings.pop("mean"), settings.pop("std")
    model = build_model(ModelConfig(**settings), image_size, classes, *colours)
    return model, model_variables(model)


def _exported(path: Path) -> Trained:
    model, description = read_layers(path)
    facts = json.loads(description)
    return Trained(
        name=facts["checkpoint"],
        step=facts["step"],
        model=keras.Model(model.input, model.get_layer(PROBABILITIES).input, name=model.name),
        classes=tuple(facts["classes"]),
        data=DataConfig(path=facts["dataset"], **{key: facts[key] for key in VIEW}),
        micro_batch=AT_ONCE,
    )


def _listed(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:4])
    return f"{shown} and {len(classes) - 4} more" if len(classes) > 4 else shown


def _newest(name: str) -> Checkpoint:
    archive = _archive(name)
    saved = archive.newest() if archive else read(Path(name))
    if saved is None:
        raise DataError(f"{name}: no checkpoint that verifies")
    return saved


def _best(name: str) -> Checkpoint:
    archive = _archive(name)
    marked = archive.best() if archive else None
    if archive is None or marked is None:
        raise DataError(f"{name}: no run with a best checkpoint; leave --best out")
    return archive.read_step(marked.step)


def _archive(name: str) -> Archive | None:
    """Return the archive that `name` stands for, unless it is a checkpoint."""
    run = Path(name)
    if "://" in name:
        return open_archive(run, name)
    try:
        settings = yaml.safe_load((run / "config.yaml").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return open_archive(run, None) if (run / "checkpoints").is_dir() else None
    return open_archive(run, settings["checkpoint"].get("path"))
