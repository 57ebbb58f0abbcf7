import math
from itertools import pairwise
from typing import Literal

import pytest

from alexnet.config import RunConfig, ScheduleConfig, load
from alexnet.schedule import learning_rate
from tests.clusters import ROOT

Decay = Literal["constant", "cosine", "polynomial", "step", "inverse_time"]
DECAYS: tuple[Decay, ...] = ("constant", "cosine", "polynomial", "step", "inverse_time")


@pytest.mark.parametrize(
    ("decay", "warmup", "step", "rate"),
    [
        ("constant", 0, 0, 1.0),
        ("constant", 0, 99, 1.0),
        ("constant", 4, 0, 0.2),
        ("constant", 4, 3, 0.8),
        ("constant", 4, 4, 1.0),
        ("cosine", 0, 0, 1.0),
        ("cosine", 0, 25, 0.5 * (1 + math.sqrt(0.5))),
        ("cosine", 0, 50, 0.5),
        ("cosine", 20, 60, 0.5),  # half-way from 20 to 100
        ("cosine", 0, 100, 0.0),
        ("cosine", 0, 250, 0.0),  # a step after the planned end
        ("polynomial", 0, 0, 1.0),
        ("polynomial", 0, 50, 0.25),
        ("polynomial", 20, 60, 0.25),
        ("polynomial", 0, 100, 0.0),
        ("polynomial", 0, 150, 0.0),
        ("step", 0, 49, 1.0),
        ("step", 0, 50, 0.1),
        ("step", 20, 60, 0.1),
        ("step", 0, 80, 0.01),
        ("inverse_time", 0, 0, 1.0),
        ("inverse_time", 0, 10, 0.5),
        ("inverse_time", 10, 40, 0.25),
        ("cosine", 200, 99, 0.4975124378109453),  # the run ends while it warms up
        ("cosine", 100, 100, 1.0),
    ],
)
def test_rate_of_a_step_of_100(decay: Decay, warmup: int, step: int, rate: float) -> None:
    config = ScheduleConfig(
        learning_rate=1,
        warmup_steps=warmup,
        decay=decay,
        decay_rate=0.1,
        milestones=(0.5, 0.75),
    )
    assert learning_rate(config, step, 100, 32) == pytest.approx(rate, abs=1e-15)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("warmup", [1, 7, 50])
def test_warm_up_rises_evenly_to_the_peak_and_decay_starts_there(decay: Decay, warmup: int) -> None:
    config = ScheduleConfig(learning_rate=0.3, warmup_steps=warmup, decay=decay)
    rates = [learning_rate(config, step, 1000, 32) for step in range(1000)]
    rise = 0.3 / (warmup + 1)
    assert rates[0] == pytest.approx(rise)
    for before, after in pairwise(rates[: warmup + 1]):
        assert after - before == pytest.approx(rise)
    assert rates[warmup] == pytest.approx(0.3)
    assert max(rates) == rates[warmup]
    for before, after in pairwise(rates[warmup:]):
        assert 0 <= before - after < 0.3 / 100


def test_cosine_ends_near_zero() -> None:
    config = ScheduleConfig(learning_rate=1, warmup_steps=10, decay="cosine")
    assert 0 < learning_rate(config, 999, 1000, 32) < 1e-5


@pytest.mark.parametrize(("batch", "peak"), [(512, 0.08), (1024, 0.16), (32768, 5.12), (128, 0.02)])
@pytest.mark.parametrize("decay", DECAYS)
def test_the_peak_grows_with_the_batch(batch: int, peak: float, decay: Decay) -> None:
    config = ScheduleConfig(learning_rate=0.08, base_batch=512, warmup_steps=10, decay=decay)
    rates = [learning_rate(config, step, 100, batch) for step in range(100)]
    assert max(rates) == rates[10] == pytest.approx(peak)
    assert rates[0] == pytest.approx(peak / 11)


RECIPE = {  # AlexNet-BN, 100 epochs: batch, peak, warm-up steps (You et al. 2017)
    512: (0.08, 0),
    1024: (2.0, 0),
    8192: (10.0, 600),
    16384: (24.0, 400),
    32768: (32.0, 400),
}


@pytest.mark.parametrize("batch", RECIPE)
def test_the_large_batch_recipe(batch: int) -> None:
    """Power 2, counted from the end of warm-up: no jump there, zero at the end."""
    peak, warmup = RECIPE[batch]
    steps = 100 * 1_281_167 // batch
    config = ScheduleConfig(learning_rate=peak, warmup_steps=warmup, decay="polynomial", power=2.0)
    for step in range(steps):
        left = (steps - step) / (steps - warmup)
        rate = peak * (step + 1) / (warmup + 1) if step < warmup else peak * left**2
        assert learning_rate(config, step, steps, batch) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(("preset", "batch"), [("imagenet", 512), ("imagenet-32k", 32768)])
def test_the_presets_are_of_that_recipe(preset: str, batch: int) -> None:
    config = load(RunConfig, ROOT / "configs" / f"{preset}.yaml")
    schedule = config.schedule
    assert config.train.global_batch == batch
    assert (schedule.learning_rate, schedule.warmup_steps) == RECIPE[batch]
    assert (schedule.decay, schedule.power, config.train.epochs) == ("polynomial", 2.0, 100)
    assert config.optimizer.name == ("lars" if batch > 512 else "sgd")
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 5e-4)
    assert config.model.name == "bn"
    assert (config.model.batchnorm_momentum, config.model.batchnorm_epsilon) == (0.9, 1e-4)
