"""Faults of the matrix that nothing injects yet. They fail: nobody shall take them for passed."""

from collections.abc import Callable

from benchmarks.faults.matrix import Figures, fault
from benchmarks.faults.processes import Missed
from benchmarks.faults.runs import Site

UNBUILT = {
    "network-cut": "a cut between two namespaces, healed later: no row yet",
    "nodes-come-and-go": "2 -> 3 -> 1 -> 2 nodes: no row yet; a running group does not grow",
    "stop-rank": "SIGTERM to a rank or to a raylet: no row yet",
    "soak": "an hour with a fault every 60 s: no row yet",
}


def _unbuilt(reason: str) -> Callable[[Site], Figures]:
    def inject(site: Site) -> Figures:
        raise Missed(f"not built: {reason}")

    return inject


for _name, _reason in UNBUILT.items():
    fault(_name)(_unbuilt(_reason))
