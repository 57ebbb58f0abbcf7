"""The network's convolutions and poolings alone, channels last or first: one process."""

import tensorflow as tf

from alexnet.model import CONVOLUTIONS, POOLED
from benchmarks.steps import common, plain

FORMATS = {"last": "NHWC", "first": "NCHW"}


def main() -> None:
    """Go forward and backward."""
    parser = common.parser()
    parser.add_argument("--channels", choices=FORMATS, default="last")
    given = parser.parse_args()
    plain.use_cores()
    layout = FORMATS[given.channels]
    pixels, _ = plain.batch(given.batch)
    images = tf.cast(pixels, tf.float32)
    if given.channels == "first":
        images = tf.transpose(images, [0, 3, 1, 2])
    channels = [3, *(filters for _, filters, _ in CONVOLUTIONS)]
    kernels = [
        tf.random.normal([size, size, inputs, filters], stddev=0.01)
        for inputs, (_, filters, size) in zip(channels, CONVOLUTIONS, strict=False)
    ]

    @tf.function(autograph=False)
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(kernels)
            x = images
            for (number, _, _), kernel in zip(CONVOLUTIONS, kernels, strict=True):
                stride, padding = (4, "VALID") if number == 1 else (1, "SAME")
                x = tf.nn.relu(tf.nn.conv2d(x, kernel, stride, padding, data_format=layout))
                if number in POOLED:
                    x = tf.nn.max_pool2d(x, 3, 2, "VALID", data_format=layout)
            loss = tf.reduce_sum(x)
        return tf.add_n([tf.reduce_sum(each) for each in tape.gradient(loss, kernels)])

    stopwatch = common.Stopwatch(given)
    for _ in range(stopwatch.total_steps):
        float(step())
        stopwatch()
    common.report(stopwatch)


if __name__ == "__main__":
    main()
