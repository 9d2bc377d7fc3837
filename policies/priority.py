"""priority: lower numbers first, with ageing so that no request waits for ever."""

from __future__ import annotations

from loratory.policy import (
    Arrived,
    Decisive,
    Ended,
    Event,
    InputError,
    Policy,
    Preempted,
    RequestView,
    Schedule,
    SortedQueue,
    View,
)


class Priority(Policy):
    """Strict priority: lower numbers go first, equals in arrival order; when KV memory runs out the request with the
    highest number is preempted. With ageing a request gains one level for each ``aging_s`` seconds it waits.

    Parameters:
        aging_s: seconds of waiting worth one level of priority; 0 is no ageing.
        ties_by_id: requests that arrived at the same time go by their ids, as texts, as in vLLM's queue; else in the
            order in which they came.
    """

    only_waiting = True
    observes = (Arrived, Preempted, Ended)
    source = "vLLM --scheduling-policy priority"
    decides_by: tuple[Decisive, ...] = ("priority",)

    def __init__(self, aging_s: float = 0.0, ties_by_id: bool = False) -> None:
        if aging_s < 0:
            raise InputError(f"priority: aging_s is {aging_s:g}: give 0 or more")
        self.aging_s = aging_s
        self.ties_by_id = ties_by_id
        self._queue = SortedQueue(self._order)

    def observe(self, event: Event) -> None:
        """Keep the waiting requests in order of priority."""
        self._queue.observe(event)

    def schedule(self, view: View) -> Schedule:
        """Admit by priority; those whose adapter finds no slot are passed over."""
        return self._queue.admit(view)

    def victim(self, view: View) -> RequestView:
        """The running request that matters least; of equals the one that was admitted first, as in vLLM."""
        return max(view.running, key=lambda request: self._order(request)[:2])

    def _order(self, request: RequestView) -> tuple[float, float, str]:
        """Ageing moves all waiting requests alike, so the order between two never changes and needs no update."""
        level = request.priority + (request.arrival / self.aging_s if self.aging_s else 0.0)
        return level, request.arrival, request.request_id if self.ties_by_id else ""
