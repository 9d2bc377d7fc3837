"""WaitQueue: waiting requests in arrival order, cheap to leave from any place, and QueueView, its read-only face."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from loratory.serving.compiling import mypyc_attr
from loratory.serving.read_only import LiveWalkOf
from loratory.serving.request import Request
from loratory.serving.views import RequestView

_view_of = attrgetter("view")


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class Queued:
    """What a queue reads of a `loratory.serving.sequence.Sequence`, whose own module imports this one."""

    __slots__ = ("request", "ticket", "view")
    __deletable__ = ("view",)
    """What may be deleted: mypyc asks (docs/compiled.md)."""

    request: Request
    view: RequestView
    ticket: int


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class WaitQueue:
    """A queue of tickets. ``by_ticket`` is shared by all queues, and has the requests that still wait.

    Tickets ascend (see `loratory.serving.wait_index.WaitIndex`). Leaving takes O(1): the ticket of a request that has
    left is not in ``by_ticket`` any more, and its place is skipped, and dropped with others when they are many:

        tickets      1 2 3 4 5 6
        by_ticket      2     5 6        1, 3 and 4 have left

    A policy may admit, reject or preempt while it iterates: requests that leave meanwhile are not yielded.
    """

    __slots__ = ("_by_ticket", "live", "start", "tickets")

    def __init__(self, by_ticket: dict[int, Queued]) -> None:
        self._by_ticket = by_ticket
        self.tickets: list[int] = []
        self.start = 0
        """The place of the first ticket that may still wait."""
        self.live = 0
        """The number of its requests that still wait."""

    def append(self, ticket: int) -> None:
        """Join at the end."""
        self.tickets.append(ticket)
        self.live += 1

    def push_front(self, ticket: int) -> None:
        """Join in front of all others."""
        if self.start:
            self.start -= 1
            self.tickets[self.start] = ticket
        else:
            self.tickets.insert(0, ticket)
        self.live += 1

    def left(self) -> None:
        """One of its tickets was removed from ``by_ticket``."""
        self.live -= 1
        if not self.live:  # drop all places; an iterator keeps the old list
            self.tickets = []
            self.start = 0

    def _compact(self) -> None:
        if len(self.tickets) - self.start > 2 * self.live + 32 or self.start > self.live + 4096:
            by_ticket = self._by_ticket
            self.tickets = [ticket for ticket in self.tickets[self.start :] if ticket in by_ticket]
            self.start = 0

    def first(self) -> Queued | None:
        """The sequence in front, or None."""
        if not self.live:
            return None
        tickets, by_ticket, start = self.tickets, self._by_ticket, self.start
        while (sequence := by_ticket.get(tickets[start])) is None:
            start += 1
        self.start = start
        return sequence

    def sequences(self) -> Iterator[Queued]:
        """The waiting requests, the one in front first."""
        if self.first() is None:  # which also moves past those that left from the front
            return
        self._compact()
        tickets, by_ticket = self.tickets, self._by_ticket
        place = self.start
        while place < len(tickets):
            sequence = by_ticket.get(tickets[place])
            if sequence is not None:
                yield sequence
            place += 1

    def __len__(self) -> int:
        return self.live


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class QueueView:
    """A queue as a policy sees it: read-only and live. Iterates requests, the one in front first."""

    __slots__ = ("_queue",)

    def __init__(self, queue: WaitQueue) -> None:
        self._queue = queue

    def __iter__(self) -> Iterator[RequestView]:
        return LiveWalkOf(_view_of, self._queue.sequences())

    def __len__(self) -> int:
        return self._queue.live

    @property
    def head(self) -> RequestView | None:
        """The request in front, or None when the queue is empty."""
        sequence = self._queue.first()
        return None if sequence is None else sequence.view
