"""SortedQueue: a tool for policies whose whole idea is an order of requests."""

from __future__ import annotations

from collections.abc import Callable

from loratory.serving.actions import Schedule
from loratory.serving.compiling import mypyc_attr
from loratory.serving.engine_view import View
from loratory.serving.events import Arrived, Ended, Event, Preempted
from loratory.serving.lanes import Lanes, Order
from loratory.serving.views import RequestView
from loratory.serving.want import want


@mypyc_attr(allow_interpreted_subclasses=True)
class SortedQueue:
    """The waiting requests in an order of the policy's own, and the loop that admits them.

        def __init__(self): self._queue = SortedQueue(lambda request: (request.prompt_tokens, request.arrival))
        def observe(self, event): self._queue.observe(event)
        def schedule(self, view): return self._queue.admit(view)

    ``order`` gives a tuple of numbers for a request; lower ones come first. It is computed when a request begins to
    wait, and must not change until it is admitted.
    """

    __slots__ = ("_lanes", "_order")

    def __init__(self, order: Callable[[RequestView], Order]) -> None:
        self._order = order
        self._lanes: Lanes[RequestView] = Lanes()

    def __len__(self) -> int:
        return len(self._lanes)

    def __contains__(self, request: RequestView) -> bool:
        return request in self._lanes

    def observe(self, event: Event) -> None:
        """Take in a request that arrived or was preempted, and forget one that ended; call it from ``observe``."""
        if isinstance(event, (Arrived, Preempted)):
            self._lanes.push(event.request, self._order(event.request), event.request.adapter)
        elif isinstance(event, Ended):
            self._lanes.discard(event.request)

    def admit(self, view: View) -> Schedule:
        """Admit in order: pass over requests that their adapter blocks, and stop at the first that does not fit."""
        lanes = self._lanes
        while (found := lanes.pick(view)) is not None:
            (request,) = found
            outcome = yield from want(view, request)
            if outcome.ok or outcome.why == "unknown":
                lanes.discard(request)
            elif outcome.why not in ("slots", "adapter") or (outcome.why == "slots" and view.slot_obtainable):
                return
