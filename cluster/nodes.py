"""Which nodes answer. Ray takes one for alive until its health checks have failed for a while."""

import socket
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

ANSWER_SECONDS = 1.0
AT_ONCE = 32
NODE_ID = "ray.io/node-id"  # the label that Ray gives each node


def resources_in_reach() -> dict[str, float]:
    """Return what the nodes have that answer, in use or not."""
    has = Counter[str]()
    for node, answers in _nodes():
        if answers:
            has.update(node["Resources"])
    return dict(has)


def only_in_reach() -> dict[str, str]:
    """Return the label selector of nodes that answer: any, where all do."""
    silent = [node["NodeID"] for node, answers in _nodes() if not answers]
    return {NODE_ID: f"!in({','.join(silent)})"} if silent else {}


def _nodes() -> list[tuple[Mapping[str, Any], bool]]:
    """Return each node that Ray takes for alive, and whether it takes connections."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(zip(alive, pool.map(_answers, alive), strict=True))


def _answers(node: Mapping[str, Any]) -> bool:
    address = node["NodeManagerAddress"], node["NodeManagerPort"]
    try:
        socket.create_connection(address, timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True
