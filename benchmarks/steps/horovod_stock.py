"""Horovod as it comes: all gradients averaged in one grouped allreduce."""

import os

os.environ.pop("HOROVOD_DISABLE_GROUP_FUSION", None)  # of ours

import horovod.tensorflow as hvd
import tensorflow as tf

from benchmarks.steps import common, plain


def main() -> None:
    """Train."""
    given = common.parser().parse_args()
    hvd.init()
    network = plain.model()
    for index, variable in enumerate(network.variables):
        variable.value.assign(hvd.broadcast(variable.value, 0, name=f"broadcast.{index}"))

    def exchange(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        averaged: list[tf.Tensor] = hvd.grouped_allreduce(gradients, op=hvd.Average, name="step")
        return averaged

    step = tf.function(plain.step(network, plain.update(network), exchange))
    stopwatch, ready = common.Stopwatch(given), plain.batch(given.batch)
    for _ in range(stopwatch.total_steps):
        float(step(*ready))
        stopwatch()
    hvd.shutdown()
    common.report(stopwatch)


if __name__ == "__main__":
    main()
