"""What a check has found, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    status: Status
    found: str
    remedy: str = ""  # a command or a setting, wherever it is not ok


def ok(found: str) -> Finding:
    """As it should be."""
    return Finding(status="ok", found=found)


def warning(found: str, remedy: str) -> Finding:
    """Training works, but slower, or with less around it, or not on several machines."""
    return Finding(status="warning", found=found, remedy=remedy)


def problem(found: str, remedy: str) -> Finding:
    """Training would fail."""
    return Finding(status="problem", found=found, remedy=remedy)
