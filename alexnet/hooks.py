"""What happens around the steps: evaluation, checkpoints, and records of how it goes."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from alexnet.background_writer import BackgroundWriter
from alexnet.checkpoint import state_sha256
from alexnet.errors import AlexnetError, BadNumbersError
from alexnet.evaluation import Evaluation, Evaluator, Scored
from alexnet.exchange import Exchange, of_all_ranks
from alexnet.host_copy import HostCopy
from alexnet.trainer import Hook, Phases, StepEvent

IMAGES = 8  # shown
SAMPLE = 2**16  # weights of a variable that its histogram is of, at most
Batch = tuple[tf.Tensor, tf.Tensor]  # images [k, micro_batch, size, size, 3] and labels

log = logging.getLogger(__name__)


class StopAtBadNumbers(Hook):
    """Ends the run at a step whose sums are not finite. Every rank sees the same ones."""

    def on_step(self, event: StepEvent) -> None:  # noqa: D102 - as in Hook
        if event.result.skipped and not event.result.overflow:
            raise BadNumbersError(
                f"step {event.step}: loss or gradients are not finite; lower "
                "schedule.learning_rate, or leave such steps out: train.on_bad_numbers=skip"
            )


class CheckReplicas(Hook):
    """Compares a hash of the state over all ranks every so many steps. Must be on every rank."""

    def __init__(
        self, variables: Mapping[str, tf.Variable], exchange: Exchange, every: int, phases: Phases
    ) -> None:
        """Compare every `every` steps (0: never); the time counts as `exchange`."""
        self._variables = variables
        self._exchange = exchange
        self._every = every
        self._phases = phases
        self._equal = 0

    def wants_state(self, step: int) -> bool:  # noqa: D102
        return self._every > 0 and step % self._every == 0

    def on_state(self, step: int) -> None:  # noqa: D102
        with self._phases("exchange"):
            hashes = self._hashes()
        common, _ = Counter(hashes).most_common(1)[0]
        if odd := [rank for rank, found in enumerate(hashes) if found != common]:
            raise AlexnetError(
                f"step {step}: the state of rank {', '.join(map(str, odd))} of {len(hashes)} is "
                f"not that of the others; last seen equal after {self._equal} steps, trust no "
                "checkpoint of more"
            )
        self._equal = step

    def _hashes(self) -> list[int]:
        """60 bits of each rank's hash, by rank."""
        state = {name: variable.numpy() for name, variable in self._variables.items()}
        return of_all_ranks(self._exchange, int(state_sha256(state)[:15], 16), "replicas")


class Evaluate(Hook):
    """Scores the held-out split every so many steps and at the end, on all ranks together."""

    def __init__(
        self,
        evaluator: Evaluator,
        every: int,
        phases: Phases,
        tell: Sequence[Hook],
        on_batch: Callable[[Scored], None] = lambda scored: None,
    ) -> None:
        """Evaluate every `every` steps (0: only at the end) and tell the hooks in `tell`.

        `on_batch` is called after every batch: it goes on, and what became of that batch.
        """
        self._evaluator = evaluator
        self._on_batch = on_batch
        self._every = every
        self._phases = phases
        self._tell = tell
        self._step: int | None = None
        self.latest: Evaluation | None = None

    def wants_state(self, step: int) -> bool:  # noqa: D102 - as in Hook
        return self._every > 0 and step % self._every == 0

    def on_state(self, step: int) -> None:  # noqa: D102
        with self._phases("eval"):
            self.latest = self._evaluator(self._on_batch)
        self._step = step
        for hook in self._tell:
            hook.on_evaluation(step, self.latest)

    def on_end(self, step: int, stopped: bool) -> None:  # noqa: D102
        if not stopped and self._step != step:
            self.on_state(step)


class SaveCheckpoints(Hook):
    """Copies the state to host memory every so many steps and has it written behind the steps.

    That of an evaluation is saved, and marked as the best, if it scored higher than any before.
    """

    def __init__(
        self,
        variables: Mapping[str, tf.Variable],
        facts: Mapping[str, Any],
        writer: BackgroundWriter,
        every: int,
        phases: Phases,
        restored_step: int | None,
    ) -> None:
        """Save every `every` steps (0: only at the end); the one restored from is there already."""
        self._copy = HostCopy(variables, is_kept=not writer.waits)
        self._facts = facts
        self._writer = writer
        self._every = every
        self._phases = phases
        self._saved = restored_step

    def wants_state(self, step: int) -> bool:  # noqa: D102
        return self._every > 0 and step % self._every == 0

    def on_state(self, step: int) -> None:  # noqa: D102
        with self._phases("checkpoint"):
            self._writer.wait()  # for what is in the copy's memory
            self._writer.submit(step, self._copy.take(), self._facts)
        self._saved = step

    def on_step(self, event: StepEvent) -> None:  # noqa: D102
        self._writer.check()
        if self._every:
            self._copy.prepare()

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:  # noqa: D102
        if evaluation["top1"] <= self._writer.best_top1:
            return
        if self._saved != step:
            self.on_state(step)
        with self._phases("checkpoint"):
            self._writer.mark_best(step, evaluation["top1"])

    def on_end(self, step: int, stopped: bool) -> None:  # noqa: D102
        if self._saved != step:
            self.on_state(step)
        with self._phases("checkpoint"):
            self._writer.finish()


class LogLines(Hook):
    """Turns every n-th step, and every evaluation, into a flat record for others to show or keep.

    Loss and accuracy are means over the steps since the last record that were not skipped (None:
    all were). Any rank could tell them: they are the same on all.
    """

    def __init__(
        self,
        every: int,
        steps_per_epoch: int,
        global_batch: int,
        phases: Phases,
        sinks: Sequence[Callable[[dict[str, Any]], None]],
        total_steps: int | None = None,
    ) -> None:
        """Hand each record to all `sinks`; `total_steps` are told for those who wait."""
        self._total_steps = total_steps
        self._every = every
        self._steps_per_epoch = steps_per_epoch
        self._global_batch = global_batch
        self._phases = phases
        self._sinks = sinks
        self._since = phases.training_seconds
        self._events: list[StepEvent] = []

    def on_step(self, event: StepEvent) -> None:  # noqa: D102
        self._events.append(event)
        if event.result.skipped and not event.result.overflow:
            self._send({"kind": "skipped", "step": event.step, **self._epoch(event.step)})
        if event.step % self._every == 0:
            self._emit()

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:  # noqa: D102
        self._send({"kind": "evaluation", "step": step, **self._epoch(step), **evaluation})

    def on_end(self, step: int, stopped: bool) -> None:  # noqa: D102
        if self._events:
            self._emit()

    def _emit(self) -> None:
        events, self._events = self._events, []
        since, self._since = self._since, events[-1].training_seconds
        images = len(events) * self._global_batch
        results = [event.result for event in events if not event.result.skipped]
        self._send(
            {
                "kind": "step",
                "step": events[-1].step,
                **self._epoch(events[-1].step),
                "total_steps": self._total_steps,
                "loss": _mean([result.loss for result in results]),
                "accuracy": _mean([result.accuracy for result in results]),
                "learning_rate": events[-1].rate,
                "images_per_second": images / max(self._since - since, 1e-9),
                "phase_seconds": {k: round(v, 3) for k, v in self._phases.seconds.items()},
            }
        )

    def _epoch(self, step: int) -> dict[str, float]:
        return {"epoch": round(step / self._steps_per_epoch, 3)}

    def _send(self, record: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink(record)


class TensorBoard(Hook):
    """A sink that writes every number of a record as a scalar; and a hook that writes pictures.

    These are histograms of the weights at each evaluation, when nothing else changes them, and
    some images of the first batch. A disk that is full costs all this, never the run.
    """

    def __init__(self, folder: Path, weights: Mapping[str, tf.Variable]) -> None:
        """Write event files into `folder`."""
        self._writer = tf.summary.create_file_writer(str(folder))
        self._weights = weights

    def __call__(self, record: dict[str, Any]) -> None:
        """Write one record."""
        group = {"step": "train", "evaluation": "validation"}.get(record["kind"])
        if group:
            with self._writing(record["step"]):
                for name, value in record.items():
                    if isinstance(value, float):
                        tf.summary.scalar(f"{group}/{name}", value)

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:  # noqa: D102 - as in Hook
        some = {name: _some_of(variable) for name, variable in self._weights.items()}
        with self._writing(step), tf.device("CPU"):  # GPUs do not count repeatably
            for name, values in some.items():
                tf.summary.histogram(f"weights/{name}", values)

    def showing(
        self, batches: Callable[[int], Iterable[Batch]]
    ) -> Callable[[int], Iterator[Batch]]:
        """Return the same batches, some images of the first of which are written on its way."""

        def shown(first_step: int) -> Iterator[Batch]:
            for at, (images, labels) in enumerate(batches(first_step)):
                if at == 0:
                    with self._writing(first_step), tf.device("CPU"):
                        tf.summary.image("images", images[0, :IMAGES], max_outputs=IMAGES)
                yield images, labels

        return shown

    @contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            with self._writer.as_default(step=step):
                yield
            self._writer.flush()
        except tf.errors.OpError as error:
            log.error("TensorBoard: step %d is not in it: %s", step, error.message.splitlines()[0])


def _some_of(variable: tf.Variable) -> npt.NDArray[np.float32]:
    """Return evenly spaced elements: enough for a histogram, and no copy of a large layer.

    Their distance is odd, so that it is no multiple of a row of weights.
    """
    apart = len(range(0, variable.shape.num_elements(), SAMPLE)) | 1
    some: npt.NDArray[np.float32] = tf.reshape(variable, [-1])[::apart].numpy()
    return some


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
