"""Learning rate as a function of the step."""

import math

from alexnet.config import ScheduleConfig


def learning_rate(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Return the rate for `step`, counted from 0, of a run of `total_steps`.

    Linear warm-up reaches the peak at step `warmup_steps`; decay starts there, without a jump.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    since, span = step - config.warmup_steps, max(1, total_steps - config.warmup_steps)
    match config.decay:
        case "constant":
            return config.learning_rate
        case "cosine":
            return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, since / span)))
        case "inverse_time":
            return config.learning_rate / (1 + config.decay_rate * since)
