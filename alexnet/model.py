"""The networks. Each takes pixels as they are, 0 to 255, and returns logits."""

import keras

from alexnet.config import ModelConfig


def build_model(
    config: ModelConfig,
    image_size: int,
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> keras.Model:
    """Return a network from images [n, image_size, image_size, 3] to logits [n, classes].

    `mean` and `std`, of the training set's R, G, B in 0..255, are part of the network: whoever has
    the model has its preprocessing. The softmax is left to the loss and to exports.
    """
    inputs = keras.Input([image_size, image_size, 3], name="image")
    variance = [value**2 for value in std]
    x = keras.layers.Normalization(mean=mean, variance=variance, name="normalize")(inputs)
    return keras.Model(inputs, _seed(config, x, classes), name=f"alexnet_{config.name}")


def _seed(config: ModelConfig, x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Krizhevsky et al. 2012 without groups, and BatchNorm after ReLU where the paper has LRN.

    Overlapping pooling (3 x 3, stride 2). 62,383,848 parameters at 227 x 227 and 1000 classes.
    """

    def conv(x: keras.KerasTensor, number: int, filters: int, size: int) -> keras.KerasTensor:
        strides, padding = (4, "valid") if number == 1 else (1, "same")
        x = keras.layers.Conv2D(
            filters, size, strides, padding, activation="relu", name=f"conv{number}"
        )(x)
        return keras.layers.BatchNormalization(
            momentum=config.batchnorm_momentum, name=f"norm{number}"
        )(x)

    def pool(x: keras.KerasTensor, number: int) -> keras.KerasTensor:
        return keras.layers.MaxPooling2D(3, 2, name=f"pool{number}")(x)

    def dense(x: keras.KerasTensor, number: int) -> keras.KerasTensor:
        x = keras.layers.Dense(4096, activation="relu", name=f"fc{number}")(x)
        return keras.layers.Dropout(config.dropout, name=f"drop{number}")(x)

    x = pool(conv(x, 1, 96, 11), 1)
    x = pool(conv(x, 2, 256, 5), 2)
    x = conv(x, 3, 384, 3)
    x = conv(x, 4, 384, 3)
    x = pool(conv(x, 5, 256, 3), 5)
    x = keras.layers.Flatten(name="flatten")(x)
    x = dense(dense(x, 6), 7)
    return keras.layers.Dense(classes, name="logits")(x)
