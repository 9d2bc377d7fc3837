"""misbehaving: policies that misbehave, each in one way, for tests of an engine or of what checks policies."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from operator import and_, eq, gt, lt, ne, or_, sub, xor
from typing import Any

from loratory.policy import (
    SCORERS,
    Admit,
    Ended,
    Event,
    Evict,
    Load,
    Outcome,
    Preempt,
    Prefetch,
    Reject,
    Schedule,
    Units,
    View,
    Wake,
    want,
)


class AdmitsEverything:
    """Admits without asking whether anything fits, and loads over every limit."""

    def schedule(self, view: View) -> Schedule:
        for request in list(view.waiting):
            if request.adapter is not None:
                yield Load(request.adapter)
            yield Admit(request, tokens=10**9)
            yield Admit(request)
            yield Admit(request)


class EvictsEverything:
    """Evicts adapters in use, pinned, on the way and unknown, around an ordinary first come, first served."""

    def schedule(self, view: View) -> Schedule:
        for request in list(view.waiting):
            yield from want(view, request)
            for name in view.adapters:
                outcome = yield Evict(name)
                adapter = view.adapters[name]
                assert not outcome or not (adapter.pinned or adapter.references)
            yield Evict("no such adapter")


class NeverAdmits:
    """Does nothing."""

    def schedule(self, view: View) -> Schedule:
        return
        yield


class RaisesInSchedule:
    """Fails when three requests have run."""

    def __init__(self) -> None:
        self.calls = 0

    def schedule(self, view: View) -> Schedule:
        for request in view.unblocked():
            self.calls += 1
            if self.calls > 3:
                raise KeyError("broken on purpose")
            yield from want(view, request)


class RaisesAtOnce:
    """Fails before it is a generator."""

    def schedule(self, view: View) -> Schedule:
        raise ZeroDivisionError("broken on purpose")


class RaisesInObserve:
    """Fails when told of the second arrival."""

    def __init__(self) -> None:
        self.events = 0

    def observe(self, event: Any) -> None:
        self.events += 1
        if self.events > 4:
            raise ValueError("broken on purpose")

    def schedule(self, view: View) -> Schedule:
        for request in view.unblocked():
            yield from want(view, request)


class RaisesInVictim:
    """Fails when asked whom to preempt."""

    def victim(self, view: View) -> Any:
        raise RuntimeError("broken on purpose")

    def schedule(self, view: View) -> Schedule:
        for request in view.unblocked():
            yield from want(view, request)


class WrongVictim:
    """Names something that is no running request."""

    def __init__(self, named: Any = "nobody") -> None:
        self.named = named

    def victim(self, view: View) -> Any:
        return self.named

    def schedule(self, view: View) -> Schedule:
        for request in view.unblocked():
            yield from want(view, request)


class LoopsRefused:
    """Yields an action that is refused, for ever."""

    def schedule(self, view: View) -> Schedule:
        while True:
            yield Evict("no such adapter")


class LoopsAccepted:
    """Yields an action that is accepted, for ever."""

    def schedule(self, view: View) -> Schedule:
        while True:
            yield Wake(at=view.now + 1.0)


class YieldsGarbage:
    """Yields what is no action."""

    def __init__(self, garbage: Any) -> None:
        self.garbage = garbage

    def schedule(self, view: View) -> Any:
        yield self.garbage


class ReturnsAList:
    """schedule returns what another function made, which is no generator."""

    def schedule(self, view: View) -> Any:
        return list(map(Admit, view.waiting))


class WritesAList:
    """schedule is no generator, as its text shows."""

    def schedule(self, view: View) -> Any:
        return [Admit(request) for request in view.waiting]


class ReturnsNone:
    """schedule forgets to yield."""

    def schedule(self, view: View) -> Any:
        return None


class PreemptsForEver:
    """Admits everybody and preempts everybody at once, each time it is asked, and asks to be asked."""

    def schedule(self, view: View) -> Schedule:
        for request in list(view.running):
            yield Preempt(request)
        for request in view.unblocked():
            yield from want(view, request)
        yield Wake(after_steps=1)


class AdmitsAndPreempts:
    """Admits and preempts the same request in one call."""

    def schedule(self, view: View) -> Schedule:
        for request in list(view.waiting):
            outcome = yield from want(view, request)
            if outcome:
                yield Preempt(request)
                yield Reject(request, "or not")


class WakesNow:
    """Asks to be woken now or in the past, and takes no for no answer."""

    def schedule(self, view: View) -> Schedule:
        for _ in range(20):
            yield Wake(at=view.now)
            yield Wake(at=view.now - 1.0)
            yield Wake(at=float("nan"))
            yield Wake(after_steps=0)
            yield Wake(after_steps=-3)
            yield Wake()


class WakesLater:
    """Keeps a wake-up ahead of it for ever and admits nobody."""

    def __init__(self, ahead_s: float = 1e-6) -> None:
        self.ahead_s = ahead_s

    def schedule(self, view: View) -> Schedule:
        yield Wake(at=view.now + self.ahead_s)


class WakesAtInfinity:
    """Asks for times and steps that never come, while serving in order."""

    def schedule(self, view: View) -> Schedule:
        yield Wake(at=float("inf"))
        yield Wake(after_steps=10**12)
        for request in view.unblocked():
            yield from want(view, request)


class PingPong:
    """Loads and evicts and admits nobody."""

    def schedule(self, view: View) -> Schedule:
        for name in list(view.adapters):
            yield Evict(name)
            yield Load(name)
            yield Prefetch(name)
        yield Wake(at=view.now + 1e-4)


class StalledPingPong:
    """Loads and evicts the same adapter within one call."""

    def schedule(self, view: View) -> Schedule:
        for name in list(view.adapters):
            for _ in range(3):
                yield Load(name)
                yield Evict(name)
        for request in view.unblocked():
            yield from want(view, request)


class OddArguments:
    """Actions with arguments of the wrong kind."""

    def schedule(self, view: View) -> Schedule:
        class Pretender:
            request_id = "0"

        requests = list(view.waiting)
        for thing in (None, 3, "0", object(), Pretender(), *requests[:1]):
            outcome: Outcome = yield Preempt(thing)  # type: ignore[arg-type]
            for tokens in (0, -1, 2.5, "many", float("nan"), True):
                outcome = yield Admit(thing, tokens)  # type: ignore[arg-type]
        for name in (None, 3, "", ("a1",)):
            outcome = yield Load(name)  # type: ignore[arg-type]
            assert not outcome
            outcome = yield Evict(name)  # type: ignore[arg-type]
            assert not outcome
            outcome = yield Prefetch(name)  # type: ignore[arg-type]
            assert not outcome
        for request in requests:
            yield from want(view, request)


class RejectsRunning:
    """Rejects whom it has admitted, and twice whom it has not."""

    def schedule(self, view: View) -> Schedule:
        for request in list(view.running):
            outcome = yield Reject(request, "too late")
            assert not outcome
        for place, request in enumerate(list(view.waiting)):
            if place % 2:
                yield Reject(request, "odd")
                outcome = yield Reject(request, "twice")
                assert not outcome
            else:
                yield from want(view, request)


class Takes:
    """The other operand of an operator: it keeps what it is handed."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def _take(self, other: Any) -> bool:
        self.taken.append(other)
        return False

    __ror__ = __rand__ = __rxor__ = __rsub__ = __lt__ = __gt__ = __eq__ = __ne__ = _take


class TriesDoors:
    """Tries to write to whatever it is handed: records, service, queues, costs. ``opened``: what let it."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.units = Units("tenant", 1.0, 2.0)

    def _forge(self, thing: Any, *names: str) -> None:
        """Assign to the last name, of what the others lead to."""
        try:
            for name in names[:-1]:
                thing = getattr(thing, name)
            setattr(thing, names[-1], 0)
        except (AttributeError, TypeError):
            return
        self.opened.append(".".join(names))

    def _forge_items(self, mapping: Any) -> None:
        """Write to a mapping, and to whatever an operator hands to its other operand."""
        takes = Takes()
        mappings = [mapping, getattr(mapping, "mapping", mapping)]
        for each in (
            *mappings,
            *(part() for m in mappings for n in ("keys", "values", "items") if (part := getattr(m, n, None))),
        ):
            for operate in (or_, and_, xor, sub, eq, ne, lt, gt):
                with suppress(TypeError):
                    operate(each, takes)
        for each in (*mappings, *takes.taken):
            with suppress(AttributeError, TypeError):
                each["brand new"] = 0
                del each["brand new"]
                self.opened.append(f"{type(each).__name__}[...]")

    def observe(self, event: Event) -> None:
        for name in event._fields:
            self._forge(event, name)
        if isinstance(event, Ended):
            self._forge(event, "sequence", "admitted_at")
            self._forge(event, "request", "generated_tokens")

    def schedule(self, view: View) -> Schedule:
        self._forge(view, "token_budget")
        self._forge(view, "cost", "step_seconds")
        for mapping in (view.adapters, view.on_gpu, view.tenants, view.backlogged, SCORERS):
            self._forge_items(mapping)
        for request in view.unblocked():
            self._forge(self.units.of(view, request), "usage", "admitted_tokens")
            self._forge(self.units.of(view, request), "weight")
            yield from want(view, request)


ENDS_WELL: dict[str, Callable[[], Any]] = {
    "evicts-everything": EvictsEverything,
    "victim-none": lambda: WrongVictim(None),
    "wakes-at-infinity": WakesAtInfinity,
    "preempts-for-ever": PreemptsForEver,
    "rejects-running": RejectsRunning,
    "tries-doors": TriesDoors,
}
"""The ledger keeps these in order and the run ends by itself with everybody served or rejected."""

MAY_STARVE: dict[str, Callable[[], Any]] = {
    "admits-everything": AdmitsEverything,
    "stalled-ping-pong": StalledPingPong,
    "odd-arguments": OddArguments,
}
"""These serve some and can hold the others up for ever."""

NEVER_SERVES: dict[str, Callable[[], Any]] = {
    "never-admits": NeverAdmits,
    "wakes-now": WakesNow,
    "wakes-later": WakesLater,
    "wakes-much-later": lambda: WakesLater(1e6),
    "ping-pong": PingPong,
}
"""These end with a report of who was never served."""


FAILS: dict[str, Callable[[], Any]] = {
    "raises-in-schedule": RaisesInSchedule,
    "raises-at-once": RaisesAtOnce,
    "raises-in-observe": RaisesInObserve,
    "loops-refused": LoopsRefused,
    "loops-accepted": LoopsAccepted,
    "yields-none": lambda: YieldsGarbage(None),
    "yields-string": lambda: YieldsGarbage("admit"),
    "yields-class": lambda: YieldsGarbage(Admit),
    "wrong-victim": WrongVictim,
    "returns-list": ReturnsAList,
}
"""These end with a PolicyError that names the policy."""

REFUSED: dict[str, Callable[[], Any]] = {
    "writes-list": WritesAList,
    "returns-none": ReturnsNone,
}
"""These are refused before a run begins, with an InputError that names the policy."""
