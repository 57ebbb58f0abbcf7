"""A training loss that jumps: worth a look, no reason to stop."""

from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from alexnet.trainer import Hook, StepEvent

WINDOW = 50  # steps that are compared with
LEAST = 20
DEVIATIONS = 6.0
PER_MAD = 1.4826  # standard deviation of a normal distribution, by its median absolute deviation


class LossSpikes(Hook):
    """Tells of a step whose loss is far above those of the last steps, once until it is not.

    Far above: six standard deviations above the median, as the median absolute deviation estimates
    them, and twice the highest. Both are of the last 50 steps that were not skipped: noise that
    has been there before is no news, however far from normal it is distributed.
    """

    def __init__(self, sinks: Sequence[Callable[[dict[str, Any]], None]]) -> None:
        """Hand a record of each spike to all `sinks`."""
        self._sinks = sinks
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._is_up = False

    def on_step(self, event: StepEvent) -> None:  # noqa: D102 - as in Hook
        if event.result.skipped:
            return
        loss = event.result.loss
        was_up, self._is_up = self._is_up, self._is_spike(loss)
        if self._is_up and not was_up:
            record = {"kind": "loss_spike", "step": event.step, "loss": loss, "usual": self._usual}
            for sink in self._sinks:
                sink(record)
        self._losses.append(loss)

    @property
    def _usual(self) -> float:
        return median(self._losses)

    def _is_spike(self, loss: float) -> bool:
        if len(self._losses) < LEAST:
            return False
        deviation = PER_MAD * median(abs(other - self._usual) for other in self._losses)
        return loss > self._usual + DEVIATIONS * deviation and loss > 2 * max(self._losses)
