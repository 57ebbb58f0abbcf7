"""NetworkPolicies as a packet filter in a pod's own network.

Kubernetes leaves them to its network plugin, and podman has none that knows them. This one
translates what our policies use: selectors of pods and namespaces by labels, and TCP or UDP ports.
Rules for address blocks match nobody here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Tree = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Somebody with an address."""

    address: str
    labels: Mapping[str, str]
    namespace: str = "alexnet"


def wall(policies: Sequence[Tree], labels: Mapping[str, str], peers: Iterable[Peer]) -> str:
    """Return the nft rules of a pod with these labels. What they do not let through is refused."""
    chains = []
    for kind, hook, side in (("Ingress", "input", "saddr"), ("Egress", "output", "daddr")):
        mine = [
            policy["spec"]
            for policy in policies
            if policy["kind"] == "NetworkPolicy"
            and kind in policy["spec"]["policyTypes"]
            and selects(policy["spec"]["podSelector"], labels)
        ]
        lines = [f"type filter hook {hook} priority 0", "ct state established,related accept"]
        lines += ["iifname lo accept" if hook == "input" else "oifname lo accept"]
        lines += [
            f"ip {side} {peer.address} {ports}accept"
            for peer in peers
            for spec in mine
            for ports in _let_through(spec, kind, peer)
        ]
        # With an answer, not in silence: a scan of all ports is then a matter of seconds.
        lines += ["meta l4proto tcp reject with tcp reset", "drop"] if mine else []
        chains.append("\n".join([f"chain {hook} {{", *lines, "}"]))
    return "\n".join(["table inet wall {", *chains, "}", ""])


def _let_through(spec: Tree, kind: str, peer: Peer) -> Iterator[str]:
    """The ports at which a policy lets a peer in or out, as conditions."""
    for rule in spec.get(kind.lower(), []):
        sides = rule.get("from" if kind == "Ingress" else "to")
        if sides is not None and not any(_is(side, peer) for side in sides):
            continue
        for port in rule.get("ports", [None]):
            yield _port(port) if port else ""


def _port(port: Tree) -> str:
    last = f"-{port['endPort']}" if "endPort" in port else ""
    return f"{port.get('protocol', 'TCP').lower()} dport {port['port']}{last} "


def _is(side: Tree, peer: Peer) -> bool:
    if "ipBlock" in side:
        return False
    namespace = {"kubernetes.io/metadata.name": peer.namespace}
    if "namespaceSelector" in side:
        if not selects(side["namespaceSelector"], namespace):
            return False
    elif peer.namespace != "alexnet":
        return False
    return selects(side.get("podSelector", {}), peer.labels)


def selects(selector: Tree, labels: Mapping[str, str]) -> bool:
    """Tell whether a label selector selects what has these labels."""
    named = selector.get("matchLabels", {}).items() <= dict(labels).items()
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "In":
            raise NotImplementedError(expression)
        named = named and labels.get(expression["key"]) in expression["values"]
    return named
