"""The attempts of a run, as its events tell of them, laid out in time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

SHOWN = 40  # attempts, the last ones
ENDS = ("lost", "growth", "completed", "preempted", "failed")
OPEN = "open"  # no end is known


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One life of the group. Times are seconds of the epoch, steps those of the run."""

    number: int
    workers: int
    began: float
    trained: float | None = None  # None: it did not come to that
    ended: float
    first_step: int = 0
    last_step: int = 0
    end: str = OPEN
    reason: str | None = None

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.ended - self.began


@dataclass(frozen=True, kw_only=True)
class Bar:
    """An attempt on an axis of launches without the time between them; places are shares of it."""

    attempt: Attempt
    at: float
    start_up: float
    training: float
    pause: float = 0.0  # seconds that nothing ran before it


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The last attempts, and how many were left out."""

    bars: list[Bar] = field(default_factory=list)
    seconds: float = 0.0
    left_out: int = 0


def timeline(
    events: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]], shown: int = SHOWN
) -> Timeline:
    """Lay out what `events.jsonl` tells; `metrics.jsonl` says how far an open attempt came."""
    found = attempts(events, metrics)
    last = found[-shown:]
    places, seconds, before = [], 0.0, last[0].began if last else 0.0
    for attempt in last:
        pause = max(0.0, attempt.began - before)
        places.append((seconds, pause))
        seconds += max(0.0, attempt.seconds)
        before = attempt.ended
    bars = [_bar(a, place, pause, seconds) for a, (place, pause) in zip(last, places, strict=True)]
    return Timeline(bars=bars, seconds=seconds, left_out=len(found) - len(last))


def attempts(
    events: Iterable[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]
) -> list[Attempt]:
    """Return all attempts; one that was not told of, but lost, could not be started."""
    found: list[Attempt] = []
    for event in events:
        kind, now, step = event["kind"], event["time"], event["step"]
        last = found[-1] if found else None
        if kind == "attempt":
            begun = Attempt(
                number=len(found) + 1,
                workers=event["workers"],
                began=now,
                ended=now,
                first_step=step,
                last_step=step,
            )
            found.append(begun)
        elif last is None or last.end != OPEN:
            continue
        elif kind == "training":
            found[-1] = replace(last, trained=now, ended=now, first_step=step, last_step=step)
        elif kind in ENDS:
            reason = event.get("reason")
            found[-1] = replace(last, ended=now, last_step=step, end=kind, reason=reason)
    return [_followed(attempt, later, metrics) for attempt, later in _with_next(found)]


def _with_next(found: list[Attempt]) -> Iterable[tuple[Attempt, float]]:
    """Yield each attempt with the time at which the next one began."""
    begins = [*(attempt.began for attempt in found[1:]), float("inf")]
    return zip(found, begins, strict=False)


def _followed(attempt: Attempt, later: float, metrics: Sequence[Mapping[str, Any]]) -> Attempt:
    """Return an attempt that has no end with what was last heard of it."""
    if attempt.end != OPEN:
        return attempt
    heard = [m for m in metrics if attempt.began <= m.get("time", 0) < later]
    if not heard:
        return attempt
    return replace(attempt, ended=heard[-1]["time"], last_step=heard[-1]["step"])


def _bar(attempt: Attempt, place: float, pause: float, whole: float) -> Bar:
    share = 1 / whole if whole > 0 else 0.0
    starting = (attempt.trained or attempt.ended) - attempt.began
    return Bar(
        attempt=attempt,
        at=place * share,
        start_up=starting * share,
        training=(attempt.seconds - starting) * share,
        pause=pause,
    )
