from typing import Literal

import keras
import numpy as np
import numpy.typing as npt
import pytest

from alexnet.config import DataConfig, ModelConfig
from alexnet.model import _local_response_norm, build_model

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 70.0)
Pixels = npt.NDArray[np.float32]
Name = Literal["seed", "original", "bn"]


def build(image_size: int = 67, classes: int = 10, seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return build_model(ModelConfig(), image_size, classes, MEAN, STD)


@pytest.fixture(scope="module")
def small() -> keras.Model:
    return build()


@pytest.fixture(scope="module")
def images() -> Pixels:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 67, 67, 3))
    return pixels.astype(np.float32)


def test_the_full_network() -> None:
    model = build_model(ModelConfig(), 227, 1000, MEAN, STD)
    assert model.count_params() == 62_383_848
    assert model.input_shape == (None, 227, 227, 3)
    assert model.output_shape == (None, 1000)
    assert {
        layer.name: layer.output.shape[1:] for layer in model.layers if "pool" in layer.name
    } == {
        "pool1": (27, 27, 96),
        "pool2": (13, 13, 256),
        "pool5": (6, 6, 256),
    }


def test_parameters_by_layer(small: keras.Model) -> None:
    counts = {layer.name: layer.count_params() for layer in small.layers if layer.count_params()}
    assert counts == {
        "conv1": 11 * 11 * 3 * 96 + 96,
        "norm1": 4 * 96,
        "conv2": 5 * 5 * 96 * 256 + 256,
        "norm2": 4 * 256,
        "conv3": 3 * 3 * 256 * 384 + 384,
        "norm3": 4 * 384,
        "conv4": 3 * 3 * 384 * 384 + 384,
        "norm4": 4 * 384,
        "conv5": 3 * 3 * 384 * 256 + 256,
        "norm5": 4 * 256,
        "fc6": 256 * 4096 + 4096,
        "fc7": 4096 * 4096 + 4096,
        "logits": 4096 * 10 + 10,
    }


def test_batchnorm_stands_behind_relu(small: keras.Model) -> None:
    names = [layer.name for layer in small.layers]
    assert names[:6] == ["image", "normalize", "conv1", "norm1", "pool1", "conv2"]
    for number in range(1, 6):
        assert small.get_layer(f"conv{number}").activation is keras.activations.relu


def test_outputs_are_logits(small: keras.Model, images: Pixels) -> None:
    logits = small(images, training=False).numpy()
    assert logits.shape == (3, 10)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert logits.min() < 0
    assert not np.allclose(logits.sum(axis=1), 1)


def test_an_answer_does_not_depend_on_the_rest_of_the_batch(
    small: keras.Model, images: Pixels
) -> None:
    together = small(images, training=False).numpy()
    for image, logits in zip(images, together, strict=True):
        np.testing.assert_allclose(
            small(image[None], training=False)[0], logits, rtol=1e-4, atol=1e-5
        )


def test_training_drops_out_and_answering_does_not(small: keras.Model, images: Pixels) -> None:
    answers = [small(images, training=False).numpy() for _ in range(2)]
    np.testing.assert_array_equal(*answers)
    drawn = [small(images, training=True).numpy() for _ in range(2)]
    assert not np.allclose(*drawn)


def test_the_network_takes_raw_pixels(small: keras.Model, images: Pixels) -> None:
    plain = build_model(ModelConfig(), 67, 10, (0, 0, 0), (1, 1, 1))
    plain.set_weights(small.get_weights())
    normal = ((images - MEAN) / STD).astype(np.float32)
    np.testing.assert_allclose(
        small(images, training=False), plain(normal, training=False), rtol=1e-4, atol=1e-5
    )


def test_a_seed_gives_the_same_weights_on_every_rank(small: keras.Model) -> None:
    for ours, theirs in zip(small.trainable_variables, build().trainable_variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other = build(seed=1).get_layer("conv3").kernel
    assert not np.array_equal(small.get_layer("conv3").kernel, other)


def test_settings_reach_their_layers() -> None:
    config = ModelConfig(dropout=0.25, batchnorm_momentum=0.75)
    model = build_model(config, 67, 7, MEAN, STD)
    assert {model.get_layer(f"drop{number}").rate for number in (6, 7)} == {0.25}
    assert {model.get_layer(f"norm{number}").momentum for number in range(1, 6)} == {0.75}
    assert model.output_shape == (None, 7)


def test_67_is_the_smallest_image() -> None:
    assert build(67).get_layer("pool5").output.shape == (None, 1, 1, 256)
    with pytest.raises(ValueError, match="zero or negative"):
        build(66)
    with pytest.raises(ValueError, match="greater than or equal to 67"):
        DataConfig(image_size=66)


@pytest.mark.parametrize(("name", "count"), [("original", 60_965_224), ("bn", 60_970_728)])
def test_the_networks_of_the_papers(name: Name, count: int) -> None:
    model = build_model(ModelConfig(name=name), 227, 1000, MEAN, STD)
    assert model.count_params() == count
    assert model.output_shape == (None, 1000)
    for number in (2, 4, 5):
        kernels = [model.get_layer(f"conv{number}{half}").kernel for half in "ab"]
        assert kernels[0].shape == kernels[1].shape
        assert not np.array_equal(*kernels)


def test_normalization_follows_the_pooling_in_bn_and_there_is_none_in_original() -> None:
    bn = [layer.name for layer in build_model(ModelConfig(name="bn"), 67, 10, MEAN, STD).layers]
    assert bn.index("pool1") < bn.index("norm1") < bn.index("conv2")
    original = build_model(ModelConfig(name="original"), 67, 10, MEAN, STD)
    assert not any("norm" in layer.name and layer.count_params() for layer in original.layers[2:])


INITIAL: dict[str, dict[str, tuple[float, float]]] = {  # standard deviation of the kernel, bias
    "original": {
        "conv1": (0.01, 0),
        "conv2a": (0.01, 1),
        "conv3": (0.01, 0),
        "conv5b": (0.01, 1),
        "fc6": (0.01, 1),
        "fc7": (0.01, 1),
        "logits": (0.01, 0),
    },
    "bn": {
        "conv1": (0.01, 0),
        "conv2a": (0.01, 0),
        "conv3": (0.01, 0),
        "conv5b": (0.01, 0),
        "fc6": (0.005, 0.1),
        "fc7": (0.005, 0.1),
        "logits": (0.01, 0),
    },
}


@pytest.mark.parametrize("name", ["original", "bn"])
def test_weights_start_as_the_papers_say(name: Name) -> None:
    model = build_model(ModelConfig(name=name), 67, 1000, MEAN, STD)
    for layer, (deviation, bias) in INITIAL[name].items():
        found = model.get_layer(layer)
        assert np.std(found.kernel) == pytest.approx(deviation, rel=0.05)
        assert abs(np.mean(found.kernel)) < deviation / 20
        np.testing.assert_array_equal(found.bias, np.float32(bias))


def test_halves_of_a_grouped_convolution_see_halves_of_the_channels(images: Pixels) -> None:
    """Against one convolution whose kernel is zero between the groups."""
    model = build_model(ModelConfig(name="bn"), 67, 10, MEAN, STD)
    inner = keras.Model(
        model.input, [model.get_layer("norm1").output, model.get_layer("conv2").output]
    )
    before, after = (value.numpy().astype(np.float64) for value in inner(images, training=False))
    halves = [model.get_layer(f"conv2{half}") for half in "ab"]
    kernel = np.zeros((5, 5, 96, 256))
    kernel[:, :, :48, :128], kernel[:, :, 48:, 128:] = (half.kernel.numpy() for half in halves)
    padded = np.pad(before, [(0, 0), (2, 2), (2, 2), (0, 0)])
    size = before.shape[1]
    whole = sum(
        padded[:, i : i + size, j : j + size] @ kernel[i, j] for i in range(5) for j in range(5)
    )
    np.testing.assert_allclose(after, np.maximum(whole, 0), rtol=1e-4, atol=1e-4)


def test_local_response_norm_against_float64() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 96)) * 100
    inputs = keras.Input([3, 4, 96], dtype="float64")
    found = keras.Model(inputs, _local_response_norm(inputs))(x)
    expected = np.zeros_like(x)
    for channel in range(96):
        nearest = x[..., max(0, channel - 2) : channel + 3]
        expected[..., channel] = x[..., channel] / (2 + 1e-4 * (nearest**2).sum(-1)) ** 0.75
    np.testing.assert_allclose(found, expected, rtol=1e-6)
