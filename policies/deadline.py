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
    Lanes,
    Policy,
    Preempted,
    Reject,
    RequestView,
    Schedule,
    View,
    want,
)


class Deadline(Policy):
    """Earliest deadline first (of the first token); requests without a deadline come last, in arrival order. A request
    that could not be in time even if it were prefilled next is rejected at once, so that an overload does not make
    every request late.

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
        self._lanes: Lanes[str] = Lanes()
        self._waiting: dict[str, RequestView] = {}
        self._due: list[tuple[float, str]] = []
        self._prefill_s: dict[int, float] = {}
        """Seconds of a prefill alone, by its number of tokens."""

    def observe(self, event: Event) -> None:
        """Keep the waiting requests in order of their deadlines."""
        if isinstance(event, (Arrived, Preempted)):
            request = event.request
            self._waiting[request.request_id] = request
            order = (self._deadline(request), request.arrival)
            self._lanes.push(request.request_id, order, request.adapter)
            if self.abort and isinstance(event, Arrived) and order[0] < inf:
                heappush(self._due, (order[0], request.request_id))
        elif isinstance(event, Ended):
            self._drop(event.request.request_id)

    def schedule(self, view: View) -> Schedule:
        """Reject the hopeless, then admit by deadline."""
        if self.abort:
            while self._due:
                due = self._waiting.get(self._due[0][1])
                if due is not None and not self._is_late(view, due):
                    break
                heappop(self._due)
                if due is not None and not due.preemptions:
                    yield Reject(due, "its deadline could not be met")
        while (found := self._lanes.pick(view)) is not None:
            request = self._waiting[found[0]]
            outcome = yield from want(view, request)
            if outcome or outcome.why == "unknown":
                self._drop(request.request_id)
            elif outcome.why not in ("slots", "adapter") or (outcome.why == "slots" and view.slot_obtainable):
                return

    def _drop(self, request_id: str) -> None:
        self._lanes.discard(request_id)
        self._waiting.pop(request_id, None)

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
