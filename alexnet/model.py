"""The networks. Each takes pixels as they are, 0 to 255, and returns logits.

All are made of Keras' own layers and operations, so that an exported one needs nothing of this
package to be loaded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import keras
from keras import KerasTensor as Tensor
from keras.initializers import Constant, GlorotUniform, Initializer, RandomNormal

from alexnet.config import ModelConfig

Block = Callable[[Tensor, int, int, int], Tensor]  # of input, number, filters and kernel size
CONVOLUTIONS = ((1, 96, 11), (2, 256, 5), (3, 384, 3), (4, 384, 3), (5, 256, 3))
GROUPED = (2, 4, 5)  # in the 2012 network each half of these sees one half of the channels
POOLED = (1, 2, 5)
LRN_BIAS, LRN_WIDTH, LRN_SCALE = 2.0, 5, 1e-4  # k, n and alpha in the paper; beta is 3/4


def build_model(
    config: ModelConfig,
    image_size: int,
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    precision: str = "float32",
) -> keras.Model:
    """Return a network from images [n, image_size, image_size, 3] to logits [n, classes].

    `mean` is taken from R, G and B, and the rest divided by `std`, in the network itself: whoever
    has the model has its preprocessing. The softmax is left to the loss and to exports.

    With a `precision` of bfloat16 or float16 the layers between preprocessing and logits compute
    in it. Weights, statistics, images and logits are float32 always.
    """
    inputs = keras.Input([image_size, image_size, 3], name="image")
    # The 2012 paper takes the mean away and leaves the scale.
    variance = [1.0 if config.name == "original" else value**2 for value in std]
    x = keras.layers.Normalization(mean=mean, variance=variance, dtype="float32", name="normalize")(
        inputs
    )
    network = {"seed": _seed, "original": _original, "bn": _bn}[config.name]
    with computing_in(precision):
        outputs = network(config, x, classes)
    return keras.Model(inputs, outputs, name=f"alexnet_{config.name}")


@contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Have layers that are made in this context compute in `precision`, on float32 weights."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _seed(config: ModelConfig, x: Tensor, classes: int) -> Tensor:
    """Krizhevsky et al. 2012 without groups, and BatchNorm after ReLU where the paper has LRN.

    Glorot's uniform weights (Glorot and Bengio 2010), biases 0: Keras' defaults, as in the blog
    post that this project began with. 62,383,848 parameters at 227 x 227 and 1000 classes.
    """

    def block(x: Tensor, number: int, filters: int, size: int) -> Tensor:
        return _pool(_batchnorm(config, _conv(x, number, filters, size), number), number)

    return _layers(config, x, classes, block, GlorotUniform, GlorotUniform, bias=0.0)


def _original(config: ModelConfig, x: Tensor, classes: int) -> Tensor:
    """The network of Krizhevsky et al. 2012, sections 3 and 5: groups, LRN, overlapping pooling.

    Weights from N(0, 0.01); biases 1 in conv2, conv4, conv5, fc6 and fc7, else 0. 60,965,224
    parameters at 227 x 227 and 1000 classes.
    """

    def block(x: Tensor, number: int, filters: int, size: int) -> Tensor:
        bias = 1.0 if number in GROUPED else 0.0
        x = _conv(x, number, filters, size, number in GROUPED, _normal(0.01), bias)
        return _pool(_local_response_norm(x) if number in (1, 2) else x, number)

    return _layers(config, x, classes, block, _normal(0.01), _normal(0.01), bias=1.0)


def _bn(config: ModelConfig, x: Tensor, classes: int) -> Tensor:
    """AlexNet-BN of the large-batch papers, after Ginsburg's solvers for NVCaffe (You et al. 2017).

    The groups of 2012, and BatchNorm behind ReLU and pooling of each convolution. Weights from
    N(0, 0.01), in fc6 and fc7 from N(0, 0.005) with biases 0.1.
    """

    def block(x: Tensor, number: int, filters: int, size: int) -> Tensor:
        x = _conv(x, number, filters, size, number in GROUPED, _normal(0.01))
        return _batchnorm(config, _pool(x, number), number)

    return _layers(config, x, classes, block, _normal(0.005), _normal(0.01), bias=0.1)


def _layers(
    config: ModelConfig,
    x: Tensor,
    classes: int,
    block: Block,
    hidden: Callable[[], Initializer],
    logits: Callable[[], Initializer],
    bias: float,
) -> Tensor:
    """Five blocks, two hidden layers whose biases start at `bias`, and the logits."""
    for number, filters, size in CONVOLUTIONS:
        x = block(x, number, filters, size)
    x = keras.layers.Flatten(name="flatten")(x)
    for number in (6, 7):
        x = keras.layers.Dense(
            4096,
            activation="relu",
            kernel_initializer=hidden(),
            bias_initializer=Constant(bias),
            name=f"fc{number}",
        )(x)
        x = keras.layers.Dropout(config.dropout, name=f"drop{number}")(x)
    return keras.layers.Dense(classes, kernel_initializer=logits(), dtype="float32", name="logits")(
        x
    )


def _conv(
    x: Tensor,
    number: int,
    filters: int,
    size: int,
    is_grouped: bool = False,
    weights: Callable[[], Initializer] = GlorotUniform,
    bias: float = 0.0,
) -> Tensor:
    """A convolution with ReLU; a grouped one as two, since no CPU kernel has groups."""

    def conv(x: Tensor, filters: int, name: str) -> Tensor:
        return keras.layers.Conv2D(
            filters,
            size,
            strides=4 if number == 1 else 1,
            padding="valid" if number == 1 else "same",
            activation="relu",
            kernel_initializer=weights(),
            bias_initializer=Constant(bias),
            name=name,
        )(x)

    if not is_grouped:
        return conv(x, filters, f"conv{number}")
    halves = zip(keras.ops.split(x, 2, axis=-1), "ab", strict=True)
    outputs = [conv(half, filters // 2, f"conv{number}{name}") for half, name in halves]
    return keras.layers.Concatenate(name=f"conv{number}")(outputs)


def _pool(x: Tensor, number: int) -> Tensor:
    """Overlapping max pooling, 3 x 3 with stride 2, where the network has it."""
    return keras.layers.MaxPooling2D(3, 2, name=f"pool{number}")(x) if number in POOLED else x


def _batchnorm(config: ModelConfig, x: Tensor, number: int) -> Tensor:
    return keras.layers.BatchNormalization(
        momentum=config.batchnorm_momentum,
        epsilon=config.batchnorm_epsilon,
        name=f"norm{number}",
    )(x)


def _local_response_norm(x: Tensor) -> Tensor:
    """x / (2 + 1e-4 s)^(3/4), s being the sum of squares over the five nearest channels.

    In float32, whatever the layers around it compute in: float16 ends where an activation is 256.
    """
    side, channels = LRN_WIDTH // 2, x.shape[-1]
    if x.dtype != "float32":
        return keras.ops.cast(_local_response_norm(keras.ops.cast(x, "float32")), x.dtype)
    squares = keras.ops.pad(keras.ops.square(x), [[0, 0], [0, 0], [0, 0], [side, side]])
    nearest = [squares[:, :, :, at : at + channels] for at in range(LRN_WIDTH)]
    root = keras.ops.rsqrt(LRN_BIAS + LRN_SCALE * sum(nearest[1:], start=nearest[0]))
    return x * root * keras.ops.sqrt(root)


def _normal(stddev: float) -> Callable[[], Initializer]:
    """Make an initialiser a layer: a shared one would give all of them the same numbers."""
    return lambda: RandomNormal(stddev=stddev)
