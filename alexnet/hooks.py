"""What happens around the steps: evaluation, checkpoints, and records of how it goes."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from alexnet.checkpoint import BackgroundWriter
from alexnet.evaluation import Evaluation, Evaluator
from alexnet.trainer import Hook, Phases, StepEvent


class Evaluate(Hook):
    """Scores the held-out split every so many steps and at the end, on all ranks together."""

    def __init__(
        self, evaluator: Evaluator, every: int, phases: Phases, tell: Sequence[Hook]
    ) -> None:
        """Evaluate every `every` steps (0: only at the end) and tell the hooks in `tell`."""
        self._evaluator = evaluator
        self._every = every
        self._phases = phases
        self._tell = tell
        self._step: int | None = None
        self.latest: Evaluation | None = None

    def wants_state(self, step: int) -> bool:  # noqa: D102 - as in Hook
        return self._every > 0 and step % self._every == 0

    def on_state(self, step: int) -> None:  # noqa: D102
        with self._phases("eval"):
            self.latest = self._evaluator()
        self._step = step
        for hook in self._tell:
            hook.on_evaluation(step, self.latest)

    def on_end(self, step: int, stopped: bool) -> None:  # noqa: D102
        if not stopped and self._step != step:
            self.on_state(step)


class SaveCheckpoints(Hook):
    """Copies the state to host memory every so many steps and has it written behind the steps."""

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
        self._variables = variables
        self._facts = facts
        self._writer = writer
        self._every = every
        self._phases = phases
        self._saved = restored_step

    def wants_state(self, step: int) -> bool:  # noqa: D102
        return self._every > 0 and step % self._every == 0

    def on_state(self, step: int) -> None:  # noqa: D102
        with self._phases("checkpoint"):
            state = {name: variable.numpy() for name, variable in self._variables.items()}
            self._writer.submit(step, state, self._facts)
        self._saved = step

    def on_end(self, step: int, stopped: bool) -> None:  # noqa: D102
        if self._saved != step:
            self.on_state(step)
        with self._phases("checkpoint"):
            self._writer.wait()


class LogLines(Hook):
    """Turns every n-th step, and every evaluation, into a flat record for others to show or keep.

    Loss and accuracy are means over the steps since the last record, which any rank could tell:
    they are the same on all.
    """

    def __init__(
        self,
        every: int,
        steps_per_epoch: int,
        global_batch: int,
        phases: Phases,
        sinks: Sequence[Callable[[dict[str, Any]], None]],
    ) -> None:
        """Hand each record to all `sinks`."""
        self._every = every
        self._steps_per_epoch = steps_per_epoch
        self._global_batch = global_batch
        self._phases = phases
        self._sinks = sinks
        self._since = phases.training_seconds
        self._events: list[StepEvent] = []

    def on_step(self, event: StepEvent) -> None:  # noqa: D102
        self._events.append(event)
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
        self._send(
            {
                "kind": "step",
                "step": events[-1].step,
                **self._epoch(events[-1].step),
                "loss": sum(event.result.loss for event in events) / len(events),
                "accuracy": sum(event.result.accuracy for event in events) / len(events),
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


class JsonLines:
    """A sink that appends records to a file; those after the restored step are dropped first."""

    def __init__(self, path: Path, restored_step: int) -> None:
        """Go on in `path` after the records of `restored_step` steps."""
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= restored_step]
        path.write_text("".join(kept))
        self._file = path.open("a", buffering=1)

    def __call__(self, record: dict[str, Any]) -> None:
        """Append one record."""
        self._file.write(json.dumps({**record, "time": round(time.time(), 3)}) + "\n")


class TensorBoard:
    """A sink that writes every number of a record as a scalar, by step."""

    def __init__(self, folder: Path) -> None:
        """Write event files into `folder`."""
        self._writer = tf.summary.create_file_writer(str(folder))

    def __call__(self, record: dict[str, Any]) -> None:
        """Write one record."""
        group = "train" if record["kind"] == "step" else "validation"
        with self._writer.as_default(step=record["step"]):
            for name, value in record.items():
                if isinstance(value, float):
                    tf.summary.scalar(f"{group}/{name}", value)
        self._writer.flush()


def _lines(path: Path) -> list[str]:
    """Whole lines only: a killed writer may have left half of one."""
    text = path.read_text() if path.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
