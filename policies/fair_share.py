"""fair_share: the Virtual Token Counter, which serves the backlogged unit that has had the least service."""

from __future__ import annotations

from heapq import heappop, heappush, heapreplace
from typing import Literal

from loratory.policy import (
    Account,
    Arrived,
    By,
    Decisive,
    Ended,
    Event,
    FairnessLimits,
    InputError,
    Policy,
    Preempted,
    RequestView,
    Schedule,
    Units,
    View,
    want,
)


class FairShare(Policy):
    """Virtual Token Counter: each unit has a counter of its service. The unit with the smallest counter is served
    first, and if its request does not fit, no other overtakes it. Two backlogged units are never more than 2U apart,
    where U = max(w_in * longest prompt, w_out * KV tokens).

    Parameters:
        by: share among "tenant"s or "adapter"s.
        input_weight: service of a prompt token.
        output_weight: service of an output token.
        lift: the counter of a unit that comes back after idling. "paper": at least the smallest of the waiting units,
            or if none waits that of the last one that did; "min": only the former (the artifact); "none": unchanged.
        predict: charge an output's length at admission and correct it as it grows. "none"; "mean": the unit's mean
            so far; "request": the request's predicted_tokens.
        strict: stop when the request of the least served unit does not fit. Without it other units are served, and
            the bound is lost.
    """

    only_waiting = True
    observes = (Arrived, Preempted, Ended)
    source = "VTC, OSDI 2024, algorithms 2 and 3"

    def __init__(
        self,
        by: By = "tenant",
        input_weight: float = 1.0,
        output_weight: float = 2.0,
        lift: Literal["paper", "min", "none"] = "paper",
        predict: Literal["none", "mean", "request"] = "none",
        strict: bool = True,
    ) -> None:
        if input_weight < 0 or output_weight <= 0:
            raise InputError(
                f"fair_share: input_weight is {input_weight:g} and output_weight {output_weight:g}: give an "
                "input_weight of 0 or more and an output_weight above 0"
            )
        self.units = Units(by, input_weight, output_weight)
        self.lift = lift
        self.predict = predict
        self.strict = strict
        guessed: tuple[Decisive, ...] = ("predicted_tokens",) if predict == "request" else ()
        self.decides_by: tuple[Decisive, ...] = (by, "weight", *guessed)
        self._offset: dict[Account, float] = {}
        """By how much each unit has been lifted: its counter is this plus its service."""
        self._heap: list[tuple[float, int, Account]] = []
        """The backlogged units by counter, as it was when they were sorted: (counter, ticket, unit)."""
        self._queued: dict[Account, int] = {}
        """The ticket of each unit's entry in the heap; entries with another ticket are void."""
        self._ticket = 0
        self._came: list[tuple[RequestView, bool]] = []
        """Requests that arrived (True) or were preempted (False) since the last call."""
        self._last: Account | None = None
        """The last unit that left the heap because none of its requests waited any more."""
        self._fell: dict[Account, None] = {}
        """Units whose counter may have fallen since they were sorted, in the order in which it did."""
        self._guesses: dict[Account, dict[str, tuple[RequestView, float]]] = {}
        """The running requests of each unit by id, with the output tokens that each was charged for in advance."""
        self._means: dict[Account, tuple[int, float]] = {}
        """Completed requests of each unit, and the mean of their output tokens."""

    def observe(self, event: Event) -> None:
        """Units come back with an arrival or a preemption; predictions are settled when a request ends."""
        if isinstance(event, (Arrived, Preempted)):
            self._came.append((event.request, isinstance(event, Arrived)))
        elif isinstance(event, Ended) and self.predict != "none":
            unit = self.units.find(event.request)
            if unit is None:
                return
            if self._guesses.get(unit, {}).pop(event.request.request_id, None) is not None:
                self._fell[unit] = None  # the output was shorter than what was charged
            count, mean = self._means.get(unit, (0, 0.0))
            length = event.request.generated_tokens
            if event.status == "completed":
                self._means[unit] = (count + 1, mean + (length - mean) / (count + 1))

    def schedule(self, view: View) -> Schedule:
        """Admit the first request of the unit with the smallest counter until one does not fit."""
        self._activate(view)
        aside: list[Account] = []
        while (least := self._least()) is not None:
            unit, request, _ = least
            outcome = yield from want(view, request)
            if outcome:
                self._admitted(unit, request)
            elif self.strict or outcome.why not in ("slots", "adapter"):
                break
            else:
                aside.append(unit)
                del self._queued[unit]
        for unit in aside:
            self._enter(unit, self._counter(unit))

    def bound(self, limits: FairnessLimits) -> float | None:
        """2U (theorem 4.4), where the policy keeps it."""
        if not self.strict or self.predict != "none":
            return None
        largest = self.units.largest(limits)
        return None if largest is None else 2 * largest

    def _counter(self, unit: Account) -> float:
        counter = self._offset.get(unit, 0.0) + self.units.service(unit)
        if self._guesses and (guesses := self._guesses.get(unit)):
            ahead = sum(max(0.0, guess - request.generated_tokens) for request, guess in guesses.values())
            counter += self.units.output_weight * ahead / unit.weight
        return counter

    def _enter(self, unit: Account, counter: float) -> None:
        self._ticket += 1
        self._queued[unit] = self._ticket
        heappush(self._heap, (counter, self._ticket, unit))

    def _activate(self, view: View) -> None:
        """Let in the units that came back, after sorting anew those whose counter has fallen.

        *Lift.* The counter of a unit that idles stands still while the others grow. Unlifted, it would be served alone
        on its return until it has caught up: idling would save up service. So it starts where the least served of the
        others is:

            a 70, b 90 wait; c idled at 10, and a request of it arrives
            "paper" and "min"    c at 70: it is served next, and then in turn with a
            "none"               c at 10: it is served alone until it has had another 60

        When no unit waits, "paper" lifts it to the counter of the last one that did. A preempted request brings its
        unit back as well, but that was not idle: no lift.

        *Fall.* `_least` relies on entries that are never above the counter. A counter falls when an output ends before
        its guess, and when the unit's weight grows (it is service divided by weight). Its entry would stay too deep:

            entries    a 50, b 60     now    a 50, b 45: a would be picked, although b has had less

        This comes first, as the lift asks `_least`.
        """
        came, self._came = self._came, []
        fell, self._fell = self._fell, {}
        units: list[Account] = []
        for request, _ in came:
            known = self.units.find(request)
            weight = None if known is None else known.weight
            unit = self.units.of(view, request)
            units.append(unit)
            if weight is not None and weight != unit.weight:
                fell[unit] = None  # an adapter's weight is that of the last tenant that sent a request for it
        for unit in fell:
            if unit in self._queued:
                self._enter(unit, self._counter(unit))
        for unit, (_, arrived) in zip(units, came, strict=True):
            if unit in self._queued or not unit.waiting:
                continue
            counter = self._counter(unit)
            if arrived and self.lift != "none":
                floor = counter
                if (least := self._least()) is not None:
                    floor = least[2]
                elif self.lift == "paper" and self._last is not None:
                    floor = self._counter(self._last)
                if floor > counter:
                    self._offset[unit] = self._offset.get(unit, 0.0) + floor - counter
                    counter = self._counter(unit)
            self._enter(unit, counter)

    def _least(self) -> tuple[Account, RequestView, float] | None:
        """The backlogged unit with the smallest counter, its next request, and the counter.

        Outputs grow at every step, and no heap could follow: an entry keeps the counter that its unit had when it was
        sorted. Counters grow, so entries are too small or right (`_activate` sees to those that fall). A unit whose
        entry is too small comes to the top too early, is pushed down to its counter, and the next one has its turn:

            entries    a 40, b 50, c 60      counters now    a 55, b 50, c 80
            a is on top with 40: sorted anew at 55
            b is on top with 50, which is its counter: b is the least, and c was never looked at
        """
        heap = self._heap
        while heap:
            counter, ticket, unit = heap[0]
            if self._queued.get(unit) != ticket:
                heappop(heap)
                continue
            head = unit.first()
            if head is None:
                heappop(heap)
                del self._queued[unit]
                self._last = unit
                continue
            now = self._counter(unit)
            if now == counter:
                return unit, head, counter
            heapreplace(heap, (now, ticket, unit))
        return None

    def _admitted(self, unit: Account, request: RequestView) -> None:
        if self.predict == "none":
            return
        guess = request.predicted_tokens if self.predict == "request" else self._means.get(unit, (0, 0.0))[1]
        if guess:
            self._guesses.setdefault(unit, {})[request.request_id] = (request, float(guess))
