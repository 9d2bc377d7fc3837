"""ExactEnvironment: SimPy's, with events at exact absolute times and arrivals before step boundaries of a time."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush

from simpy import Environment
from simpy.events import NORMAL, URGENT, Event, EventPriority

__all__ = ["LATE", "NORMAL", "URGENT", "ExactEnvironment", "succeed", "urge"]

LATE = EventPriority(NORMAL + 1)
"""After everything else of the same time."""


class ExactEnvironment(Environment):
    """A SimPy environment whose clock reads exactly what an event was scheduled for.

    SimPy's ``timeout(delay)`` fires at ``now + delay``, rounded, so the same boundary reached in one jump or in many
    steps could differ in the last bit and order two events differently. `at` takes the absolute time instead.
    """

    def reach(self, time: float) -> bool:
        """Set the clock to second ``time`` (not before now) if no event comes up to then; else False, wait `at` it.

        The effect is that of a process that waits, without its event: during most steps of a replica nothing else
        happens.
        """
        queue = self._queue
        if queue and queue[0][0] <= time:
            return False
        self._now = time
        return True

    def at(self, time: float, priority: EventPriority = NORMAL) -> Event:
        """An event that succeeds at second ``time`` (not before now); URGENT ones come first, LATE ones last."""
        event = Event.__new__(Event)
        event.env = self
        event.callbacks = []
        event._ok = True
        event._value = None
        heappush(self._queue, (max(time, self._now), priority, next(self._eid), event))
        return event

    def call_at(self, time: float, function: Callable[[], None], priority: EventPriority = NORMAL) -> None:
        """Call a function at second ``time``."""

        def call(_: Event) -> None:
            function()

        event = self.at(time, priority)
        assert event.callbacks is not None
        event.callbacks.append(call)


def succeed(event: Event) -> None:
    """Trigger an event that may have been triggered already."""
    if not event.triggered:
        event.succeed()


def urge(event: Event) -> None:
    """Trigger an event that may have been triggered already, before everything of this time that is not urgent."""
    if not event.triggered:
        event._ok = True
        event._value = None
        event.env.schedule(event, URGENT)
