"""Announcer: brings an engine's events to its sink and to the policy, each only those it wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from loratory.errors import PolicyError, shortened
from loratory.serving.events import EVENTS, Decided, Event, EventHandlers, Handler, Sink, Stepped, handlers_of
from loratory.serving.guest_errors import is_order, raised
from loratory.serving.policy import Policy


class Announcer:
    """Events that nobody listens to need not be made.

    A sink names the types it wants in ``wants``, a policy in ``observes``; by default they get all. A policy never gets
    `Decided` and `Stepped`, which are for records.
    """

    __slots__ = ("_for_policy", "_observe", "_sinks", "policy")

    def __init__(self, sink: Sink | Handler | None, policy: Policy) -> None:
        self.policy = policy
        self._observe: Callable[[Event], None] | None = getattr(policy, "observe", None)
        self._sinks = handlers_of(sink)
        observes = frozenset(getattr(policy, "observes", EVENTS)) if self._observe is not None else frozenset()
        self._for_policy = observes - {Decided, Stepped}

    def teller(self, kind: type) -> Handler | None:
        """The function that passes events of a type on, or None when nobody wants them.

        It raises `PolicyError` when the policy's ``observe`` raises.
        """
        sink, observe = self._sinks.get(kind), self._observe
        if observe is None or kind not in self._for_policy:
            return sink

        def tell(event: Event) -> None:
            if sink is not None:
                sink(event)
            try:
                observe(event)
            except BaseException as error:
                self.blame(event[0], error, "its observe()")

        return tell

    def sink(self, kind: type) -> Handler | None:
        """The sink's part of `teller`: for what is not the policy's to know."""
        return self._sinks.get(kind)

    def error(self, now: float, what: str) -> PolicyError:
        """A `PolicyError` that names the policy and the second it failed at."""
        name = getattr(self.policy, "spec", type(self.policy).__name__)
        return PolicyError(shortened(f"policy {shortened(str(name), 100)} failed at {now:.6f} s: {what}"))

    def blame(self, now: float, error: BaseException, subject: str = "it") -> NoReturn:
        """Raise a `PolicyError` for what came out of the policy's code, or an order to stop as it is."""
        if is_order(error):
            raise error
        raise self.error(now, raised(error, subject)) from error


def hearing(sink: Sink | Handler | None, kind: type, listener: Handler) -> Sink:
    """A sink that hands events of one type to ``listener`` first, and every event to ``sink`` as it wants them."""
    handlers = handlers_of(sink)
    then = handlers.get(kind)

    def heard(event: Event) -> None:
        listener(event)
        if then is not None:
            then(event)

    return EventHandlers({**handlers, kind: heard})
