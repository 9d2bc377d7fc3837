"""A policy is a guest: through public names it reaches nothing of the engine's that can be changed."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any

import pytest
from lab import run

from loratory.policy import (
    Account,
    Admit,
    Arrived,
    Ended,
    Event,
    Lanes,
    Load,
    Outcome,
    Policy,
    Prefetch,
    RequestView,
    Reservation,
    Rounds,
    Schedule,
    SortedQueue,
    Unit,
    Units,
    View,
    Wake,
    want,
)
from loratory.serving.compiling import is_compiled
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.events import TOLD
from loratory.serving.gpu_slots import GpuSlots
from loratory.serving.host_cache import HostCache
from loratory.serving.kv_pool import KVPool
from loratory.serving.ledger import Ledger
from loratory.serving.usage import AdapterState, TenantState
from loratory.serving.wait_index import WaitIndex
from loratory.serving.wait_queue import WaitQueue
from loratory.testing import ToyCost, World, adapter, workload

CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
PLAIN = (int, float, str, bytes, bool, type(None), *CODE)
"""Values that nobody changes, and code."""

INTROSPECTION = ("gi_", "f_", "tb_", "cr_", "ag_")
"""Python's own doors into whatever runs: no class of ours can close them. A generator's variables are looked at."""

ASKED = ("idle", "first", "unblocked", "first_waiting")
"""Methods without arguments that answer with views."""

TOOLS = (Units, Rounds, Lanes, Reservation, SortedQueue)
"""A policy makes these itself."""


def world(**settings: Any) -> World:
    """Requests of three adapters, two slots, little KV memory, so that every event there is comes up."""
    adapters = (adapter(1), adapter(2), adapter(3, tier="host"))
    rows = [
        {"at": 0.01 * i, "adapter": [1, None, 2, 3][i % 4], "prompt": 5, "out": 9, "tenant": i % 2} for i in range(14)
    ]
    config = EngineConfig(
        **{"max_loras": 2, "max_num_seqs": 4, "num_gpu_blocks": 30, "block_size": 1, "max_num_batched_tokens": 16}
        | settings
    )
    return World(workload(rows, adapters), adapters, config, ToyCost())


def inside(thing: Any) -> Iterator[Any]:
    """What an object of ours holds, under whatever name; what a container holds."""
    if isinstance(thing, Mapping):
        yield from thing.keys()
        yield from thing.values()
    elif isinstance(thing, tuple | list | set | frozenset):
        yield from thing
    for kind in type(thing).__mro__:
        for name in (*getattr(kind, "__slots__", ()), *getattr(kind, "__mypyc_attrs__", ())):
            if hasattr(thing, name):
                yield getattr(thing, name)
    yield from getattr(thing, "__dict__", {}).values()


def everything(*roots: Any) -> dict[int, Any]:
    """All that an engine holds and changes, or could: by identity, without plain values and what is frozen."""
    found: dict[int, Any] = {}
    stack = list(roots)
    while stack:
        thing = stack.pop()
        if isinstance(thing, PLAIN) or id(thing) in found:
            continue
        found[id(thing)] = thing
        stack.extend(inside(thing))
    return {key: thing for key, thing in found.items() if not _fixed(thing)}


def _fixed(thing: Any) -> bool:
    """Whether an object cannot be changed under public names: a view, a frozen dataclass, a tuple ..."""
    if isinstance(thing, tuple | frozenset | range | types.MappingProxyType | types.MethodType):
        return True
    if is_dataclass(thing):
        return bool(thing.__dataclass_params__.frozen)  # type: ignore[attr-defined]
    return type(thing).__name__ in (
        "View",
        "RequestView",
        "AdapterView",
        "TenantView",
        "QueueView",
        "RequestViews",
        "LiveMapping",
        "LiveKeys",
    )


def steps(thing: Any, calls: Mapping[str, Iterable[tuple[Any, ...]]]) -> Iterator[tuple[str, Any]]:
    """Where one public step leads: attributes, calls without arguments or with those given, items, iteration."""
    if isinstance(thing, WaitIndex):
        return  # found already, and its methods take other arguments than a view's of that name
    if isinstance(thing, types.GeneratorType) and thing.gi_frame is not None:
        yield "f_locals", dict(thing.gi_frame.f_locals)
    if isinstance(thing, types.BuiltinMethodType):
        yield "__self__", thing.__self__
    copied = None
    if isinstance(thing, Iterator):
        with suppress(TypeError):  # what a copy of it would be made from
            copied = thing.__reduce__()
            yield "__reduce__()", copied
    for name in dir(thing):
        if name.startswith(("_", *INTROSPECTION)) or (isinstance(thing, TOOLS) and name in ("changed", "discard")):
            continue
        value = getattr(thing, name, None)
        if not callable(value):
            yield name, value
        elif name in calls:
            for arguments in calls[name]:
                yield f"{name}{arguments}", value(*arguments)
        elif name in ASKED or (isinstance(thing, Mapping) and name in ("keys", "values", "items")):
            yield f"{name}()", value()
    if isinstance(thing, Mapping):
        for key in thing:
            yield f"[{key!r}]", thing[key]
    elif isinstance(thing, Iterable) and not isinstance(thing, str) and not isinstance(copied, tuple):
        for place, value in enumerate(thing):
            yield f"[{place}]", value


def public(things: Mapping[str, Any], calls: Mapping[str, Iterable[tuple[Any, ...]]]) -> Iterator[tuple[str, Any]]:
    """Everything that public names lead to, each object once, with the way there."""
    seen: set[int] = set()
    kept: list[Any] = []  # so that no identity is given to another object
    stack = list(things.items())
    while stack:
        way, thing = stack.pop()
        if isinstance(thing, PLAIN) or id(thing) in seen or way.count("mapping") > 1 or way.count(".") > 6:
            continue
        seen.add(id(thing))
        kept.append(thing)
        yield way, thing
        stack += [(f"{way}.{step}", value) for step, value in steps(thing, calls)]


def settable(thing: Any) -> list[str]:
    """Public names of an object that can be assigned to; a new one included."""
    found: list[str] = []
    for name in [*(each for each in dir(thing) if not each.startswith("_")), "brand_new"]:
        try:
            setattr(thing, name, getattr(thing, name, 0))
        except (AttributeError, TypeError, ValueError):  # as pydantic's frozen models raise
            continue
        found.append(name)
    return found


class Explores(Policy):
    """Serves as others do, and looks at all that it is handed, by every way there is."""

    def __init__(self) -> None:
        self.units = {by: Units(by, 1.0, 2.0) for by in ("tenant", "adapter")}  # type: ignore[arg-type]
        self.rounds = Rounds(self.units["tenant"], 30.0)
        self.lanes: Lanes[str] = Lanes()
        self.reservation = Reservation()
        self.sorted = SortedQueue(lambda request: (request.arrival,))
        self.leaks: set[str] = set()
        self.written: set[str] = set()
        self.met: set[type] = set()
        self.looks = 0
        self.view: View | None = None
        self.requests: list[RequestView] = []
        """All there were: of those that have ended, the sequences are read when records are written."""
        self.outcomes: list[Outcome] = []
        self.ended: list[tuple[Ended, int, int]] = []

    def _look(self, **things: Any) -> None:
        view = self.view
        if view is None:
            return
        self.looks += 1
        kind = type(things.get("event"))
        if self.looks % 7 and kind in self.met:
            return
        requests = [*view.waiting, *view.running]
        tools = {"rounds": self.rounds, "lanes": self.lanes, "reservation": self.reservation, "sorted": self.sorted}
        handed = {"view": view, **tools, **things}
        for by, units in self.units.items():
            handed[f"{by} units"] = units
            handed |= {f"account of {r.request_id} by {by}": units.of(view, r) for r in requests}
        names: list[tuple[Unit]] = [(None,), *((name,) for name in view.adapters)]
        each = [(request,) for request in requests]
        calls: dict[str, Iterable[tuple[Any, ...]]] = {
            "waiting_for": names,
            "waiting_of": [(name,) for name in view.tenants],
            "adapter": each,
            "tenant": each,
            "find": each,
            "unblocked": [(), ("batch",), ("gpu",)],
            "first_waiting": [(), ("off",)],
        }
        theirs = everything(view._ledger, *(request._sequence for request in self.requests))
        for way, thing in public(handed, calls):
            self.met.add(type(thing))
            if id(thing) in theirs:
                self.leaks.add(f"{way}: {type(thing).__name__}")
            if type(thing).__module__.startswith("loratory.") and not isinstance(thing, TOOLS):
                self.written |= {f"{way}.{name}" for name in settable(thing)}

    def observe(self, event: Event) -> None:
        self.sorted.observe(event)
        if isinstance(event, Arrived):
            self.requests.append(event.request)
            self.rounds.changed(event.request)
            self.lanes.push(event.request.request_id, (event.now,), event.request.adapter)
        elif isinstance(event, Ended):
            self.lanes.discard(event.request.request_id)
            self.ended.append((event, event.request.generated_tokens, event.request.preemptions))
        self._look(event=event)

    def schedule(self, view: View) -> Schedule:
        self.view = view
        self.rounds.begin(view)
        self.rounds.pick(view, set())
        for action in (Load("a1"), Prefetch("a2"), Wake(at=view.now + 0.3), Admit(view)):  # type: ignore[arg-type]
            outcome = yield action
            self._look(outcome=outcome)
        for request in view.unblocked():
            if not self.reservation.steps_left(view):
                self.reservation.look(view)
            self.reservation.fits(view, request)
            outcome = yield from want(view, request)
            self._look(outcome=outcome, request=request)

    def victim(self, view: View) -> RequestView | None:
        self._look(view=view)
        return None


@pytest.mark.parametrize("loading", ["sync", "async"])
@pytest.mark.parametrize("memory", ["slots", "unified"])
def test_nothing_that_a_policy_is_handed_leads_to_what_the_engine_changes(memory: str, loading: str) -> None:
    policy = Explores()
    run(world(memory=memory, adapter_loading=loading), lambda: policy, check_books=False)
    some = world(memory="slots", adapter_loading=loading)
    engine = Engine(some.config, some.adapters, policy, some.cost)
    engine.add_adapter(adapter(99), 0.0)
    engine.adapters.remove("a99", lambda why: None)
    engine.plan(0.1)
    assert policy.looks > 50 and not policy.leaks, sorted(policy.leaks)[:9]
    assert not policy.written, sorted(policy.written)[:9]
    assert {View, RequestView, Account, Outcome, *TOOLS} <= policy.met
    assert {kind.__name__ for kind in TOLD} - {kind.__name__ for kind in policy.met} == set()


def test_a_request_is_readable_after_its_end() -> None:
    """As it was when its end was told."""
    policy = Explores()
    result = run(world(), lambda: policy, check_books=False)
    assert len(policy.ended) == len(result.ended) == 14 and any(preempted for _, _, preempted in policy.ended)
    for event, generated, preemptions in policy.ended:
        request = event.request
        assert (request.generated_tokens, request.preemptions) == (generated, preemptions)
        assert request.running is False and request.kv_tokens == 0 and request.prompt_tokens == 5
        assert event.status == "completed" and generated == 9


def _reopened(monkeypatch: pytest.MonkeyPatch, kind: type, name: str, read: Callable[[Any], Any]) -> Explores:
    monkeypatch.setattr(kind, name, property(read), raising=False)
    policy = Explores()
    run(world(), lambda: policy, check_books=False)
    return policy


@pytest.mark.parametrize(
    ("kind", "name", "read", "leak"),
    [
        (Ended, "sequence", lambda event: event.request._sequence, "event.sequence: Sequence"),
        (Account, "usage", lambda account: account._usage, ".usage: TenantState"),
        (Account, "queue", lambda account: account._usage.queue_view._queue, ".queue: WaitQueue"),
        (View, "cost", lambda view: view._ledger.cost, "view.cost: ToyCost"),
        (View, "walk", lambda view: view._ledger.waiting.unblocked("any", None, ()), "f_locals.['self']: WaitIndex"),
        (
            View,
            "walk",
            lambda view: map(str, view._ledger.waiting.unblocked("any", None, ())),
            "f_locals.['self']: WaitIndex",
        ),
        (View, "adapters", lambda view: view._ledger.slots.views, "view.adapters: dict"),
        (View, "queue", lambda view: view._ledger.sequences.values(), "view.queue.[0]: Sequence"),
        (
            View,
            "backlogged",
            lambda view: dict(view._ledger.adapters).keys(),
            "view.backlogged.mapping.['a1']: AdapterState",
        ),
        (RequestView, "request", lambda request: request._sequence.tenant, ".request: TenantState"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # attributes of pydantic's, where the walk gets that far
def test_the_walk_finds_a_door(
    monkeypatch: pytest.MonkeyPatch, kind: type, name: str, read: Callable[[Any], Any], leak: str
) -> None:
    """Those that were open once, and others like them."""
    if name == "walk" and is_compiled():
        pytest.skip("a compiled generator has no frame to look into")
    found = _reopened(monkeypatch, kind, name, read).leaks
    assert any(leak in each for each in found), sorted(found)[:9]


def test_the_walk_finds_what_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Account, "weight", property(lambda account: 1.0, lambda account, weight: None))
    policy = Explores()
    run(world(), lambda: policy, check_books=False)
    assert policy.written and all(each.endswith(".weight") for each in policy.written)


def test_the_walk_knows_what_an_engine_changes() -> None:
    ledgers: list[Ledger] = []

    class Keeps(Explores):
        def schedule(self, view: View) -> Schedule:
            ledgers.append(view._ledger)
            yield from super().schedule(view)

    run(world(), Keeps, check_books=False)
    kinds = {type(thing) for thing in everything(ledgers[0]).values()} - {list}
    assert kinds >= {
        Ledger,
        KVPool,
        GpuSlots,
        HostCache,
        WaitIndex,
        WaitQueue,
        AdapterState,
        TenantState,
        ToyCost,
        dict,
    }
