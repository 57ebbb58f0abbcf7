"""Networks that others build: those that train, come back and leave, and those that are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from alexnet.archive import open_archive
from alexnet.checkpoint import Checkpoint
from alexnet.config import OptimizerConfig, RunConfig
from alexnet.errors import ConfigError, DataError
from alexnet.exchange import Alone
from alexnet.export import export
from alexnet.optimizer import Momentum
from alexnet.own_model import Network, build_own, describe, rebuild
from alexnet.step import TrainStep, changed_by_training, is_seed, model_variables
from alexnet.task import Task
from alexnet.trained import Trained
from tests.test_step import assert_close, run, state_of

SIZE, CLASSES = 67, 10
IMAGE = (SIZE, SIZE, 3)


def small(image_size: int, classes: int) -> keras.Model:
    return keras.Sequential([*body(), layers.Dense(classes)])


def body() -> list[keras.layers.Layer]:
    """No Input: it is built once it has an image's shape."""
    return [
        layers.Rescaling(1 / 255),
        layers.Conv2D(4, 9, strides=8, activation="relu"),
        layers.BatchNormalization(),
        layers.Flatten(),
    ]


def ends_with(*ends: keras.layers.Layer) -> Network:
    return lambda image_size, classes: keras.Sequential([*body(), *ends])


def functional(head: Callable[[Any], Any]) -> Network:
    def network(image_size: int, classes: int) -> keras.Model:
        inputs = keras.Input([image_size, image_size, 3])
        return keras.Model(inputs, head(inputs))

    return network


def on_a_frozen_base(image_size: int, classes: int) -> keras.Model:
    base = keras.Sequential([keras.Input([image_size, image_size, 3]), *body()], name="base")
    base.trainable = False
    inputs = keras.Input([image_size, image_size, 3])
    return keras.Model([inputs], layers.Dense(classes)(base(inputs)))


def of_patches(image_size: int, classes: int) -> keras.Model:
    """With an embedding, whose gradient is sparse, and an integer as a state."""
    inputs = keras.Input([image_size, image_size, 3])
    x = layers.Normalization(name="normal")(inputs)
    x = layers.Reshape([-1, 8])(layers.Conv2D(8, 16, strides=16)(x))
    x += layers.Embedding(16, 8)(keras.ops.zeros_like(x[:, :, 0], dtype="int32"))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x))
    return keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling1D()(x)))


def augmented(image_size: int, classes: int) -> keras.Model:
    chance = [layers.RandomFlip("horizontal"), layers.GaussianNoise(1.0)]
    return keras.Sequential([*chance, *body(), layers.Dropout(0.3), layers.Dense(classes)])


def resnet(image_size: int, classes: int) -> keras.Model:
    pixels = layers.Rescaling(1 / 127.5, offset=-1)(keras.Input([image_size, image_size, 3]))
    return keras.applications.ResNet50(
        weights=None, input_tensor=pixels, classes=classes, classifier_activation=None
    )


GOOD = [small, on_a_frozen_base, of_patches, augmented]


def task(network: Network, digits: Path, **train: Any) -> Task:
    """As in a new process, where no layer has been given a name."""
    keras.utils.clear_session()
    settings = {
        "data": {"path": str(digits), "image_size": SIZE},
        "model": {"name": "own"},
        "train": {"global_batch": 24, "micro_batch": 8, **train},
    }
    return Task.build(RunConfig.model_validate(settings), Alone(), network=network)


def save(trained: Task, run: Path) -> dict[str, Any]:
    state = {name: value.numpy() for name, value in trained.step.variables.items()}
    open_archive(run, None).take_over("test").write(2, state, trained.facts)
    return state


def newest(run: Path) -> Checkpoint:
    saved = open_archive(run, None).newest()
    assert saved
    return saved


def take_steps(trained: Task, count: int = 2) -> None:
    for step, (images, labels) in zip(range(count), trained.batches(0), strict=False):
        result = trained.step.read(trained.step(images, labels, step, 0.01, False))
        assert result.overflow or not result.skipped
        assert np.isfinite(result.loss)


@pytest.mark.parametrize("network", GOOD)
def test_it_learns_and_comes_back_from_a_checkpoint(
    network: Network, digits: Path, tmp_path: Path
) -> None:
    learning = task(network, digits)
    before = {name: value.numpy() for name, value in model_variables(learning.step.model).items()}
    take_steps(learning)
    state = save(learning, tmp_path)
    kept = {v.path for v in learning.step.model.non_trainable_variables if not is_seed(v)}
    kept -= {v.path for v in changed_by_training(learning.step.model)[0]}
    for name, value in before.items():
        if name in kept or value.ndim > 1:  # a bias may have no gradient
            assert np.array_equal(state[name], value) == (name in kept), name

    again = task(network, digits)
    again.restore(newest(tmp_path))
    images = np.random.default_rng(1).integers(0, 256, (4, *IMAGE)).astype(np.float32)
    expected = learning.step.model(images, training=False)
    keras.utils.clear_session()
    layers.Dense(3)  # so that layers without a name are called otherwise than in the run
    for model in (again.step.model, Trained.load(str(tmp_path)).model):
        np.testing.assert_allclose(model(images, training=False), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_resnet_learns_in_any_precision(precision: str, digits: Path, tmp_path: Path) -> None:
    learning = task(resnet, digits, precision=precision)
    take_steps(learning)
    save(learning, tmp_path)
    assert Trained.load(str(tmp_path)).evaluate()["images"] == 359


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision_is_no_part_of_a_network(precision: str, digits: Path, tmp_path: Path) -> None:
    learning = task(augmented, digits, precision=precision)
    assert learning.step.model.layers[-1].compute_dtype == precision
    take_steps(learning)
    save(learning, tmp_path)
    task(augmented, digits).restore(newest(tmp_path))
    assert Trained.load(str(tmp_path)).model.layers[-1].compute_dtype == "float32"


def test_a_checkpoint_of_another_network_is_refused(digits: Path, tmp_path: Path) -> None:
    save(task(small, digits), tmp_path)
    saved = newest(tmp_path)

    def unbiased(image_size: int, classes: int) -> keras.Model:
        return keras.Sequential([*body(), layers.Dense(classes, use_bias=False)])

    def deeper(image_size: int, classes: int) -> keras.Model:
        return keras.Sequential([*body(), layers.Dense(4), layers.Dense(classes)])

    for other, found in [
        (unbiased, r"use_bias is True there, False here"),
        (deeper, r"units is 10 there, 4 here"),
        (None, r"name is 'own' there, 'seed' here"),
    ]:
        another = task(other, digits) if other else Task.build(seeds_config(digits), Alone())
        with pytest.raises(ConfigError, match=f"a checkpoint of another model: .*{found}") as error:
            another.restore(saved)
        assert "\n" not in str(error.value)


def seeds_config(digits: Path) -> RunConfig:
    return RunConfig.model_validate({"data": {"path": str(digits), "image_size": SIZE}})


def test_it_leaves_as_a_file_and_is_read_again(digits: Path, tmp_path: Path) -> None:
    save(task(small, digits), tmp_path)
    trained, out = Trained.load(str(tmp_path)), f"{tmp_path}/small.keras"
    export(trained, out)
    images = np.random.default_rng(1).integers(0, 256, (4, *IMAGE)).astype(np.float32)
    expected, found = (each.model(images, training=False) for each in (trained, Trained.load(out)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def branches() -> keras.Model:
    """With a dense layer before and beside convolutions: other outputs, another order."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input([8, 8, 3])
    x = layers.Rescaling(1 / 255)(inputs)
    early = layers.Dense(6, activation="relu", name="early")(layers.Flatten()(x))
    late = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    late = layers.BatchNormalization(momentum=0.8, name="norm")(late)
    late = layers.Dense(6, name="late")(layers.Flatten()(late))
    return keras.Model(inputs, layers.Dense(5, name="logits")(early + late))


@pytest.mark.parametrize("which", [["early"], ["late", "early", "logits"]])
def test_its_dense_layers_are_factored_wherever_they_are(which: list[str]) -> None:
    states = []
    for names in ([], which):
        model = branches()
        step = TrainStep(
            model,
            Momentum(OptimizerConfig(), [v.value for v in model.trainable_variables]),
            Alone(),
            seed=3,
            virtual_workers=4,
            share=range(4),
            factored=[model.get_layer(name) for name in names],
        )
        run(step, 4)
        states.append(state_of(step))
    assert_close(states[0], states[1], 1e-5)


class Penalty(layers.Layer):
    def call(self, x: Any) -> Any:
        self.add_loss(keras.ops.mean(x))
        return x


class Counter(layers.Layer):
    def build(self, shape: Any) -> None:
        self.count = self.add_weight(shape=(), dtype="int32", trainable=False, name="count")

    def call(self, x: Any) -> Any:
        self.count.assign_add(1)
        return x


class Subclass(keras.Model):
    def call(self, x: Any) -> Any:
        return x


class Twins(layers.Layer):
    def build(self, shape: Any) -> None:
        self.one, self.other = (layers.Dense(CLASSES, name="same") for _ in range(2))
        self.one.build(shape)
        self.other.build(shape)

    def call(self, x: Any) -> Any:
        return self.one(x) + self.other(x)


def two_inputs(image_size: int, classes: int) -> keras.Model:
    inputs = [keras.Input([image_size, image_size, 3]) for _ in range(2)]
    return keras.Model(inputs, layers.Dense(classes)(layers.Flatten()(inputs[0] + inputs[1])))


def frozen(image_size: int, classes: int) -> keras.Model:
    model = small(image_size, classes)
    model.trainable = False
    return model


LOSSES = "has losses of its own (a regularizer or add_loss)"


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (lambda image_size: None, "TypeError: "),
        (lambda image_size, classes: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda image_size, classes: None, "returned NoneType; expected a keras.Model"),
        (lambda image_size, classes: Subclass(), "returned Subclass; expected a keras.Seq"),
        (two_inputs, "has 2 inputs and 1 outputs; expected one of each"),
        (
            lambda image_size, classes: keras.Sequential(
                [keras.Input([32, 32, 3]), layers.Flatten(), layers.Dense(classes)]
            ),
            "takes (None, 32, 32, 3); expected (None, 67, 67, 3)",
        ),
        (ends_with(layers.Dense(7)), "answers with (None, 7); expected (None, 10): a logit"),
        (ends_with(layers.Dense(10, activation="softmax")), "ends in a softmax; expected logits"),
        (ends_with(layers.Dense(10), layers.Softmax()), "ends in a softmax"),
        (ends_with(layers.Dense(10, "sigmoid")), "ends in a sigmoid"),
        (
            functional(lambda x: keras.ops.softmax(layers.Dense(10)(layers.Flatten()(x)))),
            "ends in a softmax",
        ),
        (
            functional(keras.Sequential([layers.Flatten(), layers.Dense(10, "softmax")])),
            "ends in a softmax",
        ),
        (ends_with(layers.Dense(10, kernel_regularizer="l2")), LOSSES),
        (ends_with(layers.ActivityRegularization(0.1), layers.Dense(10)), LOSSES),
        (ends_with(Penalty(), layers.Dense(10)), LOSSES),
        (ends_with(layers.Dense(10, kernel_constraint="non_neg")), "has a constraint"),
        (ends_with(layers.Lambda(lambda x: 2 * x), layers.Dense(10)), "a Lambda layer holds code"),
        (ends_with(layers.Dense(10, dtype="float16")), "is float16; what is learned is float32"),
        (ends_with(Counter(), layers.Dense(10)), "count is int32"),
        (ends_with(Twins()), "has two variables of the name"),
        (frozen, "has nothing to train"),
    ],
)
def test_what_cannot_be_trained_is_told_in_one_line(network: Network, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_own(network, SIZE, CLASSES)
    assert str(error.value).startswith("network(67, 10): ")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_ranks_that_build_different_networks_are_told(digits: Path) -> None:
    class Apart(Alone):
        """Two ranks, of which the other one has built something else."""

        world_size = 2

        def sum(self, tensors: Any, name: str = "step") -> list[tf.Tensor]:
            other = [0, int(name == "network")]
            return [tensor + tf.constant(other, tensor.dtype) for tensor in tensors]

    keras.utils.clear_session()
    own = seeds_config(digits).model_copy(
        update={"model": RunConfig().model.model_copy(update={"name": "own"})}
    )
    with pytest.raises(ConfigError, match="ranks have built different ones"):
        Task.build(own, Apart(), network=small)


@pytest.fixture
def described() -> dict[str, Any]:
    return describe(build_own(small, SIZE, CLASSES))


def test_code_in_a_description_is_refused_and_not_run(
    described: dict[str, Any], tmp_path: Path
) -> None:
    hit = str(tmp_path / "hit")
    layer = layers.Lambda(lambda x: Path(hit).write_text("hit") and x)
    code = keras.saving.serialize_keras_object(layer)
    described["layers"]["config"]["layers"][1]["config"]["activation"] = code
    with pytest.raises(DataError, match="a layer holds code"):
        rebuild(described)
    assert not Path(hit).exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("alexnet.own_model", "rebuild"), ("keras.utils", "get_file"), (None, "A")],
)
def test_only_keras_own_layers_are_built(
    described: dict[str, Any], module: str | None, name: str
) -> None:
    described["layers"]["config"]["layers"][1] |= {
        "module": module,
        "class_name": name,
        "registered_name": name,
    }
    with pytest.raises(DataError, match="its network cannot be built"):
        rebuild(described)
