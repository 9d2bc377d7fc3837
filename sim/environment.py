"""ExactEnvironment: SimPy's, with events at exact absolute times and arrivals before step boundaries of a time."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf

from simpy import Environment
from simpy.events import NORMAL, URGENT, Event, EventPriority

__all__ = ["LATE", "NORMAL", "URGENT", "ExactEnvironment", "Feed", "succeed", "urge"]

LATE = EventPriority(NORMAL + 1)
"""After everything else of the same time."""


class Feed:
    """Arrivals that are fetched when their time has come, and need no events; this one has none."""

    next_at = inf
    """The absolute second of the next arrival."""

    def deliver(self, now: float) -> None:
        """Submit every request that has arrived by second ``now``."""


class ExactEnvironment(Environment):
    """A SimPy environment whose clock reads exactly what an event was scheduled for.

    ``feed``: arrivals, each of which comes before every event of its time.

    SimPy's ``timeout(delay)`` fires at ``now + delay``, rounded, so the same boundary reached in one jump or in many
    steps could differ in the last bit and order two events differently. `at` takes the absolute time instead.
    """

    feed = Feed()

    def reach(self, time: float) -> bool:
        """Set the clock to second ``time`` (not before now) if nothing comes up to then; else False, wait `at` it.

        The effect is that of a process that waits, without its event: during most steps of a replica nothing else
        happens.
        """
        queue = self._queue
        if (queue and queue[0][0] <= time) or self.feed.next_at <= time:
            return False
        self._now = time
        return True

    def run_until(self, over: Event) -> None:
        """Run until an event has been processed, as ``run(until=over)`` does: the same events in the same order.

        In one loop, where SimPy calls two functions for each event. Raises `RuntimeError` when no event is left.
        """
        queue, feed = self._queue, self.feed
        while over.callbacks is not None:
            if not queue or feed.next_at <= queue[0][0]:
                now = feed.next_at
                if now == inf:
                    raise RuntimeError("no event is left")
                self._now = now
                feed.deliver(now)
                continue
            self._now, _, _, event = heappop(queue)
            callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
            for callback in callbacks:
                callback(event)
            if not event._ok and not hasattr(event, "_defused"):
                raise event._value

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
