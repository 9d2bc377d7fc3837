"""Announcer: brings an engine's events to its sink and to the policy, each only those it wants."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, NoReturn

from loratory.errors import PolicyError, shortened
from loratory.serving.action_values import real, whole
from loratory.serving.engine_view import View
from loratory.serving.events import TOLD, Event, EventHandlers, Handler, Sink, handlers_of
from loratory.serving.eviction import Scorer
from loratory.serving.guest_errors import is_order, raised
from loratory.serving.policy import PolicyLike
from loratory.serving.policy_members import Members
from loratory.serving.views import AdapterView


class Announcer:
    """Gives the function for each type of event, or None: an event without one need not be made.

    A sink names the types it wants in ``wants``, a policy in ``observes``; by default they get all. A policy never gets
    `Decided` and `Stepped`, which are for records.
    """

    __slots__ = ("_for_policy", "_observe", "_raised", "_sinks", "failure", "forgiving", "policy")

    def __init__(self, sink: Sink | Handler | None, policy: PolicyLike, members: Members) -> None:
        self.policy = policy
        self._observe: Callable[[Event], None] | None = members.observe
        self._for_policy = frozenset(TOLD) if members.observes is None else members.observes
        self._sinks = handlers_of(sink)
        self._raised: PolicyError | None = None
        """The last error made here: it may come back out of the policy's code, through which it was raised."""
        self.forgiving = False
        """Whether another policy can take over from this one: then what it raises outside of `schedule` is kept in
        ``failure``, and the engine goes on without it."""
        self.failure: PolicyError | None = None
        """Why the policy has failed; it gets no event any more."""

    def handler(self, kind: type) -> Handler | None:
        """The function that passes events of a type on to sink and policy, or None when neither wants them.

        It raises `PolicyError` when the policy's ``observe`` raises.
        """
        sink, tell_policy = self._sinks.get(kind), self.policy_handler(kind)
        if tell_policy is None:
            return sink
        if sink is None:
            return tell_policy

        def tell_both(event: Event) -> None:
            sink(event)
            tell_policy(event)

        return tell_both

    def policy_handler(self, kind: type) -> Handler | None:
        """The same for the policy alone."""
        observe = self._observe
        if observe is None or kind not in self._for_policy:
            return None

        def tell_policy(event: Event) -> None:
            if self.failure is not None:
                return
            try:
                observe(event)
            except BaseException as error:
                self.forgive(event[0], error, "its observe()")

        return tell_policy

    def sink_handler(self, kind: type) -> Handler | None:
        """The same for the sink alone: for what the policy must not know."""
        return self._sinks.get(kind)

    def error(self, now: float, what: str) -> PolicyError:
        """A `PolicyError` that names the policy and the second it failed at."""
        name = getattr(self.policy, "spec", "") or type(self.policy).__name__
        self._raised = PolicyError(shortened(f"policy {shortened(str(name), 100)} failed at {now:.6f} s: {what}"))
        return self._raised

    def forgive(self, now: float, error: BaseException, subject: str) -> None:
        """Keep what came out of the policy's code as its ``failure``, or `blame` it where no other can take over."""
        if not self.forgiving or is_order(error):
            self.blame(now, error, subject)
        if isinstance(error, PolicyError) and error is self._raised:
            self.failure = error
        else:
            self.failure = self.error(now, raised(error, subject))

    def blame(self, now: float, error: BaseException, subject: str = "it") -> NoReturn:
        """Raise a `PolicyError` for what came out of the policy's code, or an order to stop as it is."""
        if is_order(error) or error is self._raised:
            raise error
        raise self.error(now, raised(error, subject)) from error

    def scorer(self, evict: Scorer) -> Scorer:
        """A policy's own ``evict``, whose faults are the policy's: it raises `PolicyError` where that raises, or
        returns what is no number."""

        def score(adapter: AdapterView, view: View) -> float:
            try:
                found = evict(adapter, view)
                number = found if type(found) is float or type(found) is int else _number(found)
            except BaseException as error:
                self.blame(view.now, error, "its evict()")
            if number is None or number != number:
                what = f"a value of type {type(found).__name__}" if number is None else str(number)
                raise self.error(view.now, f"its evict() returned {what} for adapter {adapter.name!r}: return a number")
            return number

        return score


def _number(value: Any) -> float | None:
    """A real number of any class as Python's own, so that it compares as numbers do; None for anything else."""
    kind = type(value)
    if not issubclass(kind, Real):
        return None
    return whole(value) if hasattr(kind, "__index__") else real(value)


def hearing(sink: Sink | Handler | None, kind: type, listener: Handler) -> Sink:
    """A sink that hands events of one type to ``listener`` first, and every event to ``sink`` as it wants them."""
    handlers = handlers_of(sink)
    then = handlers.get(kind)

    def heard(event: Event) -> None:
        listener(event)
        if then is not None:
            then(event)

    return EventHandlers({**handlers, kind: heard})
