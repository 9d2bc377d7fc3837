"""WaitIndex: who waits, by arrival, by adapter and by tenant, and which heads an adapter does not block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Literal

from loratory.serving.sequence import Sequence
from loratory.serving.usage import AdapterState
from loratory.serving.views import AdapterView, RequestView
from loratory.serving.wait_queue import Queued, WaitQueue

Within = Literal["batch", "gpu", "any"]
"""Whose turn counts: adapters that running requests use, adapters on the GPU, or also those that would be loaded."""

Names = Collection[str | None]

SCAN = 8
"""Up to so many waiting requests a plain scan beats merging queues."""


class WaitIndex:
    """The waiting requests of one engine under every order a policy asks for; joining and leaving are O(log n)."""

    def __init__(self, obtainable: Callable[[], bool], ready: Callable[[], Iterator[AdapterState]]) -> None:
        """``obtainable()``: whether a GPU slot can be had; ``ready()``: who is on the GPU, the base model included."""
        self._obtainable = obtainable
        self._ready = ready
        self.by_ticket: dict[int, Sequence] = {}
        self.queue = WaitQueue(self.by_ticket)
        self.backlogged: dict[str | None, AdapterView] = {}
        """Adapters with a queue, by name: their views, as a policy is shown the keys, whose ``mapping`` leads here."""
        self._cold: list[tuple[int, str]] = []
        self._last = 0
        self._front = 0

    def __len__(self) -> int:
        return len(self.by_ticket)

    def join(self, sequence: Sequence) -> None:
        """A request arrived: it waits behind all others."""
        ticket = self._last = sequence.ticket = self._last + 1
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
        ticket = self._front = sequence.ticket = self._front - 1
        self.by_ticket[ticket] = sequence
        adapter = sequence.adapter
        for queue in (self.queue, adapter.queue, sequence.tenant.queue):
            queue.push_front(ticket)
        self.backlogged[adapter.name] = adapter.view
        self.cooled(adapter)

    def leave(self, sequence: Sequence) -> None:
        """A request is admitted or ended: it does not wait any more."""
        del self.by_ticket[sequence.ticket]
        adapter = sequence.adapter
        for queue in (self.queue, sequence.tenant.queue, adapter.queue):  # WaitQueue.left, without the calls
            queue.live -= 1
            if not queue.live:
                queue.clear()
        if adapter.queue.live:
            if adapter.tier != "gpu":
                self.cooled(adapter)
        else:
            del self.backlogged[adapter.name]

    def cooled(self, adapter: AdapterState) -> None:
        """An adapter that is not on the GPU has a new first request, or has just left the GPU."""
        first = adapter.queue.first()
        if first is not None and adapter.name is not None and adapter.tier not in ("gpu", "loading"):
            heappush(self._cold, (first.ticket, adapter.name))

    def _first_cold(self) -> AdapterState | None:
        """The adapter off the GPU whose first request waits longest; drops entries that are out of date."""
        cold, backlogged = self._cold, self.backlogged
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
        """See `loratory.serving.engine_view.View.unblocked`: a scan of a short queue, a merge of adapters' queues for a
        long one."""
        if len(self.by_ticket) > SCAN:
            return self._merged(within, only, without)
        return self._scanned(within, only, without)

    def _scanned(self, within: Within, only: Names | None, without: Names) -> Iterator[RequestView]:
        """Looks at everybody who waits."""
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

    def _first_cold_but(self, names: set[str | None]) -> AdapterState | None:
        """The same among the others than ``names``; what it passes over is back in place when it returns."""
        aside: list[tuple[int, str]] = []
        while (cold := self._first_cold()) is not None and cold.name in names:
            aside.append(heappop(self._cold))
        for entry in aside:
            heappush(self._cold, entry)
        return cold

    def _merged(self, within: Within, only: Names | None, without: Names) -> Iterator[RequestView]:
        """Merges the queues of the adapters on the GPU; others join in when their first request is next."""
        by_ticket, backlogged = self.by_ticket, self.backlogged
        merge: list[tuple[int, AdapterState, Iterator[Queued] | None]] = []
        merging: set[str | None] = set(without)
        for adapter in self._ready() if only is None else self._backlogged_among(only):
            if adapter.name not in merging and (within != "batch" or adapter.running or not adapter.rank):
                first = adapter.queue.first()
                if first is not None:
                    merging.add(adapter.name)
                    merge.append((first.ticket, adapter, None))
        if len(merge) > 1:
            heapify(merge)
        while True:
            if only is None and within == "any" and len(backlogged) > len(merge) and self._obtainable():
                cold = self._first_cold_but(merging)
                first = None if cold is None else cold.queue.first()
                if cold is not None and first is not None and (not merge or first.ticket < merge[0][0]):
                    merging.add(cold.name)
                    heappush(merge, (first.ticket, cold, None))
                    continue
            if not merge:
                return
            ticket, adapter, walk = merge[0]
            tier = adapter.tier
            if tier == "loading" or (tier != "gpu" and not (within == "any" and self._obtainable())):
                heappop(merge)
                continue
            sequence = by_ticket.get(ticket)
            if sequence is not None:
                yield sequence.view
            following = adapter.queue.first()
            if following is not None and following.ticket <= ticket:  # still waiting: go past it
                if walk is None:
                    walk = adapter.queue.sequences()
                following = next(walk, None)
                while following is not None and following.ticket <= ticket:
                    following = next(walk, None)
            if following is None:
                heappop(merge)
            else:
                heapreplace(merge, (following.ticket, adapter, walk))

    def _backlogged_among(self, names: Names) -> list[AdapterState]:
        """Adapters of these names that have a queue, and the base model if it has one."""
        backlogged = self.backlogged
        if len(backlogged) <= len(names):
            return [view._state for name, view in backlogged.items() if name is None or name in names]
        return [backlogged[name]._state for name in (None, *names) if name in backlogged]

    def heads(self, off_gpu: bool, loading: Iterable[AdapterState]) -> Iterator[RequestView]:
        """The first request of each adapter with a queue, longest waiting first; see `View.first_waiting`."""
        queue: list[Queued] = []
        if not off_gpu:
            ready = [a.queue.first() for a in (*self._ready(), *loading) if a.name in self.backlogged]
            queue = sorted((s for s in ready if s is not None), key=lambda s: -s.ticket)
        seen: set[str] = set()
        aside: list[tuple[int, str]] = []
        try:
            while True:
                cold = self._first_cold()
                if queue and (cold is None or queue[-1].ticket < self._cold[0][0]):
                    yield queue.pop().view
                    continue
                if cold is None:
                    return
                ticket, name = self._cold[0]
                if name not in seen:
                    seen.add(name)
                    yield self.by_ticket[ticket].view
                aside.append(heappop(self._cold))
        finally:
            for entry in aside:
                heappush(self._cold, entry)
