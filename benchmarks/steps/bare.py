"""A bare `tf.function` loop, as nobody's framework: one process."""

import tensorflow as tf

from benchmarks.steps import common, plain


def main() -> None:
    """Train."""
    parser = common.parser()
    parser.add_argument("--xla", action="store_true")
    given = parser.parse_args()
    plain.use_cores()
    network = plain.model()
    taken = plain.step(network, plain.update(network), lambda gradients: gradients)
    step = tf.function(taken, jit_compile=given.xla)
    stopwatch, ready = common.Stopwatch(given), plain.batch(given.batch)
    for _ in range(stopwatch.total_steps):
        float(step(*ready))
        stopwatch()
    common.report(stopwatch)


if __name__ == "__main__":
    main()
