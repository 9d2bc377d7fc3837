"""A policy's own versions of the tools: whatever core runs, plain Python inherits from each, and may be inexact."""

from __future__ import annotations

from typing import Any

import pytest
from lab import run

from loratory.errors import PolicyError
from loratory.policy import (
    Account,
    Arrived,
    Ended,
    Event,
    Lanes,
    Policy,
    Preempted,
    RequestView,
    Reservation,
    Rounds,
    Schedule,
    SortedQueue,
    Units,
    View,
    want,
)
from loratory.serving.config import EngineConfig
from loratory.testing import ToyCost, World, adapter, assert_run, workload

ADAPTERS = tuple(adapter(number) for number in range(1, 6))
WORLD = World(
    workload(
        [
            {"at": 0.002 * i, "adapter": [None, 1, 2, 3, 4, 5][i % 6], "prompt": 7, "out": 12, "tenant": i % 3}
            for i in range(40)
        ],
        ADAPTERS,
    ),
    ADAPTERS,
    EngineConfig(max_loras=2, max_num_seqs=8, num_gpu_blocks=60, block_size=2, max_num_batched_tokens=32),
    ToyCost(),
)


class CountedLanes(Lanes[RequestView]):
    """Counts what comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.pushed = 0
        self.gone = 0

    def push(self, item: RequestView, order: Any, adapter: str | None) -> None:
        """See `Lanes`."""
        self.pushed += 1
        super().push(item, order, adapter)

    def discard(self, item: RequestView) -> None:
        """See `Lanes`."""
        self.gone += 1
        super().discard(item)


class ByLanes(Policy):
    """Admits by lanes of its own."""

    def __init__(self) -> None:
        self.lanes = CountedLanes()

    def observe(self, event: Event) -> None:
        """See `Policy`."""
        if isinstance(event, (Arrived, Preempted)):
            self.lanes.push(event.request, [event.request.arrival], event.request.adapter)  # a list compares as well
        elif isinstance(event, Ended):
            self.lanes.discard(event.request)

    def schedule(self, view: View) -> Schedule:
        """See `Policy`."""
        while (found := self.lanes.pick(view)) is not None:
            outcome = yield from want(view, found[0])
            if outcome:
                self.lanes.discard(found[0])
            else:
                return


def test_lanes_that_inherit_are_asked_and_take_any_order() -> None:
    policy = ByLanes()
    result = run(WORLD, lambda: policy)
    assert_run(result)
    assert policy.lanes.pushed >= 40 and policy.lanes.gone >= 40 and len(policy.lanes) == 0
    assert {event.status for event in result.ended.values()} == {"completed"}


class LongestFirst(SortedQueue):
    """Its orders are numbers alone; it counts what it hears."""

    heard = 0

    def __init__(self) -> None:
        super().__init__(lambda request: -request.prompt_tokens - request.arrival)

    def observe(self, event: Event) -> None:
        """See `SortedQueue`."""
        self.heard += 1
        super().observe(event)


class ByQueue(Policy):
    """Admits by a sorted queue of its own."""

    def __init__(self) -> None:
        self.queue = LongestFirst()

    def observe(self, event: Event) -> None:
        """See `Policy`."""
        self.queue.observe(event)

    def schedule(self, view: View) -> Schedule:
        """See `Policy`."""
        return self.queue.admit(view)


def test_a_queue_that_inherits_hears_and_sorts_by_plain_numbers() -> None:
    policy = ByQueue()
    result = run(WORLD, lambda: policy)
    assert_run(result)
    assert policy.queue.heard >= 80
    ends = [event.request.arrival for event in result.ended.values()]
    assert len(ends) == 40 and ends != sorted(ends)  # the last to come are served first


class ByPriority(Units):
    """Measures service without outputs: an override that `Rounds`, which is Loratory's, has to call."""

    asked = 0

    def service(self, account: Account) -> float:
        """See `Units`."""
        self.asked += 1
        return super().service(account)


class TalkingRounds(Rounds):
    """Counts its own changes, which `Rounds.observe` calls."""

    changes = 0

    def changed(self, request: RequestView) -> None:
        """See `Rounds`."""
        self.changes += 1
        super().changed(request)


class ByRounds(Policy):
    """Deficit round robin, with tools of its own."""

    def __init__(self) -> None:
        self.units = ByPriority("tenant", 1, 2)
        self.rounds = TalkingRounds(self.units, 50)

    def observe(self, event: Event) -> None:
        """See `Policy`."""
        self.rounds.observe(event)

    def schedule(self, view: View) -> Schedule:
        """See `Policy`."""
        return self.rounds.serve(view)


def test_rounds_and_units_that_inherit_are_called_from_within() -> None:
    policy = ByRounds()
    result = run(WORLD, lambda: policy)
    assert_run(result)
    assert policy.units.asked > 40 and policy.rounds.changes >= 40
    assert len(result.ended) == 40


class Patient(Reservation):
    """Lets nothing in beside what runs."""

    def fits(self, view: View, new: RequestView) -> bool:
        """See `Reservation`."""
        return not view.running and super().fits(view, new)


class OneByOne(Policy):
    """One request at a time, by a rule of its own."""

    def __init__(self) -> None:
        self.rule = Patient()
        self.most = 0

    def schedule(self, view: View) -> Schedule:
        """See `Policy`."""
        if self.rule.steps_left(view):
            return
        self.rule.look(view)
        for request in view.waiting:
            if not self.rule.fits(view, request):
                return
            if not (yield from want(view, request)):
                return
            self.rule.add(view, request)
            self.most = max(self.most, len(view.running))


def test_a_reservation_that_inherits_decides() -> None:
    policy = OneByOne()
    result = run(WORLD, lambda: policy)
    assert_run(result)
    assert policy.most == 1 and len(result.ended) == 40


class Sloppy(Policy):
    """Hands a tool something that is none of what it takes."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def schedule(self, view: View) -> Schedule:
        """See `Policy`."""
        if self.kind == "unhashable":
            Lanes[Any]().push([], (0,), None)
        elif self.kind == "orders":
            lanes = Lanes[Any]()
            lanes.push("a", (0,), None)
            lanes.push("b", (None,), None)
            lanes.push("c", ("",), None)
        elif self.kind == "outcome":
            yield from want(view, next(iter(view.waiting)))
            raise ZeroDivisionError("of its own")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("unhashable", ": it raised TypeError: unhashable type: 'list'"),
        ("orders", ": it raised TypeError: '<' not supported between instances of"),
        ("outcome", ": it raised ZeroDivisionError: of its own"),
    ],
)
def test_a_wrong_value_is_the_policys_error_in_the_same_words(kind: str, sentence: str) -> None:
    with pytest.raises(PolicyError, match=r"^policy Sloppy failed at") as error:
        run(WORLD, lambda: Sloppy(kind))
    assert sentence in str(error.value) and "\n" not in str(error.value)
