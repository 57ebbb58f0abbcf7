"""Two machines' worth of network on one: namespaces on a hub, and a cable that can be pulled."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.faults.matrix import Skipped
from tests.clusters import Host

HUB, CABLE = "chaos-hub", "cable"


@contextmanager
def joined(*hosts: Host) -> Iterator[None]:
    """Give each host its network namespace, with a cable to one hub.

    Raises:
        Skipped: this machine allows no namespaces.
    """
    try:
        _remove(hosts)
        _ip("netns", "add", HUB)
        _ip("-n", HUB, "link", "add", "name", "hub", "type", "bridge")
        _ip("-n", HUB, "link", "set", "hub", "up")
        for host in hosts:
            _join(host)
    except (OSError, subprocess.CalledProcessError) as error:
        _remove(hosts)
        reason = getattr(error, "stderr", "") or str(error)
        raise Skipped(f"no network namespaces here: {reason.strip()}") from None
    try:
        yield
    finally:
        _remove(hosts)


def pull(host: Host) -> None:
    """Pull the host's cable out of the hub: nothing comes or goes, and nobody is told."""
    _ip("-n", HUB, "link", "set", _end(host), "down")


def plug(host: Host) -> None:
    """Put it in again."""
    _ip("-n", HUB, "link", "set", _end(host), "up")


def _join(host: Host) -> None:
    space = _space(host)
    _ip("netns", "add", space)
    _ip(
        *f"link add name {CABLE} netns {space} type veth peer name {_end(host)} netns {HUB}".split()
    )
    _ip("-n", HUB, "link", "set", _end(host), "master", "hub", "up")
    _ip("-n", space, "addr", "add", f"{host.address}/24", "dev", CABLE)
    for link in ("lo", CABLE):
        _ip("-n", space, "link", "set", link, "up")


def _remove(hosts: tuple[Host, ...]) -> None:
    for space in (HUB, *map(_space, hosts)):
        subprocess.run(["ip", "netns", "delete", space], capture_output=True)


def _space(host: Host) -> str:
    assert host.namespace
    return host.namespace


def _end(host: Host) -> str:
    """Return the name of the cable's end at the hub, which may have 15 characters at most."""
    return f"to-{host.address}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
