import keras
import numpy as np
import numpy.typing as npt
import pytest

from alexnet.config import DataConfig, ModelConfig
from alexnet.model import build_model

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 70.0)
Pixels = npt.NDArray[np.float32]


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
