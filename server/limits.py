"""RequestLimits: which requests a server takes on, and which it turns away at the door.

All methods belong to the event loop's thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from loratory.server.openai_errors import ApiError

RETRY_S = 1.0
"""When a client that was turned away may try again, in seconds."""

MOST_TENANTS = 10_000
"""Tenants that a server tells apart: the engine keeps the service of each, for ever."""


class RequestLimits:
    """Counts the outputs in progress; each request of ``n`` outputs counts n times.

    ``running()``: how many outputs the engine computes now, and how many it can at once. The queue is what is in
    progress beyond those that run; it may have ``max_queue`` outputs, or as many as the engine has places for.
    ``refused(reason)`` is told of each request that is turned away.
    """

    def __init__(
        self,
        max_queue: int,
        tenant_requests: int | None,
        running: Callable[[], tuple[int, int]],
        refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.max_queue = max_queue
        self.tenant_requests = tenant_requests
        self._running = running
        self._refused = refused
        self._tenants: Counter[str] = Counter()
        self._known: set[str] = set()
        self.in_progress = 0
        self.draining_s: float | None = None
        """While the server drains: seconds until it ends."""
        self.turned_away: Counter[str] = Counter()
        """Requests that were not taken, by reason: draining, queue, tenant, tenants."""

    def enter(self, tenant: str, outputs: int) -> None:
        """A request of ``outputs`` outputs is taken on: `leave` once for each. Raises `ApiError`: 503 while the server
        drains, 429 where queue or tenant have no room."""
        if self.draining_s is not None:
            raise self._away(503, "draining", "the server is draining: try another", self.draining_s)
        running, places = self._running()
        after = self.in_progress + outputs
        if after > places and after - running > self.max_queue:
            told = f"{self.in_progress - running} requests wait, and at most {self.max_queue} may: try again later"
            raise self._away(429, "queue", told)
        most = self.tenant_requests
        if most is not None and self._tenants[tenant] + outputs > most:
            told = f"tenant {tenant!r} has {self._tenants[tenant]} requests in progress, and may have {most}: try later"
            raise self._away(429, "tenant", told)
        if tenant not in self._known:
            if len(self._known) >= MOST_TENANTS:
                told = f"there have been {MOST_TENANTS} tenants, and no more are told apart: use a known one"
                raise self._away(429, "tenants", told)
            self._known.add(tenant)
        self.in_progress = after
        self._tenants[tenant] += outputs

    def leave(self, tenant: str) -> None:
        """One output of the tenant has ended."""
        self.in_progress -= 1
        self._tenants[tenant] -= 1
        if not self._tenants[tenant]:
            del self._tenants[tenant]

    def _away(self, status: int, reason: str, told: str, retry_s: float = RETRY_S) -> ApiError:
        self.turned_away[reason] += 1
        self._refused(reason)
        return ApiError(status, told, code=_CODES[reason], retry_after_s=retry_s)


_CODES = {
    "draining": "server_draining",
    "queue": "queue_full",
    "tenant": "tenant_limit",
    "tenants": "too_many_tenants",
}
