"""Numbers with a unit: command-line options, as in 100Gbit, and times in words."""

import math
import re
from typing import Any

import click

from alexnet.errors import ConfigError

PREFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
BITS = {f"{prefix}bit": factor / 8 for prefix, factor in PREFIXES.items()}
BYTES = {f"{prefix}B": factor for prefix, factor in PREFIXES.items()}
TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
CENTURY = 36525 * TIMES["d"]


class Quantity(click.ParamType):
    """A number with one of a few units."""

    def __init__(
        self,
        name: str,
        units: dict[str, float],
        example: str,
        *,
        may_be_zero: bool = False,
        most: float = math.inf,
    ) -> None:
        """Take numbers above 0 up to `most`, and 0 if it `may_be_zero`."""
        self.name = name
        self._units = units
        self._example = example
        self._may_be_zero = may_be_zero
        self._most = most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the quantity in bytes a second, in seconds, or as a share.

        Raises:
            ConfigError: it has none of the units, or is not within the bounds.
        """
        if isinstance(value, float):  # converted already
            return value
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z%]+)", value)
        amount = float(found[1]) * self._units.get(found[2], math.nan) if found else math.nan
        if math.isfinite(amount) and amount <= self._most and (amount or self._may_be_zero):
            return amount
        bound = "from 0" if self._may_be_zero else "above 0"
        raise ConfigError(
            f"{param.opts[0] if param else 'quantity'} {value!r}: expected a number {bound} and "
            f"one of {', '.join(self._units)}, as in {self._example}"
        )


BANDWIDTH = Quantity("bandwidth", BITS | BYTES, "100Gbit")
TIME = Quantity("time", TIMES, "25ms")
DELAY = Quantity("time", TIMES, "5us", may_be_zero=True)
SHARE = Quantity("percent", {"%": 0.01}, "15%", may_be_zero=True, most=1.0)


def in_words(seconds: float) -> str:
    """Return a time in the unit that suits it, as in 2.5 h."""
    if seconds > CENTURY:
        return "never"
    unit = next((u for u in ("d", "h", "min") if seconds >= 2 * TIMES[u]), "s")
    return f"{seconds / TIMES[unit]:.1f} {unit}"
