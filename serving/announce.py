"""Announcer: brings an engine's events to its sink and to the policy, each only those it wants."""

from __future__ import annotations

from collections.abc import Callable

from serving.errors import PolicyError
from serving.events import EVENTS, Decided, Event, Sink, Stepped
from serving.policy import Policy


class Announcer:
    """``wanted`` holds the event types somebody listens to; others need not be made.

    A sink may name the types it wants in an attribute ``wants``, a policy in ``observes``; by default they get all
    (a policy never gets `Decided` and `Stepped`, which are for records).
    """

    __slots__ = ("_for_policy", "_for_sink", "_observe", "_sink", "policy", "wanted")

    def __init__(self, sink: Sink | None, policy: Policy) -> None:
        self.policy = policy
        self._sink = sink
        self._observe: Callable[[Event], None] | None = getattr(policy, "observe", None)
        self._for_sink = frozenset(getattr(sink, "wants", EVENTS) if sink is not None else ())
        observes = frozenset(getattr(policy, "observes", EVENTS)) if self._observe is not None else frozenset()
        self._for_policy = observes - {Decided, Stepped}
        self.wanted: frozenset[type] = self._for_sink | self._for_policy

    def tell(self, event: Event) -> None:
        """Pass an event on. Raises `PolicyError` when the policy's ``observe`` raises."""
        kind = type(event)
        if kind in self._for_sink and self._sink is not None:
            self._sink(event)
        if kind in self._for_policy and self._observe is not None:
            try:
                self._observe(event)
            except Exception as error:
                raise self.error(event[0], f"its observe() raised {type(error).__name__}: {error}") from error

    def record(self, kind: type) -> Sink | None:
        """Where to put events of a type that only the sink may want; None when it does not."""
        return self._sink if kind in self._for_sink else None

    def error(self, now: float, what: str) -> PolicyError:
        """A `PolicyError` that names the policy and the second it failed at."""
        name = getattr(self.policy, "spec", type(self.policy).__name__)
        return PolicyError(f"policy {name} failed at {now:.6f} s: {what}")
