"""Keras' `fit` at the size of the smoke preset: one process."""

import keras
import tensorflow as tf

from benchmarks.steps import common, plain

SIZE, CLASSES = 67, 10


def main() -> None:
    """Train."""
    parser = common.parser()
    parser.add_argument("--xla", action="store_true")
    given = parser.parse_args()
    plain.use_cores()
    network = plain.model(SIZE, CLASSES)
    optimizer = keras.optimizers.SGD(
        common.RATE, momentum=common.MOMENTUM, weight_decay=common.WEIGHT_DECAY
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    network.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=given.xla,
    )
    stopwatch = common.Stopwatch(given)
    ready = tf.data.Dataset.from_tensors(plain.batch(given.batch, SIZE, CLASSES)).repeat()
    ended = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: stopwatch())
    steps = stopwatch.total_steps
    network.fit(ready, steps_per_epoch=steps, verbose=0, callbacks=[ended])
    common.report(stopwatch)


if __name__ == "__main__":
    main()
