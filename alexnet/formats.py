"""The forms in which a model leaves: Keras, HDF5, SavedModel, ONNX.

Each can be used with no more than its own library. A text that describes the model,
`alexnet.json`, travels inside.
"""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from alexnet.errors import DataError

DESCRIPTION = "alexnet.json"
WITH_LAYERS = (".keras", ".h5")  # from which a model comes back as one that can be trained

Array = npt.NDArray[np.float32]
Ask = Callable[[Array], Array]  # of images to answers


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a model and its description are written to a path, and how both are read again."""

    write: Callable[[keras.Model, str, Path], None]
    read: Callable[[Path], tuple[Ask, str]]
    needs: tuple[str, ...] = ()  # packages besides those that training needs


def read_layers(path: Path) -> tuple[keras.Model, str]:
    """Return the model in a file `WITH_LAYERS`, and its description.

    Raises:
        DataError: no such file, or not one that was exported.
    """
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as file:
                description = file.read(DESCRIPTION).decode()
        else:
            with h5py.File(path) as file:
                description = file[DESCRIPTION].asstr()[()]
        return keras.saving.load_model(path, compile=False), description
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not an exported model: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Return how a library's error begins: Keras' go on with all of a config."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _read_keras(path: Path) -> tuple[Ask, str]:
    model, description = read_layers(path)
    return lambda images: np.asarray(model(images, training=False)), description


def _write_keras(model: keras.Model, description: str, path: Path) -> None:
    model.save(path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(DESCRIPTION, description)


def _write_h5(model: keras.Model, description: str, path: Path) -> None:
    """Write HDF5 as Keras does, but for the config: its own does not say whose an operation is.

    Keras would look for `Split` among its layers and find none. Written as in a .keras file, with
    the module of each, the config is understood by the same reader.
    """
    model.save(path)
    config = {"class_name": type(model).__name__, "config": model.get_config()}
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = json.dumps(config)
        file[DESCRIPTION] = description


def _write_saved_model(model: keras.Model, description: str, path: Path) -> None:
    archive = keras.export.ExportArchive()  # `model.export` would write each weight twice
    spec = keras.InputSpec(shape=model.input.shape, dtype="float32", name="image")
    archive.add_endpoint("serve", lambda image: model(image, training=False), [spec])
    archive.write_out(path, verbose=False)
    extra = path / "assets.extra"
    extra.mkdir()
    (extra / DESCRIPTION).write_text(description)


def _read_saved_model(path: Path) -> tuple[Ask, str]:
    loaded = tf.saved_model.load(str(path))
    description = (path / "assets.extra" / DESCRIPTION).read_text()
    return lambda images: np.asarray(loaded.serve(images)), description


def _write_onnx(model: keras.Model, description: str, path: Path) -> None:
    """Write ONNX by tf2onnx, with the weights as inputs, and make them constants afterwards.

    Constants it copies again and again: 12 GB, and a minute, for the network of 2012.
    """
    import onnx
    import tf2onnx

    trained, others = model.trainable_variables, model.non_trainable_variables

    def answer(image: tf.Tensor, *weights: tf.Tensor) -> dict[str, tf.Tensor]:
        parts = weights[: len(trained)], weights[len(trained) :]
        return {"probabilities": model.stateless_call(*parts, image, training=False)[0]}

    image = tf.TensorSpec(model.input.shape, tf.float32, name="image")
    weights = {v.path.replace("/", "_"): v.value for v in (*trained, *others)}
    specs = [tf.TensorSpec(value.shape, value.dtype, name) for name, value in weights.items()]
    function = tf.function(answer, input_signature=[image, *specs], autograph=False)
    whole, _ = tf2onnx.convert.from_function(function, function.input_signature)

    captures = function.get_concrete_function().graph.captures  # the mean and scale of colours
    weights |= {inside.name: outside for outside, inside in captures}
    graph = whole.graph
    used = {name for node in graph.node for name in node.input}
    for name, value in weights.items():
        if name in used:
            graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), name))
    inputs = [each for each in graph.input if each.name == "image"]
    del graph.input[:]
    graph.input.extend(inputs)
    onnx.helper.set_model_props(whole, {DESCRIPTION: description})
    onnx.save(whole, path)


def _read_onnx(path: Path) -> tuple[Ask, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    description = session.get_modelmeta().custom_metadata_map[DESCRIPTION]
    return lambda images: session.run(None, {"image": images})[0], description


FORMATS = {
    ".keras": Format(write=_write_keras, read=_read_keras),
    ".h5": Format(write=_write_h5, read=_read_keras),
    ".onnx": Format(write=_write_onnx, read=_read_onnx, needs=("tf2onnx", "onnxruntime")),
    "/": Format(write=_write_saved_model, read=_read_saved_model),  # a folder
}
