"""Which rank holds up the others: the one whose own work takes several times as long as theirs."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from cluster.board import Status

OWN_WORK = ("data", "compute")  # the rest of a step is waiting for others
STEPS = 4  # over which work is measured: a pause of a moment names nobody
SLOW = 2.5  # times the median of the others


@dataclass(frozen=True)
class _Mark:
    """Where a rank was when a measurement began."""

    step: int
    seconds: float  # of its own work so far


class Stragglers:
    """Compares the ranks' own work, from what each says of itself, and names a slow one once."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}  # step that a rank went on from
        self._marks: dict[int, _Mark] = {}
        self._per_step: dict[int, float] = {}
        self._named: set[int] = set()

    def look(self, statuses: Mapping[int, Status], world_size: int) -> list[str]:
        """Take a look at the ranks; return what is to be said of those found slow by it."""
        for rank, status in statuses.items():
            self._measure(rank, status)
        if len(self._per_step) < max(2, world_size):
            return []
        return [self._name(rank) for rank in sorted(self._per_step) if self._is_slow(rank)]

    @property
    def slowest(self) -> tuple[int, float] | None:
        """The rank with most work of its own, in times of the others' (None: not known yet)."""
        if len(self._per_step) < 2:
            return None
        rank = max(self._per_step, key=self._per_step.__getitem__)
        return rank, self._per_step[rank] / max(self._others(rank), 1e-9)

    def _measure(self, rank: int, status: Status) -> None:
        if status.step is None or status.step == self._first.setdefault(rank, status.step):
            return  # the first step of an attempt, which builds the graph, is none to measure
        now = _Mark(status.step, sum(status.phase_seconds.get(phase, 0.0) for phase in OWN_WORK))
        mark = self._marks.setdefault(rank, now)
        if now.step - mark.step >= STEPS:
            self._per_step[rank] = (now.seconds - mark.seconds) / (now.step - mark.step)
            self._marks[rank] = now

    def _is_slow(self, rank: int) -> bool:
        return rank not in self._named and self._per_step[rank] > SLOW * self._others(rank)

    def _others(self, rank: int) -> float:
        return median(seconds for other, seconds in self._per_step.items() if other != rank)

    def _name(self, rank: int) -> str:
        self._named.add(rank)
        return (
            f"rank {rank} is slow: {self._per_step[rank]:.2f} s of its own work a step, "
            f"{self._others(rank):.2f} s on the others"
        )
