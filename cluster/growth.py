"""When a running group should start again, larger: there has been room for a while."""

import time
from collections.abc import Callable

import ray

from cluster.plan import Plan

LOOK_SECONDS = 2.0


class Growth:
    """Looks now and then whether the cluster has come to have room for more ranks."""

    def __init__(self, plan: Plan, replan: Callable[[], Plan], after: float) -> None:
        """`plan` runs, `replan` is what would run now; room has to last for `after` seconds."""
        self._plan = plan
        self._replan = replan
        self._after = after
        self._looked = self._full = time.monotonic()

    def look(self) -> Plan | None:
        """Return the larger plan that there has been room for, or None."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return None
        self._looked = now
        larger = self._replan()
        if not self._has_room(larger):
            self._full = now
        return larger if now - self._full > self._after else None

    def _has_room(self, larger: Plan) -> bool:
        """Whether what `larger` has more than the plan that runs is nobody else's."""
        more, free = larger.workers - self._plan.workers, ray.available_resources()
        return more > 0 and all(
            more * amount <= free.get(kind, 0.0) for kind, amount in larger.bundle.items()
        )
