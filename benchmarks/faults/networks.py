"""Two machines' worth of network on one: namespaces on a hub, and a cable that can be pulled."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.faults.matrix import Skipped
from tests.clusters import Host

HUB, CABLE = "chaos-hub", "cable"


@contextmanager
def joined(*hosts: Host, hub: str = HUB, bits_per_second: float = 0) -> Iterator[None]:
    """Give each host its network namespace, with a cable to one hub.

    A host without a namespace is this machine as it is, with a cable more. The others' cables carry
    no more than `bits_per_second` of what they send (0: any).

    Raises:
        Skipped: this machine allows no namespaces.
    """
    try:
        _remove(hosts, hub)
        _ip("netns", "add", hub)
        _ip("-n", hub, "link", "add", "name", "hub", "type", "bridge")
        _ip("-n", hub, "link", "set", "hub", "up")
        for host in hosts:
            _join(host, hub)
            if host.namespace and bits_per_second:
                _limit(host, bits_per_second)
    except (OSError, subprocess.CalledProcessError) as error:
        _remove(hosts, hub)
        reason = getattr(error, "stderr", "") or str(error)
        raise Skipped(f"no network namespaces here: {reason.strip()}") from None
    try:
        yield
    finally:
        _remove(hosts, hub)


def pull(host: Host) -> None:
    """Pull the host's cable out of the hub: nothing comes or goes, and nobody is told."""
    _ip("-n", HUB, "link", "set", _end(host), "down")


def plug(host: Host) -> None:
    """Put it in again."""
    _ip("-n", HUB, "link", "set", _end(host), "up")


def _join(host: Host, hub: str) -> None:
    if host.namespace:
        _ip("netns", "add", host.namespace)
        _ip("-n", host.namespace, "link", "set", "lo", "up")
    _ip("-n", hub, *f"link add name {_end(host)} type veth peer name {CABLE}".split())
    _ip("-n", hub, "link", "set", CABLE, "netns", host.namespace or str(os.getpid()))
    _ip("-n", hub, "link", "set", _end(host), "master", "hub", "up")
    _ip(*_inside(host), "addr", "add", f"{host.address}/24", "dev", CABLE)
    _ip(*_inside(host), "link", "set", CABLE, "up")


def _limit(host: Host, bits_per_second: float) -> None:
    queue = f"root tbf rate {bits_per_second:.0f} burst 256kb latency 200ms".split()
    _run("tc", *_inside(host), "qdisc", "replace", "dev", CABLE, *queue)


def _remove(hosts: tuple[Host, ...], hub: str) -> None:
    for space in (hub, *filter(None, (host.namespace for host in hosts))):
        subprocess.run(["ip", "netns", "delete", space], capture_output=True)
    if any(host.namespace is None for host in hosts):  # a namespace takes its cable with it
        subprocess.run(["ip", "link", "delete", CABLE], capture_output=True)


def _inside(host: Host) -> tuple[str, ...]:
    return ("-n", host.namespace) if host.namespace else ()


def _end(host: Host) -> str:
    """Return the name of the cable's end at the hub, which may have 15 characters at most."""
    return f"to-{host.address}"


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
