"""Learning rate as a function of the step."""

import math

from alexnet.config import ScheduleConfig


def learning_rate(config: ScheduleConfig, step: int, total_steps: int, global_batch: int) -> float:
    """Return the rate for `step`, counted from 0, of a run of `total_steps`.

    Linear warm-up reaches the peak at step `warmup_steps`; decay starts there, without a jump. The
    peak grows with the global batch (linear scaling, Krizhevsky 2014) where `base_batch` is set.
    """
    peak = config.learning_rate * global_batch / (config.base_batch or global_batch)
    if step < config.warmup_steps:
        return peak * (step + 1) / (config.warmup_steps + 1)
    since, span = step - config.warmup_steps, max(1, total_steps - config.warmup_steps)
    done = min(1.0, since / span)
    match config.decay:
        case "constant":
            return peak
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        case "polynomial":
            return peak * (1 - done) ** config.power
        case "step":
            return peak * config.decay_factor ** sum(done >= at for at in config.milestones)
        case "inverse_time":
            return peak / (1 + config.decay_rate * since)
