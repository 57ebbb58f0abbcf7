"""Keras' own way to keep a run: `model.save`, weights and momentum, while training waits."""

import keras

from benchmarks.steps import common, plain


def main() -> None:
    """Save."""
    given = common.parser().parse_args()
    plain.use_cores()
    network = plain.model()
    network.compile(
        keras.optimizers.SGD(common.RATE, momentum=common.MOMENTUM),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    network.train_on_batch(*plain.batch(2))
    file, stopwatch = given.folder / "model.keras", common.Stopwatch(given)
    for _ in range(stopwatch.total_steps):
        network.save(file)
        stopwatch()
    seconds = sorted(stopwatch.seconds)
    common.report(stopwatch, blocked=seconds[len(seconds) // 2])


if __name__ == "__main__":
    main()
