"""A row of `make bench`: what a round measures, and the ratios that come of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from benchmarks.environments import make_environment
from benchmarks.faults.networks import joined
from benchmarks.steps.peers import RUNNER, Measured, Peer, run
from tests.clusters import Host

T = TypeVar("T")
Samples = dict[str, list[float]]  # by figure


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What comes of a row, and the bound that it must keep, if any."""

    name: str
    goal: float | None = None
    direction: str = "min"  # of the bound


@dataclass(frozen=True, kw_only=True)
class Ratio(Figure):
    """One peer's value over another's, both of one round."""

    above: str
    below: str
    of: str = "images_per_second"  # a property of Measured, or what rank 0 has printed


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a round measures."""

    name: str
    about: str
    figures: Sequence[Figure]
    measure: Callable[["Bench", int], Samples]  # the round, counted from 0


@dataclass(kw_only=True)
class Bench:
    """How large measurements are, and which variants of peers have been found the quickest."""

    quick: bool = False
    best: dict[Peer, str] = field(default_factory=dict)
    runs: list[dict[str, object]] = field(default_factory=list)  # of the round

    def steps(self, steps: int) -> int:
        """Return how many to time."""
        return 3 if self.quick else steps

    def batch(self, images: int) -> int:
        """Return how many a rank takes."""
        return max(1, images // 8) if self.quick else images

    def run(self, peer: Peer, steps: int, *more: str, hosts: Sequence[Host] = ()) -> Measured:
        """Measure a peer, in the variant that is its best."""
        if peer.variants:
            if peer not in self.best:
                self.best[peer] = self._quickest(peer, steps)
            peer = _varied(peer, self.best[peer])
        if peer.environment:
            make_environment(peer.environment)
        found = run(peer, self.steps(steps), *more, hosts=hosts)
        self.runs.append({"peer": _in_words(peer), "ranks": found.ranks})
        return found

    @property
    def chosen(self) -> list[str]:
        """The quickest variants, for people."""
        found = self.best.items()
        return [f"{peer.program} {variant or 'by default'}" for peer, variant in found]

    def _quickest(self, peer: Peer, steps: int) -> str:
        paces = dict.fromkeys(peer.variants, 0.0)
        for variant in (*peer.variants, *reversed(peer.variants)):
            paces[variant] += self.run(_varied(peer, variant), steps).images_per_second
        return max(paces, key=lambda variant: paces[variant])


def _varied(peer: Peer, variant: str) -> Peer:
    return replace(peer, arguments=(*peer.arguments, *variant.split()), variants=())


def _in_words(peer: Peer) -> str:
    return " ".join([peer.program, f"{peer.ranks} x {peer.batch}", *peer.arguments])


def in_turns(names: Iterable[T], number: int) -> list[T]:
    """Return the order of a round: every other one goes backwards, so that drift cancels out."""
    return list(names)[:: -1 if number % 2 else 1]


def ratios(found: Mapping[str, Measured], wanted: Iterable[Figure]) -> Samples:
    """Return what one round gives of each ratio."""

    def value(name: str, of: str) -> float:
        measured = found[name]
        return float(measured.first[of] if of in measured.first else getattr(measured, of))

    return {
        ratio.name: [value(ratio.above, ratio.of) / value(ratio.below, ratio.of)]
        for ratio in wanted
        if isinstance(ratio, Ratio)
    }


def compare(
    name: str,
    about: str,
    peers: Callable[[Bench], dict[str, Peer]],
    wanted: Sequence[Ratio],
    steps: int,
    network: float | None = None,  # Gbit/s between namespaces; 0: any; None: loopback
) -> Row:
    """Return a row whose peers run one after the other, in fresh processes."""

    def measure(bench: Bench, number: int) -> Samples:
        found, chosen = {}, peers(bench)
        with namespaces(0 if network is None else 2, network or 0) as hosts:
            for key in in_turns(chosen, number):
                found[key] = bench.run(chosen[key], steps, hosts=hosts)
        return ratios(found, wanted)

    return Row(name=name, about=about, figures=wanted, measure=measure)


@contextmanager
def namespaces(count: int, gbits: float = 0) -> Iterator[list[Host]]:
    """Have namespaces with a cable each, and this machine on the same hub."""
    hosts = [Host(address=f"10.77.0.{at + 1}", namespace=f"bench-{at}") for at in range(count)]
    if not hosts:
        yield hosts
        return
    with joined(*hosts, RUNNER, hub="bench-hub", bits_per_second=gbits * 1e9):
        yield hosts
