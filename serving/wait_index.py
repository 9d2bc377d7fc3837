"""WaitIndex: the waiting requests by arrival, by adapter and by tenant, and those that no adapter blocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Literal, cast

from loratory.serving.compiling import mypyc_attr
from loratory.serving.sequence import Sequence
from loratory.serving.usage import AdapterState
from loratory.serving.views import AdapterView, RequestView
from loratory.serving.wait_queue import Queued, WaitQueue

Within = Literal["batch", "gpu", "any"]
"""Requests for which adapters: those that running requests use, those on the GPU, or also those to be loaded."""

Names = Collection[str | None]

_Next = tuple[int, AdapterState, Iterator[Queued] | None]
"""A queue in a merge: its next ticket, its adapter, and, once a request was passed over, an iterator at that place."""

SCAN = 8
"""Waiting requests up to which a scan of them all is faster than merging queues."""


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class WaitIndex:
    """The waiting requests of one engine, in every order that a policy asks for. Joining and leaving take O(log n).

    A request that begins to wait draws a ticket, a number that grows with every arrival; for a preempted request it is
    negative and below all others, so that it stands in front. All queues hold tickets:

        by_ticket    1: request  2: request  3: ...        the requests that wait now
        queue        1 2 3 4 5 6                           all of them
        adapters     a: 3 5    b: 2    c: 1 4 6            one queue for each adapter, and one for each tenant

    An adapter is cold while it is neither on the GPU nor on its way there. If a and b are on the GPU, the heap of cold
    adapters has (1, c), the first ticket of c. Entries that are out of date stay there until they come first.
    """

    def __init__(self, obtainable: Callable[[], bool], on_gpu: Callable[[], Iterator[AdapterState]]) -> None:
        """``obtainable()``: whether a GPU slot can be had. ``on_gpu()``: at least the adapters on the GPU that requests
        wait for; the base model is one of them."""
        self._obtainable = obtainable
        self._on_gpu = on_gpu
        self.by_ticket: dict[int, Sequence] = {}
        self.queue = WaitQueue(self.queued)
        self.backlogged: dict[str | None, AdapterView] = {}
        """Adapters that requests wait for, by name: their views, because a policy gets the keys, whose ``mapping`` is
        this."""
        self._cold: list[tuple[int, str]] = []
        self._last_ticket = 0
        self._front_ticket = 0

    def __len__(self) -> int:
        return len(self.by_ticket)

    @property
    def queued(self) -> dict[int, Queued]:
        """``by_ticket``, as queues are made with it: they only read it."""
        return cast("dict[int, Queued]", self.by_ticket)

    def join(self, sequence: Sequence) -> None:
        """A request arrived: it waits behind all others."""
        ticket = self._last_ticket = sequence.ticket = self._last_ticket + 1
        self.by_ticket[ticket] = sequence
        adapter = sequence.adapter
        for queue in (self.queue, adapter.queue, sequence.tenant.queue):  # WaitQueue.append, without the calls
            queue.tickets.append(ticket)
            queue.live += 1
        if adapter.queue.live == 1:
            self.backlogged[adapter.name] = adapter.view
            if adapter.tier != "gpu":
                self.cooled(adapter)

    def rejoin(self, sequence: Sequence) -> None:
        """A preempted request waits in front of all others."""
        ticket = self._front_ticket = sequence.ticket = self._front_ticket - 1
        self.by_ticket[ticket] = sequence
        adapter = sequence.adapter
        for queue in (self.queue, adapter.queue, sequence.tenant.queue):
            queue.push_front(ticket)
        self.backlogged[adapter.name] = adapter.view
        self.cooled(adapter)

    def leave(self, sequence: Sequence) -> None:
        """A request was admitted or has ended: it waits no more."""
        del self.by_ticket[sequence.ticket]
        adapter = sequence.adapter
        for queue in (self.queue, sequence.tenant.queue, adapter.queue):  # WaitQueue.left, without the calls
            queue.live -= 1
            if not queue.live:
                queue.tickets = []
                queue.start = 0
        if adapter.queue.live:
            if adapter.tier != "gpu":
                self.cooled(adapter)
        else:
            del self.backlogged[adapter.name]

    def cooled(self, adapter: AdapterState) -> None:
        """An adapter off the GPU has a new first request, or has just left the GPU."""
        first = adapter.queue.first()
        if first is not None and adapter.name is not None and adapter.tier not in ("gpu", "loading"):
            heappush(self._cold, (first.ticket, adapter.name))

    def _first_cold(self, cold: list[tuple[int, str]]) -> AdapterState | None:
        """Of a heap of cold adapters, the one whose first request stands in front of the others'; drops entries that
        are out of date."""
        backlogged = self.backlogged
        while cold:
            ticket, name = cold[0]
            view = backlogged.get(name)
            adapter: AdapterState | None = None if view is None else view._state
            if adapter is not None and adapter.tier not in ("gpu", "loading"):
                first = adapter.queue.first()
                if first is not None and first.ticket == ticket:
                    return adapter
            heappop(cold)
        return None

    def unblocked(self, within: Within, only: Names | None, without: Names) -> Iterator[RequestView]:
        """See `loratory.serving.engine_view.View.unblocked`."""
        if len(self.by_ticket) > SCAN:
            return self._merged(within, only, without)
        return self._scanned(within, only, without)

    def _scanned(self, within: Within, only: Names | None, without: Names) -> Iterator[RequestView]:
        """`unblocked` by looking at every waiting request."""
        by_ticket = self.by_ticket
        for ticket in sorted(by_ticket) if len(by_ticket) > 1 else tuple(by_ticket):
            sequence = by_ticket.get(ticket)
            if sequence is None:
                continue
            adapter = sequence.adapter
            name = adapter.name
            if name in without or (only is not None and name is not None and name not in only):
                continue
            if adapter.tier == "gpu":
                if within != "batch" or adapter.running or not adapter.rank:
                    yield sequence.view
            elif within == "any" and adapter.tier != "loading" and self._obtainable():
                yield sequence.view

    def _first_cold_except(self, names: set[str | None]) -> AdapterState | None:
        """The same without the adapters of these names, whose entries stay in the heap."""
        passed: list[tuple[int, str]] = []
        try:
            while (cold := self._first_cold(self._cold)) is not None and cold.name in names:
                passed.append(heappop(self._cold))
        finally:  # names that a policy gave may compare by code of its own, which may raise
            for entry in passed:
                heappush(self._cold, entry)
        return cold

    def _merged(self, within: Within, only: Names | None, without: Names) -> Iterator[RequestView]:
        """`unblocked` by merging queues: those of the adapters on the GPU, and of a cold adapter once it is its turn.

            on the GPU         a: 3 7 9    b: 5            merge begins with (3, a) (5, b)
            cold               c: 1 2      d: 6 8          the heap of cold adapters has (1, c) (6, d)

            a slot is free     1 2 3 5 6 7 8 9             c joins the merge before 3, d before 7
            no slot is free    3 5 7 9                     c and d are not looked at

        The policy acts between two requests. So the state is read anew for each: it may have admitted the request,
        loaded or evicted its adapter, or used up the slots.
        """
        by_ticket, backlogged = self.by_ticket, self.backlogged
        merge: list[_Next] = []
        merging: set[str | None] = set(without)
        for adapter in self._on_gpu() if only is None else self._backlogged_among(only):
            if adapter.name not in merging and (within != "batch" or adapter.running or not adapter.rank):
                first = adapter.queue.first()
                if first is not None:
                    merging.add(adapter.name)
                    merge.append((first.ticket, adapter, None))
        if len(merge) > 1:
            heapify(merge)
        while True:
            if only is None and within == "any" and len(backlogged) > len(merge) and self._obtainable():
                cold = self._first_cold_except(merging)
                first = None if cold is None else cold.queue.first()
                if cold is not None and first is not None and (not merge or first.ticket < merge[0][0]):
                    merging.add(cold.name)
                    heappush(merge, (first.ticket, cold, None))
                    continue
            if not merge:
                return
            ticket, adapter, rest = merge[0]
            tier = adapter.tier
            if tier == "loading" or (tier != "gpu" and not (within == "any" and self._obtainable())):
                heappop(merge)  # the adapter blocks its requests
                continue
            sequence = by_ticket.get(ticket)
            if sequence is not None:
                yield sequence.view
            following = adapter.queue.first()
            if following is not None and following.ticket <= ticket:  # the request still waits: go on behind it
                if rest is None:
                    rest = adapter.queue.sequences()
                following = next(rest, None)
                while following is not None and following.ticket <= ticket:
                    following = next(rest, None)
            if following is None:
                heappop(merge)
            else:
                heapreplace(merge, (following.ticket, adapter, rest))

    def _backlogged_among(self, names: Names) -> list[AdapterState]:
        """Those of these adapters that requests wait for, and the base model if any wait for it."""
        backlogged = self.backlogged
        if len(backlogged) <= len(names):
            return [view._state for name, view in backlogged.items() if name is None or name in names]
        return [backlogged[name]._state for name in (None, *names) if name in backlogged]

    def heads(self, off_gpu: bool, loading: Iterable[AdapterState]) -> Iterator[RequestView]:
        """See `View.first_waiting`: merges the first requests of the other adapters with those of the cold ones.

        To read the heap of cold adapters in order, it takes the entries out of a copy: a compiled generator that is
        left before its end could not put them back.
        """
        others: list[Queued] = []
        if not off_gpu:
            firsts = [a.queue.first() for a in (*self._on_gpu(), *loading) if a.name in self.backlogged]
            others = sorted((s for s in firsts if s is not None), key=lambda s: -s.ticket)
        seen: set[str] = set()
        self._first_cold(self._cold)
        heap = self._cold.copy()
        while True:
            cold = self._first_cold(heap)
            if others and (cold is None or others[-1].ticket < heap[0][0]):
                yield others.pop().view
                continue
            if cold is None:
                return
            ticket, name = heap[0]
            if name not in seen:
                seen.add(name)
                yield self.by_ticket[ticket].view
            heappop(heap)
