"""Where ranks meet: Horovod's own key-value server, and the variables that lead a rank to it."""

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType

from horovod.runner.common.util.hosts import HostInfo, SlotInfo, get_host_assignments
from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer


def assign_ranks(workers_of: Mapping[str, int]) -> list[SlotInfo]:
    """Number the ranks node by node, given how many workers each node (by address) has."""
    hosts = [HostInfo(address, count) for address, count in workers_of.items()]
    slots: list[SlotInfo] = get_host_assignments(hosts, sum(workers_of.values()))
    return slots


class Rendezvous:
    """A server for one attempt. It takes anybody's writes: keep its port inside the cluster."""

    def __init__(self, address: str, slots: Sequence[SlotInfo]) -> None:
        """Serve the ranks in `slots` on a free port of `address`."""
        self._address = address
        self._server = RendezvousHTTPServer((address, 0), RendezvousHandler, 0)
        self._server.init(slots)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="rendezvous", daemon=True
        )

    def __enter__(self) -> "Rendezvous":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, slot: SlotInfo, interface: str, timeout: float) -> dict[str, str]:
        """Return the variables with which a rank finds the server and the other ranks.

        `timeout`, seconds, bounds the meeting and every collective.
        """
        return {
            "HOROVOD_HOSTNAME": slot.hostname,
            "HOROVOD_RANK": str(slot.rank),
            "HOROVOD_SIZE": str(slot.size),
            "HOROVOD_LOCAL_RANK": str(slot.local_rank),
            "HOROVOD_LOCAL_SIZE": str(slot.local_size),
            "HOROVOD_CROSS_RANK": str(slot.cross_rank),
            "HOROVOD_CROSS_SIZE": str(slot.cross_size),
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": self._address,
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(self._server.server_address[1]),
            "HOROVOD_GLOO_IFACE": interface,
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(int(timeout)),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
            # Groups must not merge by chance of timing, or sums differ from run to run.
            "HOROVOD_DISABLE_GROUP_FUSION": "1",
        }
