"""WaitQueue: waiting requests in arrival order, cheap to leave from any place, and QueueView, its read-only face."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Protocol

from loratory.serving.request import Request
from loratory.serving.views import RequestView

_view_of = attrgetter("view")


class Queued(Protocol):
    """What a queue reads of a `loratory.serving.sequence.Sequence`, which itself knows the queues it is in."""

    request: Request
    view: RequestView
    ticket: int


class WaitQueue:
    """A queue of tickets over a shared ``{ticket: Sequence}`` table; a ticket missing there has left.

    Tickets ascend in arrival order; preempted requests get descending negative ones and so stand in front. Leaving is
    O(1); the places of those who left are skipped and compacted away, so iteration is linear in who still waits. A
    policy may admit, reject or preempt while it iterates: who has left in the meantime is not yielded any more.
    """

    __slots__ = ("_start", "_table", "live", "tickets")

    def __init__(self, table: Mapping[int, Queued]) -> None:
        self._table = table
        self.tickets: list[int] = []
        self._start = 0
        self.live = 0
        """How many wait."""

    def append(self, ticket: int) -> None:
        """Join at the end."""
        self.tickets.append(ticket)
        self.live += 1

    def push_front(self, ticket: int) -> None:
        """Join in front of everybody."""
        if self._start:
            self._start -= 1
            self.tickets[self._start] = ticket
        else:
            self.tickets.insert(0, ticket)
        self.live += 1

    def left(self) -> None:
        """One ticket of this queue was removed from the shared table."""
        self.live -= 1
        if not self.live:
            self.clear()

    def clear(self) -> None:
        """Nobody waits here any more: forget the places of those who did."""
        self.tickets = []
        self._start = 0

    def _compact(self) -> None:
        if len(self.tickets) - self._start > 2 * self.live + 32 or self._start > self.live + 4096:
            table = self._table
            self.tickets = [ticket for ticket in self.tickets[self._start :] if ticket in table]
            self._start = 0

    def first(self) -> Queued | None:
        """The sequence in front, or None."""
        if not self.live:
            return None
        items, table, start = self.tickets, self._table, self._start
        while (sequence := table.get(items[start])) is None:
            start += 1
        self._start = start
        return sequence

    def sequences(self) -> Iterator[Queued]:
        """Who waits, front first."""
        if self.first() is None:  # which also moves past those who left from the front
            return
        self._compact()
        items, table = self.tickets, self._table
        place = self._start
        while place < len(items):
            sequence = table.get(items[place])
            if sequence is not None:
                yield sequence
            place += 1

    def __len__(self) -> int:
        return self.live


class QueueView:
    """A queue as a policy sees it: read-only and live. Iterates requests, the one in front first."""

    __slots__ = ("_queue",)

    def __init__(self, queue: WaitQueue) -> None:
        self._queue = queue

    def __iter__(self) -> Iterator[RequestView]:
        return map(_view_of, self._queue.sequences())

    def __len__(self) -> int:
        return self._queue.live

    @property
    def head(self) -> RequestView | None:
        """The request in front, or None when the queue is empty."""
        sequence = self._queue.first()
        return None if sequence is None else sequence.view
