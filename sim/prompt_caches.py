"""PromptCaches: on which replica of a fleet a request finds the cached part of its prompt."""

from __future__ import annotations

from collections.abc import Callable

from loratory.errors import several
from loratory.serving.request import Request
from loratory.sim.replica import Replica


class PromptCaches:
    """A KV cache belongs to one replica, and is lost with it.

    The workload says how many tokens of a prompt are cached. A turn finds them where the turn before it ran; on another
    replica, or on one that has started anew, it computes its whole prompt, and so does a request whose replica failed.
    Without sessions it is open which request left what is cached: it counts on every replica, and a note says so.

    ``after``: the number of the request that one follows in its session, -1 for none; None without sessions.
    """

    def __init__(self, after: Callable[[int], int] | None) -> None:
        self._after = after
        self._ran: dict[int, Replica] = {}
        """By number of a request, where it was sent last; only with sessions."""
        self._lost: set[str] = set()
        """Requests that compute what the workload says is cached."""

    def sent(self, request: Request, replica: Replica) -> Request:
        """The request as this replica gets it."""
        if self._after is None:
            return request
        number = int(request.request_id)
        before = self._after(number)
        self._ran[number] = replica
        return request if before < 0 or self._ran.get(before) is replica else self.lost(request)

    def lost(self, request: Request) -> Request:
        """A request that finds nothing cached."""
        if not request.cached_tokens:
            return request
        self._lost.add(request.request_id)
        return request._replace(cached_tokens=0)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report says of it."""
        found = []
        if self._lost:
            names: list[str] = sorted(self._lost, key=int)
            which = several(names, 1)
            found.append(
                f"the cached tokens of request {which} were computed, because the turn before ran on another replica, "
                "or a replica failed"
            )
        if self._after is None:
            found.append(
                "the workload's cached tokens count on every replica, as if all had one prefix cache: without sessions "
                "it is open which request left them"
            )
        return tuple(found)
