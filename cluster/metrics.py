"""Prometheus: one registry and one HTTP port a rank."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from alexnet.evaluation import Evaluation
from alexnet.trainer import PHASES, Hook, Phases, StepEvent
from cluster.history import SPENT_ON

log = logging.getLogger(__name__)

STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics(Hook):
    """What one rank reports. Loss and accuracy, equal on all ranks, come from rank 0 alone."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        images_per_step: int,
        phases: Phases,
        rows_skipped: Callable[[], int],
    ) -> None:
        """Report `images_per_step` images, this rank's, for every step."""
        self._rows_skipped_so_far = rows_skipped
        self._rows_skipped_counted = 0
        self.registry = CollectorRegistry()
        self._reports_result = rank == 0
        self._images_per_step = images_per_step
        self._phases = phases
        self._counted = dict.fromkeys(PHASES, 0.0)
        self._last_seconds = 0.0

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"alexnet_{name}", text, registry=self.registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"alexnet_{name}", text, labels, registry=self.registry)

        self._images = counter("images", "Images this rank has trained on.")
        self._steps = counter("steps", "Steps this rank has taken.")
        self._rows_skipped = counter("rows_skipped", "Images left out: they were not as written.")
        self._skipped = counter("skipped_steps", "Steps left out: their sums were not finite.")
        self._phase = counter("phase_seconds", "Time of this rank by phase.", ("phase",))
        self._step_seconds = Histogram(
            "alexnet_step_seconds",
            "Time of a step, with its data and, where there is one, its checkpoint.",
            buckets=STEP_BUCKETS,
            registry=self.registry,
        )
        self._step = gauge("step", "Steps of the whole run, replayed ones counted once.")
        self._rate = gauge("learning_rate", "Learning rate of the last step.")
        gauge("world_size", "Ranks in this attempt.").set(world_size)
        gauge("rank", "Rank of this process.").set(rank)
        for phase in PHASES:
            self._phase.labels(phase)
        if self._reports_result:
            self._loss = gauge("loss_nats", "Training loss over the last global batch.")
            self._accuracy = gauge("accuracy_ratio", "Training accuracy, last global batch.")
            self._save_failures = counter(
                "checkpoint_failures", "Checkpoints that the disk has failed to take."
            )
            self._spikes = counter("loss_spikes", "Jumps of the training loss.")
            self._top1 = gauge("eval_top1_ratio", "Held-out top-1 of the last evaluation.")
            self._saved_step = gauge("checkpoint_step", "Steps in the last whole checkpoint.")
            self._saved_time = gauge(
                "checkpoint_timestamp_seconds", "When the last checkpoint was written, Unix time."
            )

    def tell_wall_seconds(self, spent: Callable[[], Mapping[str, float]]) -> None:
        """Report, as rank 0, what the driver says that the launch's time was spent on."""
        seconds = Gauge(
            "alexnet_wall_seconds",
            "Time of the launch so far, by what it was spent on.",
            ("spent_on",),
            registry=self.registry,
        )

        def spent_on(kind: str) -> float:
            return spent().get(kind, 0.0)

        for kind in SPENT_ON:
            seconds.labels(kind).set_function(partial(spent_on, kind))

    def serve(self, host: str, port: int) -> None:
        """Answer scrapes on `host:port`. A port in use costs the figures, never the run."""
        try:
            start_http_server(port, host, self.registry)
        except OSError as error:
            log.warning("no metrics: cannot listen on %s:%d: %s", host, port, error.strerror)

    def on_step(self, event: StepEvent) -> None:  # noqa: D102 - as in Hook
        self._images.inc(self._images_per_step)
        self._steps.inc()
        self._step.set(event.step)
        self._rate.set(event.rate)
        self._step_seconds.observe(event.training_seconds - self._last_seconds)
        self._last_seconds = event.training_seconds
        self._count()
        self._skipped.inc(event.result.skipped and not event.result.overflow)
        if self._reports_result and not event.result.skipped:
            self._loss.set(event.result.loss)
            self._accuracy.set(event.result.accuracy)

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:  # noqa: D102
        self._count()
        if self._reports_result:
            self._top1.set(evaluation["top1"])

    def on_checkpoint(self, step: int) -> None:
        """Rank 0 has a whole checkpoint of `step` steps on the disk."""
        self._saved_step.set(step)
        self._saved_time.set_to_current_time()

    def on_checkpoint_failure(self) -> None:
        """Rank 0 could not write a checkpoint; the ones before are still there."""
        self._save_failures.inc()

    def on_loss_spike(self, record: dict[str, Any]) -> None:
        """Rank 0 has seen the training loss jump."""
        self._spikes.inc()

    def _count(self) -> None:
        """Add to counters what others keep count of."""
        rows_skipped = self._rows_skipped_so_far()
        self._rows_skipped.inc(rows_skipped - self._rows_skipped_counted)
        self._rows_skipped_counted = rows_skipped
        for phase, seconds in self._phases.seconds.items():
            self._phase.labels(phase).inc(max(0.0, seconds - self._counted[phase]))
            self._counted[phase] = max(seconds, self._counted[phase])
