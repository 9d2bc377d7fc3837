"""deadline: earliest deadline first; rejects early what cannot be in time."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf

from loratory.policy import (
    Arrived,
    BatchShape,
    Decisive,
    Ended,
    Event,
    InputError,
    Policy,
    Preempted,
    Reject,
    RequestView,
    Schedule,
    SortedQueue,
    View,
)


class Deadline(Policy):
    """Earliest deadline first (of the first token); requests without a deadline come last, in arrival order. A request
    that could not be in time even if it were prefilled next is rejected at once, so that an overload does not make
    every request late.

    Not modelled:
        S-LoRA's estimate of which requests can still be in time together: here each is tested alone.

    Parameters:
        abort: reject what cannot be in time.
        slack_s: deadline, in seconds after arrival, of requests that have none; 0 gives them none.
        margin_s: seconds to spare that a request needs beyond its prefill.
    """

    only_waiting = True
    observes = (Arrived, Preempted, Ended)
    source = "Liu and Layland, J. ACM 20(1), 1973; early abort: S-LoRA, MLSys 2024, section 5"

    def __init__(self, abort: bool = True, slack_s: float = 0.0, margin_s: float = 0.0) -> None:
        if slack_s < 0 or margin_s < 0:
            raise InputError(f"deadline: slack_s is {slack_s:g} and margin_s {margin_s:g}: give 0 or more")
        self.abort = abort
        self.slack_s = slack_s
        self.margin_s = margin_s
        self.decides_by: tuple[Decisive, ...] = () if slack_s else ("deadline",)
        self._queue = SortedQueue(lambda request: (self._deadline(request), request.arrival))
        self._due: list[tuple[float, str, int, RequestView]] = []
        """Requests that may come too late, the earliest deadline first: (deadline, id, number, request)."""
        self._number = 0
        self._prefill_s: dict[int, float] = {}
        """Seconds of a prefill alone, by its number of tokens."""

    def observe(self, event: Event) -> None:
        """Keep the waiting requests in order of their deadlines."""
        self._queue.observe(event)
        if self.abort and isinstance(event, Arrived):
            request = event.request
            deadline = self._deadline(request)
            if deadline < inf:
                self._number += 1
                heappush(self._due, (deadline, request.request_id, self._number, request))

    def schedule(self, view: View) -> Schedule:
        """Reject the hopeless, then admit by deadline."""
        if self.abort:
            while self._due:
                request = self._due[0][3]
                waits = request in self._queue
                if waits and not self._is_late(view, request):
                    break
                heappop(self._due)
                if waits and not request.preemptions:
                    yield Reject(request, "its deadline could not be met")
        yield from self._queue.admit(view)

    def _deadline(self, request: RequestView) -> float:
        if request.deadline is not None:
            return request.deadline
        return request.arrival + self.slack_s if self.slack_s else inf

    def _is_late(self, view: View, request: RequestView) -> bool:
        tokens = request.prompt_tokens - request.cached_tokens
        seconds = self._prefill_s.get(tokens)
        if seconds is None:
            shape = BatchShape(prefill_tokens=tokens, prefill_attention=tokens * (tokens + 1) * 0.5, prefill_seqs=1)
            seconds = self._prefill_s[tokens] = view.cost.step_seconds(shape)
        return view.now + seconds + self.margin_s > self._deadline(request)
