"""A policy's members: what is refused, in one sentence with the remedy, and what goes on working."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from lab import run
from member_policies import BASES, PLACES, Based, Plain, held, made, refusal, world

from loratory.errors import InputError, LoratoryError, PolicyError
from loratory.policy import (
    Arrived,
    Ended,
    Event,
    Policy,
    RequestView,
    Schedule,
    View,
    want,
)
from loratory.serving.config import EngineConfig
from loratory.serving.events import EVENTS, TOLD, Decided, Stepped
from loratory.serving.fairness import FairnessLimits
from loratory.serving.policy_members import members_of, promised
from loratory.serving.policy_watch import PolicyWatch
from loratory.serving.reserved import WithReservation
from loratory.testing import ToyCost, World, adapter, workload


@BASES
@PLACES
@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"evict": "lruu"}, "its evict is 'lruu'; did you mean 'lru'?"),
        ({"evict": "LRU"}, "its evict is 'LRU'; did you mean 'lru'?"),
        ({"evict": "cost"}, "its evict is 'cost'; did you mean 'cost_aware'?"),
        ({"evict": "zzz"}, "its evict is 'zzz'; choose one of lru, lfu, fifo, cost_aware, or give a function"),
        ({"evict": 3}, "its evict is 3: give one of lru, lfu, fifo, cost_aware, or a function of (adapter, view)"),
        ({"evict": ["lru"]}, "its evict is a value of type list: give one of"),
        ({"prefetch": -1}, "its prefetch is -1: give 0 or more"),
        ({"prefetch": True}, "its prefetch is True: give a whole number"),
        ({"prefetch": 2.0}, "its prefetch is 2.0: give a whole number"),
        ({"prefetch": "3"}, "its prefetch is '3': give a whole number"),
        ({"only_waiting": 1}, "its only_waiting is 1: give True or False"),
        ({"only_waiting": "yes"}, "its only_waiting is 'yes': give True or False"),
        ({"decides_by": ("tenat",)}, "its decides_by has 'tenat'; did you mean 'tenant'?"),
        ({"decides_by": ("tenant", 3)}, "its decides_by has 3; choose among adapter, tenant, weight, priority,"),
        ({"decides_by": "tenant"}, "its decides_by is 'tenant', not a tuple: write decides_by = ('tenant',)"),
        ({"decides_by": {"tenant"}}, "its decides_by is a value of type set: give a tuple of words from adapter,"),
        ({"observes": (Arrived,)}, "it has observes but no observe method: write def observe(self, event)"),
        ({"victim": "last"}, "its victim is 'last': write a method, def victim(self, view)"),
        ({"bound": 3.0}, "its bound is 3.0: write a method, def bound(self, limits)"),
        ({"observe": [Arrived]}, "its observe is a value of type list: write a method, def observe(self, event)"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(
    base: type, place: Callable[..., Any], names: dict[str, Any], says: str
) -> None:
    assert says in refusal(place(base, **names))


class Told(Plain):
    """A policy that is told of events."""

    def observe(self, event: Event) -> None:
        """Nothing."""


@PLACES
@pytest.mark.parametrize(
    ("observes", "says"),
    [
        (
            ("Arrived",),
            "its observes has 'Arrived', which is no event type; name the event type itself, without qu",
        ),
        (("Arived",), "its observes has 'Arived', which is no event type; did you mean 'Arrived'?"),
        ("Arrived", "its observes is 'Arrived': give a tuple of event types, such as (Arrived, Ended)"),
        (Arrived, "its observes is Arrived, not a tuple: write observes = (Arrived,)"),
        ((Arrived, int), "its observes has int, which is no event type; choose among Arrived, Admitted, Served,"),
        ((Arrived, Event), "its observes has a value of type UnionType, which is no event type; name the event type"),
        ((Arrived, Decided), "its observes has Decided, which is for records only and told to no policy: remove it"),
        ((Stepped,), "its observes has Stepped, which is for records only and told to no policy: remove it"),
        (7, "its observes is 7: give a tuple of event types"),
    ],
)
def test_observes_names_event_types(place: Callable[..., Any], observes: Any, says: str) -> None:
    assert says in refusal(place(Told, observes=observes))


async def _async(self: Any, argument: Any) -> None:
    """A coroutine function."""


def _generator(self: Any, argument: Any) -> Any:
    yield argument


@BASES
@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"observe": lambda self: None}, "its observe(self) is called as observe(event): write def observe(self, ev"),
        ({"observe": lambda self, now, event: None}, "its observe(self, now, event) is called as observe(event): w"),
        ({"victim": lambda self, view, why: None}, "its victim(self, view, why) is called as victim(view): write "),
        ({"victim": lambda: None}, "its victim() is called as victim(view): write def victim(self, view)"),
        ({"bound": lambda self: 1.0}, "its bound(self) is called as bound(limits): write def bound(self, limi"),
        ({"evict": lambda adapter: 1.0}, "its evict(adapter) is called as evict(adapter, view): write def evict(s"),
        ({"evict": lambda self, a, b, c: 1.0}, "its evict(self, a, b, c) is called as evict(adapter, view): write d"),
        ({"schedule": lambda view: iter(())}, "its schedule(view) lacks self: write def schedule(self, view)"),
        ({"evict": int}, "its evict is the class int: give one of lru, lfu, fifo, cost_aware, or a functio"),
        ({"observe": _generator}, "its observe() has a yield, so that calling it runs none of its code: take the yi"),
        ({"victim": _generator}, "its victim() has a yield"),
        ({"bound": _generator}, "its bound() has a yield"),
        ({"observe": _async}, "its observe() is async, so that calling it runs none of its code: write def without"),
        ({"evict": _async}, "its evict() is async"),
        ({"evict": _generator}, "its evict() has a yield"),
        ({"schedule": _async}, "its schedule() is async, not a generator: write def without async, and yield actions"),
        ({"schedule": None}, "Mine has no schedule method: write def schedule(self, view)"),
    ],
)
def test_a_method_that_cannot_be_called_as_it_will_be_is_refused(base: type, names: Any, says: str) -> None:
    assert says in refusal(made(base, **names))


class ReturnsNothing(Plain):
    def schedule(self, view: View) -> Any:
        for request in view.unblocked():
            want(view, request)


class ReturnsEarly(Plain):
    def schedule(self, view: View) -> Any:
        if not view.waiting:
            return
        want(view, next(view.unblocked()))


class ReturnsLists(Plain):
    def schedule(self, view: View) -> Any:
        def inner() -> Any:
            return want(view, next(view.unblocked()))

        if not view.waiting:
            return []
        return [inner() for _ in view.waiting]


class HasNone(Policy):
    """Has no schedule of its own."""


@pytest.mark.parametrize("policy", [ReturnsNothing, ReturnsEarly, ReturnsLists])
def test_a_schedule_that_never_yields_is_refused(policy: type) -> None:
    assert "its schedule() is not a generator: yield actions in it, as in yield from want" in refusal(policy())


def test_a_policy_without_schedule_is_refused() -> None:
    assert "HasNone has no schedule method: write def schedule(self, view)" in refusal(HasNone())


class ReturnsAGenerator(Plain):
    def schedule(self, view: View) -> Any:
        if not view.waiting:
            return ()  # never reached: there is one when it is asked
        return super().schedule(view)


class ReturnsAnExpression(Plain):
    only_waiting = True

    def schedule(self, view: View) -> Any:
        from loratory.policy import Admit

        return (Admit(request) for request in view.waiting)


class RaisesAlways(Plain):
    def schedule(self, view: View) -> Any:
        raise KeyError("by and by")


def _passing(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def passing(*arguments: Any) -> Any:
        return method(*arguments)

    return passing


class Decorated(Plain):
    @_passing
    def schedule(self, view: View) -> Schedule:
        for request in view.unblocked():
            yield from want(view, request)


@pytest.mark.parametrize("policy", [ReturnsAGenerator, ReturnsAnExpression, RaisesAlways, Decorated])
def test_a_schedule_that_may_make_a_generator_is_a_policy(policy: type) -> None:
    members_of(policy())


def test_the_defaults_of_the_base_class_are_those_of_a_policy_without_it() -> None:
    assert members_of(Based()) == members_of(Plain())
    assert run(world(), Based).flat == run(world(), Plain).flat
    assert members_of(Based()).observe is None and members_of(Based()).victim is None


def test_no_event_is_made_for_a_policy_that_does_not_override_observe(monkeypatch: pytest.MonkeyPatch) -> None:
    from loratory.serving.engine import Engine
    from loratory.serving.events import Served

    def handlers(policy: Any) -> list[Any]:
        engine = Engine(world().config, world().adapters, policy, ToyCost())
        return [engine._announcer.handler(kind) for kind in sorted(EVENTS, key=str)]

    assert set(handlers(Based())) == set(handlers(Plain())) == {None}
    assert set(handlers(WithReservation(Based()))) == {None}
    assert None in handlers(Told()) and sum(handler is not None for handler in handlers(Told())) == len(TOLD)
    assert Served in TOLD and not {Decided, Stepped} & set(TOLD)


def test_an_override_may_call_the_default() -> None:
    told: list[type] = []

    class Mine(Based):
        observes = (Arrived, Ended)

        def observe(self, event: Event) -> None:
            super().observe(event)
            told.append(type(event))

        def victim(self, view: View) -> RequestView | None:
            return super().victim(view)

    run(world(), Mine)
    assert set(told) == {Arrived, Ended}


class Broken(Plain):
    @property
    def prefetch(self) -> int:
        raise ValueError("later")


class Exits(Plain):
    @property
    def decides_by(self) -> Any:
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("policy", "kind", "says"),
    [
        (Broken, InputError, "its prefetch raised ValueError: later (tests/serving/test_policy_members.py:"),
        (Exits, PolicyError, "its decides_by tried to end the process, with exit code 3"),
    ],
)
def test_a_member_that_raises_is_the_policys_error(policy: type, kind: type[LoratoryError], says: str) -> None:
    with pytest.raises(kind) as caught:
        members_of(policy())
    assert says in str(caught.value)


def test_none_stands_for_no_member() -> None:
    """A policy may switch off what it inherits."""
    names = ("evict", "prefetch", "observe", "observes", "victim", "bound", "only_waiting", "decides_by")
    assert members_of(held(Told, **dict.fromkeys(names))) == members_of(Plain())


class OnlyIndex:
    def __index__(self) -> int:
        return 2


class Loops(OnlyIndex):
    def __index__(self) -> int:
        while True:
            pass


class ListLoops(list[Any]):
    def __iter__(self) -> Any:
        while True:
            pass


class BadType(type):
    def __getattribute__(cls, name: str) -> Any:
        raise KeyError("no names")


def test_a_number_is_what_has_an_index() -> None:
    assert members_of(made(Plain, prefetch=OnlyIndex())).prefetch == 2
    assert members_of(made(Plain, prefetch=np.int64(3))).prefetch == 3


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"prefetch": np.array([1, 2])}, "its prefetch is a value of type ndarray: give a whole number"),
        ({"decides_by": [np.array([1, 2])]}, "its decides_by has a value of type ndarray; choose among adapter"),
        ({"source": 5}, "its source is 5: give a text"),
    ],
)
def test_a_value_of_another_library_is_refused(names: dict[str, Any], says: str) -> None:
    assert says in refusal(made(Plain, **names))


@pytest.mark.parametrize("names", [{"prefetch": Loops()}, {"decides_by": ListLoops()}, {"observes": ListLoops()}])
def test_reading_the_members_is_watched(names: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=r"did not come back within 0\.1 s"), PolicyWatch("mine", 0.1):
        members_of(made(Told, **names), "mine")


def test_a_metaclass_that_raises_is_the_policys_error() -> None:
    kind = BadType("Mine", (Plain,), {})
    with pytest.raises(InputError, match=r"policy 'mine': .* raised KeyError: 'no names'"):
        members_of(kind(), "mine")


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (lambda view: "r3", "returned 'r3'"),
        (lambda view: object(), "returned a value of type object"),
        (lambda view: next(iter(view.waiting)), "which does not run"),
        (lambda view: list(view.running), "returned a value of type list"),
    ],
)
def test_a_victim_is_a_running_request(returned: Callable[[View], Any], says: str) -> None:
    class Mine(Plain):
        def victim(self, view: View) -> Any:
            return returned(view)

    work = workload([{"adapter": 1, "prompt": 2, "out": 12}] * 6, (adapter(1),))
    config = EngineConfig(max_loras=2, num_gpu_blocks=20, block_size=1, max_num_seqs=3)
    tight = World(work, (adapter(1),), config, ToyCost())
    with pytest.raises(PolicyError, match=rf"its victim\(\) .*{says}.*: return a running request of view.running, or"):
        run(tight, Mine, check_books=False)
    for kind in (None, lambda view: next(iter(view.running))):
        fine = type("Fine", (Plain,), {"victim": lambda self, view, kind=kind: kind and kind(view)})
        assert len(run(tight, fine).ended) == 6


LIMITS = FairnessLimits(10, 10, 100, 4, 16)


@pytest.mark.parametrize(
    ("value", "says"),
    [(-1.0, "-1.0"), (float("nan"), "nan"), ("many", "'many'"), (True, "True"), ([1], "a value of type list")],
)
def test_a_bound_is_a_number_from_zero(value: Any, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        promised("mine", lambda limits: value, LIMITS)
    text = f"its bound() returned {says}: return a finite number of weighted tokens, 0 or more, or None"
    assert str(caught.value) == f"policy mine: {text}"
    assert promised("mine", lambda limits: 0, LIMITS) == 0.0 and promised("mine", lambda limits: None, LIMITS) is None
