"""A trained model on its way out: written beside, read again, compared, and only then there.

What is exported takes images [n, side, side, 3], RGB in 0..255, and answers with the probability of
each class. It is described by the classes in the order of the answers, how an image becomes that
square, and which checkpoint it was. docs/export.md shows how each format is used.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import numpy as np

from alexnet.data.augment import Fitter
from alexnet.data.batches import evaluation_batches
from alexnet.data.images import Pixels, normalise
from alexnet.data.sources import VALIDATION
from alexnet.errors import AlexnetError, ConfigError, DataError
from alexnet.formats import DESCRIPTION, FORMATS, Array, Ask, Format, first_line
from alexnet.task import VIEW, open_dataset
from alexnet.trained import AT_ONCE, NO_COLOURS, PROBABILITIES, Trained

IMAGES = 100  # that an export is compared on, at most
TOLERANCE = 1e-4  # of a probability


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far what was written is from the checkpoint."""

    images: str  # how many and which
    difference: float  # the largest of any probability


def format_of(out: str) -> Format:
    """Return the format that the end of the name `out` stands for.

    Raises:
        ConfigError: none has this end, its packages are not here, or `out` cannot be made.
    """
    path, suffix = Path(out), "/" if out.endswith("/") else Path(out).suffix
    if suffix not in FORMATS:
        raise ConfigError(f"{out}: an export ends in .keras, .h5, .onnx or, as a SavedModel, in /")
    needs = FORMATS[suffix].needs
    if not all(map(find_spec, needs)):
        raise ConfigError(f"{out}: {suffix} needs more packages: pip install {' '.join(needs)}")
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{out}: there already; delete it or choose another name")
    if not path.parent.is_dir():
        raise ConfigError(f"{out}: no such folder: {path.parent}")
    return FORMATS[suffix]


def export(trained: Trained, out: str, files: Sequence[Path] = ()) -> Comparison:
    """Write a model to `out`, if it is found to answer as the checkpoint when it is read again.

    They are compared on some of the image `files`, if there are any; or on held-out images of the
    set that it was trained on, if that can be had; or on random pixels.

    Raises:
        ConfigError: of the name `out`.
        DataError: one of the files is no image.
        AlexnetError: it cannot be written or read, or answers otherwise; nothing is left of it.
    """
    form, path, description = format_of(out), Path(out), describe(trained)
    pixels, kind = _some_images(trained, files)
    images = f"{len(pixels)} {kind}"
    outputs = keras.layers.Softmax(name=PROBABILITIES)(trained.model.output)
    model = keras.Model(trained.model.input, outputs, name=trained.model.name)
    expected = _answers(lambda part: np.asarray(model(part, training=False)), pixels)
    with TemporaryDirectory(prefix=".export-", dir=path.parent) as beside:
        partial = Path(beside, path.name)
        try:
            form.write(model, description, partial)
            ask, told = form.read(partial)
            difference = float(np.abs(_answers(ask, pixels) - expected).max())
            if told != description:
                raise ValueError(f"{DESCRIPTION} is not what was written")
        except Exception as error:  # each format's library has errors of its own
            raise AlexnetError(f"{out}: cannot be written: {first_line(error)}") from error
        if not difference <= TOLERANCE:  # which a NaN is not either
            raise AlexnetError(
                f"{out}: not written: {difference:.1e} from {trained.name} on {images}, "
                f"at most {TOLERANCE} allowed"
            )
        partial.rename(path)
    return Comparison(images=images, difference=difference)


def describe(trained: Trained) -> str:
    """Return what is to be known of a model beside its weights, as JSON."""
    facts = {
        "checkpoint": trained.name,
        "step": trained.step,
        "dataset": trained.data.path,
        "classes": list(trained.classes),
        **{name: getattr(trained.data, name) for name in VIEW},
    }
    return json.dumps(facts, indent=1)


def _answers(ask: Ask, pixels: Pixels) -> Array:
    parts = range(0, len(pixels), AT_ONCE)
    return np.concatenate([ask(pixels[at : at + AT_ONCE].astype(np.float32)) for at in parts])


def _some_images(trained: Trained, files: Sequence[Path]) -> tuple[Pixels, str]:
    """Return images as the model sees them, uint8 [n, side, side, 3], and what they are."""
    settings = {"evaluation_crops": 1, "on_bad_row": "skip"}
    data, side = trained.data.model_copy(update=settings), trained.data.image_size
    if files:
        fitter = Fitter(data, NO_COLOURS)
        some = files[:: -(-len(files) // IMAGES)]  # of all folders
        return np.concatenate([_fitted(fitter, path, side) for path in some]), "images"
    try:
        dataset = open_dataset(data)
        rows = range(min(IMAGES, dataset.splits[VALIDATION].rows))
        batches = evaluation_batches(dataset, VALIDATION, rows, data, AT_ONCE)
        held_out = np.concatenate([views[:, 0] for views, _ in batches])
        return held_out, f"held-out images of {data.path}"
    except (AlexnetError, OSError) as error:
        pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, side, side, 3), np.uint8)
        return pixels, f"images of random pixels ({error})"


def _fitted(fitter: Fitter, path: Path, side: int) -> Pixels:
    """Return an image file as uint8 [1, side, side, 3]."""
    pixels = np.empty((1, side, side, 3), np.uint8)
    try:
        upright, _ = normalise(path.read_bytes())
        fitter.evaluate(upright, pixels)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return pixels
