"""Curves as paths in a box of 1000 x 1000, whose labels are text of the page.

A browser stretches the box and leaves lines and letters as they are, so that a chart is as legible
on a phone as on a desk; no drawing library does that with its own text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles
from typing import NamedTuple

BOX = 1000
MOST = 300  # points of a line
MOST_DOTS = 40  # beyond, a point is not shown as such
FAR = 5.0  # times the 90th percentile: what is above is cut off

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values over the epochs."""

    name: str
    points: Points  # epoch, value


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A label at a share of an axis, 0..1."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve as it is drawn."""

    name: str
    last: str
    path: str
    band: str  # between the least and the largest value, where points are means
    dots: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A box with axes."""

    title: str
    x: list[Tick]
    y: list[Tick]
    lines: list[Line]
    beyond: str | None  # the largest value, if it is cut off


class Mean(NamedTuple):
    """What stands for some neighbouring points."""

    x: float
    value: float
    least: float
    largest: float


def chart(title: str, curves: Sequence[Curve], top: float | None = None) -> Chart | None:
    """Return curves from 0 up to `top` (None: to their own), or None if there are no values."""
    thinned = [(curve, found) for curve in curves if (found := thin(curve.points))]
    if not thinned:
        return None
    means = [mean for _, found in thinned for mean in found]
    largest = max(mean.largest for mean in means)
    y = ticks(top or min(largest, _ceiling([mean.value for mean in means])))
    end = max(mean.x for mean in means) or 1.0
    scale = (BOX / end, BOX / y[-1])
    return Chart(
        title=title,
        x=[Tick(at=value / end, label=_label(value)) for value in ticks(end) if value <= end],
        y=[Tick(at=value / y[-1], label=_label(value)) for value in y],
        lines=[_line(curve, found, scale) for curve, found in thinned],
        beyond=_label(largest) if largest > y[-1] else None,
    )


def thin(points: Points, most: int = MOST) -> list[Mean]:
    """Return at most `most` means over neighbours, with their extremes; of finite values only."""
    finite = [(x, value) for x, value in points if math.isfinite(value)]
    size = math.ceil(len(finite) / most) or 1
    groups = [finite[at : at + size] for at in range(0, len(finite), size)]
    return [_mean(group) for group in groups]


def ticks(end: float, most: int = 5) -> list[float]:
    """Return round numbers at equal distances, from 0 to the first at or above `end`."""
    rough = (end if end > 0 else 1.0) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.9999)
    count = math.ceil(rough * most / step - 1e-9)
    return [step * number for number in range(count + 1)]


def _ceiling(values: Sequence[float]) -> float:
    """Return what is not far above most values."""
    return FAR * quantiles(values, n=10)[-1] if len(values) >= 10 else math.inf


def _mean(group: Points) -> Mean:
    values = [value for _, value in group]
    return Mean(fmean(x for x, _ in group), fmean(values), min(values), max(values))


def _line(curve: Curve, means: list[Mean], scale: tuple[float, float]) -> Line:
    def at(x: float, value: float) -> str:
        height = min(max(value * scale[1], -BOX), 2 * BOX)
        return f"{x * scale[0]:.1f} {BOX - height:.1f}"

    path = "M" + "L".join(at(mean.x, mean.value) for mean in means)
    edge = [at(m.x, m.largest) for m in means] + [at(m.x, m.least) for m in reversed(means)]
    return Line(
        name=curve.name,
        last=_label(curve.points[-1][1]),
        path=path,
        band="M" + "L".join(edge) + "Z" if len(means) < len(curve.points) else "",
        dots="".join(f"M{at(m.x, m.value)}h0" for m in means) if len(means) <= MOST_DOTS else "",
    )


def _label(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
