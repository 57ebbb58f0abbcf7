"""TensorFlow's own: MultiWorkerMirroredStrategy, with a loop, since Keras 3's `fit` refuses it."""

import json
import os

import tensorflow as tf

from benchmarks.steps import common, plain


def main() -> None:
    """Train."""
    parser = common.parser()
    parser.add_argument("--pack", type=int, default=0, help="MiB that travel at once; 0: all")
    given = parser.parse_args()
    plain.use_cores()
    workers = [f"127.0.0.1:{port}" for port in given.ports[: given.ranks]]
    task = {"type": "worker", "index": given.rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
    options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=given.pack << 20)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    with strategy.scope():
        network = plain.model()
        apply = plain.update(network)

    def exchange(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        averaged: list[tf.Tensor] = context.all_reduce(
            tf.distribute.ReduceOp.MEAN, gradients, options=options
        )
        return averaged

    replica = plain.step(network, apply, exchange)
    step = tf.function(lambda pixels, labels: strategy.run(replica, args=(pixels, labels)))
    stopwatch, ready = common.Stopwatch(given), plain.batch(given.batch)
    for _ in range(stopwatch.total_steps):
        (loss,) = strategy.experimental_local_results(step(*ready))
        float(loss)
        stopwatch()
    common.report(stopwatch)
    common.meet(given, "ended")
    os._exit(0)  # its server never ends, and says so for minutes


if __name__ == "__main__":
    main()
