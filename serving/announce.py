"""Announcer: brings an engine's events to its sink and to the policy, each only those it wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from serving.errors import PolicyError
from serving.events import EVENTS, Decided, Event, Sink, Stepped
from serving.policy import Policy


class Announcer:
    """``wanted`` holds the event types somebody listens to; others need not be made.

    A sink may name the types it wants in an attribute ``wants`` (where that is a mapping, to the functions that take
    them), a policy in ``observes``; by default they get all. A policy never gets `Decided` and `Stepped`, which are for
    records.
    """

    __slots__ = ("_for_policy", "_observe", "_sinks", "policy", "wanted")

    def __init__(self, sink: Sink | None, policy: Policy) -> None:
        self.policy = policy
        self._observe: Callable[[Event], None] | None = getattr(policy, "observe", None)
        wants = getattr(sink, "wants", EVENTS) if sink is not None else ()
        self._sinks: dict[type, Any] = dict(wants) if isinstance(wants, Mapping) else dict.fromkeys(wants, sink)
        observes = frozenset(getattr(policy, "observes", EVENTS)) if self._observe is not None else frozenset()
        self._for_policy = observes - {Decided, Stepped}
        self.wanted: frozenset[type] = self._for_policy.union(self._sinks)

    def tell(self, event: Event) -> None:
        """Pass an event on. Raises `PolicyError` when the policy's ``observe`` raises."""
        kind = type(event)
        sink = self._sinks.get(kind)
        if sink is not None:
            sink(event)
        if kind in self._for_policy and self._observe is not None:
            try:
                self._observe(event)
            except Exception as error:
                raise self.error(event[0], f"its observe() raised {type(error).__name__}: {error}") from error

    def record(self, kind: type) -> Callable[[Any], None] | None:
        """Where to put events of a type that no policy gets; None when the sink does not want them."""
        return self._sinks.get(kind)

    def error(self, now: float, what: str) -> PolicyError:
        """A `PolicyError` that names the policy and the second it failed at."""
        name = getattr(self.policy, "spec", type(self.policy).__name__)
        return PolicyError(f"policy {name} failed at {now:.6f} s: {what}")
