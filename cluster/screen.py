"""What the driver shows: lines, one a logged step; on a terminal, a live view below them."""

from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console

from cluster.config import JobConfig
from cluster.live import LiveView
from cluster.plan import Plan
from cluster.preview import Preview

NAME_WIDTH = 12  # in a preview
SHOWN_LIVE = ("step", "checkpoint")  # records that are no lines on a terminal


class Screen:
    """Shows a run as it goes. Leaving the context leaves the terminal as it was."""

    def __init__(self, console: Console) -> None:
        """Print to `console`."""
        self._console = console
        self._live = LiveView(console) if console.is_terminal else None

    def __enter__(self) -> "Screen":
        if self._live:
            self._live.on()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.off()

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def preview(self, found: Preview) -> None:
        """Say what the run is going to be."""
        for name, words in found.rows:
            self.say(f"{name:{NAME_WIDTH}}{words}")
        if self._live:
            self._live.plan(found.total_steps)

    def expect(self, seconds: float, steps: int) -> None:
        """Say how long so many steps take, if each takes `seconds`."""
        whole = timedelta(seconds=round(seconds * steps))
        self.say(
            f"{'time':{NAME_WIDTH}}about {whole} for {steps} steps of {seconds:.2f} s, and what "
            "evaluations take"
        )

    def start(self, config: JobConfig, plan: Plan) -> None:
        """Say which ranks are about to start."""
        device = f"{plan.gpus_per_worker} GPU" if plan.gpus_per_worker else "CPU"
        self.say(f"run {config.run_dir}: {plan.workers} Horovod workers ({device})")
        if self._live:
            self._live.start("ranks are starting")

    def at(self, step: int, phases: Mapping[str, float], slowest: tuple[int, float] | None) -> None:
        """Show where the ranks are."""
        if self._live:
            self._live.at(step, phases, slowest)

    def record(self, record: dict[str, Any]) -> None:
        """Show a record that a rank has left."""
        if self._live:
            self._live.record(record)
        if not (self._live and record["kind"] in SHOWN_LIVE):
            self._print(record)

    def _print(self, record: dict[str, Any]) -> None:
        step, kind = f"step {record['step']:>6}", record["kind"]
        if kind == "step":
            self.say(
                f"{step}  epoch {record['epoch']:6.2f}  loss {_figure(record['loss'], 4)}  "
                f"accuracy {_figure(record['accuracy'], 3)}  lr {record['learning_rate']:.4g}  "
                f"{record['images_per_second']:.1f} images/s"
            )
        elif kind == "evaluation":
            self.say(
                f"{step}  held out: top-1 {record['top1']:.4f}  top-5 {record['top5']:.4f}  "
                f"loss {record['loss']:.4f}  ({record['images']} images)"
            )
        elif kind == "model":
            self.say(f"{step}  {record['name']}: {record['parameters']:,} parameters")
        elif kind == "checkpoint":
            self.say(f"{step}  checkpoint")
        elif kind == "checkpoint_failure":
            self.say(f"{step}  no checkpoint: {record['reason']}")
        elif kind == "bad_row":
            self.say(f"{step}  skipped an image: {record['reason']}")
        elif kind == "skipped":
            self.say(f"{step}  skipped: loss or gradients are not finite")
        elif kind == "profile":
            self.say("\n".join(profile_table(record)))
        elif kind == "loss_spike":
            self.say(f"{step}  loss {record['loss']:.4g}: it has been about {record['usual']:.4g}")

    def end(self, summary: dict[str, Any]) -> None:
        """Print what has become of the run."""
        if self._live:
            self._live.off()
        scores = summary["eval"]
        top1 = (
            f", top-1 {scores['top1']:.4f} on {scores['images']} held-out images" if scores else ""
        )
        phases = ", ".join(f"{k} {v:.1f} s" for k, v in summary["phase_seconds"].items())
        self.say(
            f"{summary['status']}: {summary['steps']} steps{top1}; "
            f"{_figure(summary['images_per_second'], 2)} images/s; {phases}"
        )


def profile_table(record: dict[str, Any]) -> list[str]:
    """Return a line for each part of a profile's steps, and one for the whole of a step."""
    seconds, steps = record["seconds"], record["steps"]
    if not steps:
        return [f"step {record['step']:>6}  no profile: the run has ended before"]
    whole = sum(seconds.values())
    rows = [*seconds.items(), (f"step, mean of {steps}", whole)]
    return [
        f"step {record['step']:>6}  profile; its trace is in {record['trace']}",
        *(
            f"  {name:20}{1e3 * spent / steps:10.2f} ms{100 * spent / whole:7.1f} %"
            for name, spent in rows
        ),
    ]


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
