"""Checks of names, ports, and Ray's cluster."""

import errno
import ipaddress
import os
import re
import socket
from collections.abc import Sequence, Set

import psutil

from cluster.doctor.finding import Finding, ok, problem, warning
from cluster.doctor.subject import Subject

PORTS_MOST = 65535
CONNECT_SECONDS = 5
ADDRESS = re.compile(r"(?:ray://)?\[?([^/\]]+?)\]?:(\d+)")


def hostname(subject: Subject) -> Finding:
    """Whether this machine's name leads to an address of its own that others can reach.

    Ranks meet by Ray's address, and Ray goes by the name only where there is no route to others.
    """
    name = socket.gethostname()
    own = {entry.address.split("%")[0] for each in psutil.net_if_addrs().values() for entry in each}
    try:
        entries = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        entries = []
    found = sorted({str(entry[4][0]).split("%")[0] for entry in entries})
    is_alone = subject.ray_address is None
    return name_leads_to(name, found, own, is_alone=is_alone, has_route=_has_route())


def name_leads_to(
    name: str, found: Sequence[str], own: Set[str], *, is_alone: bool, has_route: bool
) -> Finding:
    """Judge the addresses `found` for a machine that has its `own`, and ranks on others or not."""
    outward = next((each for each in sorted(own) if _is_outward(each)), "127.0.0.1")
    remedy = f"in /etc/hosts, `{outward} {name}` in the place of what it has for {name}"
    severity = warning if has_route else problem
    shown = f"{name} is {', '.join(found)}"
    if not found:
        return severity(f"{name} does not resolve", remedy)
    if strange := [each for each in found if each not in own and not _is_loopback(each)]:
        return severity(f"{shown}; {strange[0]} is not this machine's", remedy)
    if any(map(_is_loopback, found)) and not is_alone:
        return warning(f"{shown}: other machines cannot reach that", remedy)
    return ok(shown)


def _has_route() -> bool:
    """Whether there is a way to other networks; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        try:
            client.connect(("192.0.2.1", 9))
        except OSError:
            return False
    return True


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _is_outward(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # of a link, as MAC addresses are
        return False
    return parsed.version == 4 and not parsed.is_loopback


def metrics_ports(subject: Subject) -> Finding:
    """Whether each rank here can answer scrapes."""
    cluster, ranks = subject.job.cluster, subject.ranks_here
    host, first = cluster.metrics_host, cluster.metrics_port
    if not first:
        return ok("metrics are off (cluster.metrics_port=0)")
    for port in range(first, first + ranks):
        error = _listening_error(host, port)
        if error and error.errno == errno.EADDRINUSE:
            free = _free_row(host, first, ranks)
            return warning(
                f"{host}:{port} is taken: no metrics of that rank", f"cluster.metrics_port={free}"
            )
        if error:
            return warning(f"{host}:{port}: {error.strerror}", "cluster.metrics_host=127.0.0.1")
    return ok(
        f"{host}:{first}" + (f" to {first + ranks - 1} are free" if ranks > 1 else " is free")
    )


def _free_row(host: str, first: int, count: int) -> int:
    for start in range(first + count, PORTS_MOST - count):
        if not any(_listening_error(host, port) for port in range(start, start + count)):
            return start
    return 0


def _listening_error(host: str, port: int) -> OSError | None:
    """Return why a rank could not listen there, as it would: ports just left may be taken again."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, port))
            server.listen()
        except OSError as error:
            return error
    return None


def ray_cluster(subject: Subject) -> Finding:
    """Whether the cluster to join answers, and takes the token."""
    address = subject.ray_address
    if address is None:
        return ok(f"RAY_ADDRESS is not set: a job starts Ray here, {os.cpu_count()} CPUs")
    leave = "unset RAY_ADDRESS to start Ray here"
    if (match := ADDRESS.fullmatch(address)) and (trouble := _connecting_trouble(*match.groups())):
        return problem(
            f"RAY_ADDRESS={address}: {trouble}",
            f"on the head: ray start --head --port={match[2]}; or {leave}",
        )
    joined = subject.cluster
    if joined.trouble:
        return problem(f"RAY_ADDRESS={address}: {joined.trouble}", f"ray status; or {leave}")
    if refused := joined.told.get("refused"):
        remedy = f"ray start --address={address}, if this machine is no node of it; or {leave}"
        if "token" in refused:
            remedy = "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=..., from the head: ray get-auth-token"
        return problem(f"RAY_ADDRESS={address}: {refused}", remedy)
    has = joined.told["resources"]
    found = ", ".join(f"{has.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
    nodes = joined.told["nodes"]
    return ok(f"{address}, token accepted: {nodes} node{'s' * (nodes != 1)}, {found}")


def _connecting_trouble(host: str, port: str) -> str | None:
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
