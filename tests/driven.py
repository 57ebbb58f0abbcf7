"""Hooks driven as a trainer drives them."""

from collections.abc import Collection

from alexnet.evaluation import Evaluation
from alexnet.step import StepResult
from alexnet.trainer import Hook, StepEvent

SCORE: Evaluation = {"top1": 0.5, "top5": 0.9, "loss": 1.25, "images": 359}


def event(
    step: int,
    loss: float = 1.0,
    accuracy: float = 0.5,
    seconds: float = 0.0,
    skipped: bool = False,
) -> StepEvent:
    result = StepResult(loss, accuracy, stop=False, skipped=skipped, exchange_seconds=0.0)
    return StepEvent(step=step, rate=step / 100, result=result, training_seconds=seconds)


def drive(hook: Hook, steps: Collection[int], stopped: bool = False) -> None:
    """Call the hook as a trainer does that takes `steps`."""
    for step in steps:
        wanted = hook.wants_state(step)
        hook.on_step(event(step))
        if wanted:
            hook.on_state(step)
    hook.on_end(max(steps), stopped)
