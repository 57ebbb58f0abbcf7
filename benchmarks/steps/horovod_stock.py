"""Horovod as it comes: each gradient averaged by itself, or all in one grouped allreduce."""

import os

os.environ.pop("HOROVOD_DISABLE_GROUP_FUSION", None)  # of ours

import horovod.tensorflow as hvd
import tensorflow as tf

from benchmarks.steps import common, plain


def main() -> None:
    """Train."""
    parser = common.parser()
    parser.add_argument("--grouped", action="store_true")
    given = parser.parse_args()
    plain.use_cores()
    hvd.init()
    network = plain.model()
    for index, variable in enumerate(network.variables):
        variable.value.assign(hvd.broadcast(variable.value, 0, name=f"broadcast.{index}"))

    def exchange(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        if given.grouped:
            return list(hvd.grouped_allreduce(gradients, op=hvd.Average, name="step"))
        return [
            hvd.allreduce(gradient, op=hvd.Average, name=f"step.{index}")
            for index, gradient in enumerate(gradients)
        ]

    step = tf.function(plain.step(network, plain.update(network), exchange))
    stopwatch, ready = common.Stopwatch(given), plain.batch(given.batch)
    for _ in range(stopwatch.total_steps):
        float(step(*ready))
        stopwatch()
    hvd.shutdown()
    common.report(stopwatch)


if __name__ == "__main__":
    main()
