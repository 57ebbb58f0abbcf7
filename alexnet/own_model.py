"""A network that somebody else's function builds: what it must be like, and how it is kept.

Like those of `alexnet.model` it takes pixels as they are, 0 to 255, and answers with logits. It is
trained as it is, with no layer of ours around it, so that what is written down is all of it. A
checkpoint keeps it as Keras' own description of its layers, in which there is no code.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from alexnet.errors import AlexnetError, ConfigError, DataError
from alexnet.model import computing_in
from alexnet.step import changed_by_training, is_seed, model_variables

PROBABILITIES = ("softmax", "sigmoid")
CODE = ("Lambda", "__lambda__")  # layers that are described by their bytecode
CHARACTERS = 300  # of an error's text
Network = Callable[[int, int], keras.Model]  # of image size, pixels, and number of classes
log = logging.getLogger(__name__)


def build_own(
    network: Network, image_size: int, classes: int, precision: str = "float32"
) -> keras.Model:
    """Return what `network` builds, with one tensor as its input and one as its output.

    `precision` is that of layers that ask for none.

    Raises:
        ConfigError: it fails, or what it builds cannot be trained here.
    """
    call = f"network({image_size}, {classes})"
    try:
        with computing_in(precision):
            model = network(image_size, classes)
            _check_kind(model)
            if not model.built:
                model.build((None, image_size, image_size, 3))
        _check_ends(model, image_size, classes)
        model = _flat(model)
        _check_inside(model)
        describe(model)
    except Exception as error:
        if not isinstance(error, ConfigError):
            log.exception("%s", call)
        raise ConfigError(f"{call}: {_in_short(error)}") from error
    return model


def describe(model: keras.Model) -> dict[str, Any]:
    """Return what a model can be built from: its `layers`, as Keras describes them, and the names
    of its `variables`, in order. It is the same whatever precision the model computes in.

    Raises:
        ConfigError: a layer has none, or one that holds code.
    """
    try:
        text = json.dumps(keras.saving.serialize_keras_object(model))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError(f"Keras cannot describe it: {_in_short(error)}") from error
    for precision in ("mixed_bfloat16", "mixed_float16", "bfloat16", "float16"):
        text = text.replace(f'"{precision}"', '"float32"')
    layers = {**json.loads(text), "compile_config": None}
    if any(name in CODE for name in _class_names(layers)):
        raise ConfigError("a Lambda layer holds code, which no checkpoint may; use keras.ops")
    return {"layers": layers, "variables": [*model_variables(model)]}


def rebuild(description: Mapping[str, Any]) -> tuple[keras.Model, dict[str, tf.Variable]]:
    """Return the model of a description and its variables by the names that they have there.

    A description may come from anybody: no code in it is run.

    Raises:
        DataError: it has layers that are not Keras' own, and not registered with it, or code.
    """
    layers, names = description["layers"], description["variables"]
    try:
        if any(name in CODE for name in _class_names(layers)):
            raise DataError("a layer holds code")
        config = {**layers, "compile_config": None}
        model = _flat(keras.saving.deserialize_keras_object(config, safe_mode=True))
        # A model may be built in more than one way, and its variables then have other names.
        return model, dict(zip(names, model_variables(model).values(), strict=True))
    except Exception as error:  # whatever a description that is none makes Keras raise
        raise DataError(f"its network cannot be built: {_in_short(error)}") from error


def _check_kind(model: object) -> None:
    if not isinstance(model, keras.Model):
        raise ConfigError(f"returned {type(model).__name__}; expected a keras.Model")
    if not type(model).__module__.startswith("keras."):
        raise ConfigError(
            f"returned {type(model).__name__}; expected a keras.Sequential, or a keras.Model of "
            "inputs and outputs"
        )


def _check_ends(model: keras.Model, image_size: int, classes: int) -> None:
    """Check that one image goes in and a logit of each class comes out."""
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ConfigError(
            f"has {len(model.inputs)} inputs and {len(model.outputs)} outputs; expected one of each"
        )
    image, wanted = model.inputs[0].shape, (None, image_size, image_size, 3)
    if len(image) != 4 or any(
        have not in (None, want) for have, want in zip(image, wanted, strict=True)
    ):
        raise ConfigError(f"takes {tuple(image)}; expected {wanted}")
    if (answer := tuple(model.outputs[0].shape)) != (None, classes):
        raise ConfigError(f"answers with {answer}; expected {(None, classes)}: a logit a class")
    if (last := _last_function(model)) in PROBABILITIES:
        raise ConfigError(
            f"ends in a {last}; expected logits: leave it out (activation=None, or "
            "classifier_activation=None)"
        )


def _last_function(model: keras.Model) -> str:
    """Return the name of what is done last, in small letters."""
    last = model.outputs[0]._keras_history.operation
    if isinstance(last, keras.Model):
        return _last_function(last)
    return str(getattr(getattr(last, "activation", None), "__name__", type(last).__name__)).lower()


def _check_inside(model: keras.Model) -> None:
    """Check that a step learns all that it is meant to, and that a checkpoint holds all of it."""
    if not model.trainable_variables:
        raise ConfigError("has nothing to train")
    paths = [variable.path for variable in model.variables if not is_seed(variable)]
    if twice := sorted({path for path in paths if paths.count(path) > 1}):
        raise ConfigError(f"has two variables of the name {twice[0]}")
    changed, losses = changed_by_training(model)
    for variable in (*model.trainable_variables, *changed):
        if variable.dtype != "float32":
            raise ConfigError(f"{variable.path} is {variable.dtype}; what is learned is float32")
    if losses or any(variable.regularizer for variable in model.trainable_variables):
        raise ConfigError(
            "has losses of its own (a regularizer or add_loss), which are not trained on; take "
            "optimizer.weight_decay"
        )
    for variable in model.trainable_variables:
        if variable.constraint:
            raise ConfigError(f"{variable.path} has a constraint, which is not kept to here")


def _flat(model: keras.Model) -> keras.Model:
    """Return the model with one tensor as its input and one as its output, as all have them here:
    with Sequential there is none, and some have lists."""
    (image,), (logits,) = model.inputs, model.outputs
    return keras.Model(image, logits, name=model.name)


def _class_names(config: object) -> Iterator[str]:
    if isinstance(config, Mapping):
        yield str(config.get("class_name"))
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            yield from _class_names(part)


def _in_short(error: Exception) -> str:
    kind = "" if isinstance(error, AlexnetError) else f"{type(error).__name__}: "
    return f"{kind}{' '.join(str(error).split())[:CHARACTERS]}"
