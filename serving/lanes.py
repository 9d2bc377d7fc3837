"""Lanes: items in a policy's own order, grouped by the adapter they need, so that blocked ones cost nothing."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

from loratory.serving.compiling import mypyc_attr
from loratory.serving.engine_view import View

Item = TypeVar("Item", bound=Hashable)
Order = Any
"""A tuple of numbers, and texts where they break ties: whatever compares with another order."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Lanes(Generic[Item]):
    """A priority queue of items (requests, tenants ...), each in the lane of one adapter (None: the base model).

    The item with the lowest order comes first; pushing an item again moves it. An item is in two heaps: its lane, and
    the heap of all items. `pick` compares the first items of the lanes on the GPU; if a slot can be had, also the first
    item of the other lanes, which it finds in the heap of all. So its cost grows with the GPU slots, not the items:

        lanes on the GPU     a: 3 7 9    b: 5             numbers: orders
        other lanes          c: 1 2      d: 6 8
        all items            1 2 3 5 6 7 8 9

        a slot can be had    1, of c: first of all items, and before 3 and 5
        none can be had      3, of a: the lower of 3 and 5; c and d are not looked at
    """

    __slots__ = ("_all", "_lanes", "_places", "_pushes")

    def __init__(self) -> None:
        self._places: dict[Item, tuple[int, str | None]] = {}
        """Each item's latest push, by number, and its adapter. An entry of another number is out of date: it stays in
        its heaps until it comes first."""
        self._lanes: dict[str | None, list[tuple[Order, int, Item]]] = {}
        self._all: list[tuple[Order, int, Item]] = []
        self._pushes = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, item: Item) -> bool:
        return item in self._places

    def push(self, item: Item, order: Order, adapter: str | None) -> None:
        """Put an item into the lane of an adapter, or move it there; the lowest order comes first."""
        self._pushes += 1
        self._places[item] = (self._pushes, adapter)
        entry = (order, self._pushes, item)
        heappush(self._lanes.setdefault(adapter, []), entry)
        heappush(self._all, entry)
        if len(self._all) > 4 * len(self._places) + 64:
            self._all = [entry for entry in self._all if self._is_current(entry)]
            heapify(self._all)

    def discard(self, item: Item) -> None:
        """Take an item out; one that is not in is ignored."""
        self._places.pop(item, None)
        if not self._places:
            self._lanes.clear()
            self._all.clear()

    def _is_current(self, entry: tuple[Order, int, Item]) -> bool:
        place = self._places.get(entry[2])
        return place is not None and place[0] == entry[1]

    def _first(self, adapter: str | None) -> tuple[Order, int, Item] | None:
        lane = self._lanes.get(adapter)
        if lane is None:
            return None
        while lane and not self._is_current(lane[0]):
            heappop(lane)
        if not lane:
            del self._lanes[adapter]
            return None
        return lane[0]

    def first(self) -> tuple[Order, Item] | None:
        """The order and the item that come first, blocked or not; None when there is no item."""
        while self._all and not self._is_current(self._all[0]):
            heappop(self._all)
        return (self._all[0][0], self._all[0][2]) if self._all else None

    def pick(self, view: View, closed: Collection[str | None] = (), nearest: bool = False) -> tuple[Item] | None:
        """The first item that its adapter does not block, in a tuple of one; None if there is none. The item stays in.

        An adapter blocks its items while it is on the way to the GPU, and while it is not there and every slot is in
        use. Lanes in ``closed`` are left out. With ``nearest``, items whose adapter is in the running batch come before
        those whose adapter is on the GPU, and these before the rest.
        """
        if not self._places:
            return None
        if len(self._places) == 1:  # most calls, at a load the GPU can carry
            return self._only(view, closed)
        on_gpu, lanes = view._ledger.slots.views, self._lanes
        best: tuple[Order, int, Item] | None = None
        best_distance = 2
        names: set[str | None] = lanes.keys() & on_gpu.keys()
        if None in lanes:
            names.add(None)
        for name in names:
            entry = None if name in closed else self._first(name)
            if entry is None:
                continue
            if nearest:
                distance = 0 if name is None or on_gpu[name].references else 1
                if best is None or (distance, entry) < (best_distance, best):
                    best, best_distance = entry, distance
            elif best is None or entry < best:
                best = entry
        if (best is None or not nearest) and view.slot_obtainable:
            entry = self._first_off_gpu(view, closed, best)
            if entry is not None:
                best = entry
        return None if best is None else (best[2],)

    def _only(self, view: View, closed: Collection[str | None]) -> tuple[Item] | None:
        """`pick` among a single item."""
        item, (_, name) = next(iter(self._places.items()))
        if name in closed:
            return None
        if name is None or name in view._ledger.slots.views:
            return (item,)
        return (item,) if view._ledger.adapters[name].tier != "loading" and view.slot_obtainable else None

    def _first_off_gpu(
        self, view: View, closed: Collection[str | None], best: tuple[Order, int, Item] | None
    ) -> tuple[Order, int, Item] | None:
        """The first item that needs a load and comes before ``best``; None if there is none."""
        passed: list[tuple[Order, int, Item]] = []
        first: tuple[Order, int, Item] | None = None
        while self._all and (best is None or self._all[0] < best):
            entry = self._all[0]
            if not self._is_current(entry):
                heappop(self._all)
                continue
            name = self._places[entry[2]][1]
            if name is not None and name not in closed and view._ledger.adapters[name].tier not in ("gpu", "loading"):
                first = entry
                break
            passed.append(heappop(self._all))
        for entry in passed:
            heappush(self._all, entry)
        return first
