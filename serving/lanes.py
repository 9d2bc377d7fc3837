"""Lanes: items in a policy's own order, grouped by the adapter they need, so that blocked ones cost nothing."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from loratory.serving.engine_view import View

Item = TypeVar("Item", bound=Hashable)
Order = tuple[float, ...]


class Lanes(Generic[Item]):
    """A priority queue of items (requests, tenants ...), each in the lane of one adapter (None: the base model).

    `pick` looks at the first item of each lane on the GPU and at the first item of all others: its cost grows with the
    GPU slots, not with the items. Lower orders come first; `push` again moves an item.
    """

    __slots__ = ("_cold", "_count", "_lanes", "_places")

    def __init__(self) -> None:
        self._places: dict[Item, tuple[int, str | None]] = {}
        self._lanes: dict[str | None, list[tuple[Order, int, Item]]] = {}
        self._cold: list[tuple[Order, int, Item]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, item: Item) -> bool:
        return item in self._places

    def push(self, item: Item, order: Order, adapter: str | None) -> None:
        """Put an item into the lane of an adapter, or move it there; the lowest order comes first."""
        self._count += 1
        self._places[item] = (self._count, adapter)
        entry = (order, self._count, item)
        heappush(self._lanes.setdefault(adapter, []), entry)
        heappush(self._cold, entry)
        if len(self._cold) > 4 * len(self._places) + 64:
            self._cold = [entry for entry in self._cold if self._valid(entry)]
            heapify(self._cold)

    def discard(self, item: Item) -> None:
        """Take an item out; one that is not in is ignored."""
        self._places.pop(item, None)
        if not self._places:
            self._lanes.clear()
            self._cold.clear()

    def _valid(self, entry: tuple[Order, int, Item]) -> bool:
        place = self._places.get(entry[2])
        return place is not None and place[0] == entry[1]

    def _first(self, adapter: str | None) -> tuple[Order, int, Item] | None:
        lane = self._lanes.get(adapter)
        if lane is None:
            return None
        while lane and not self._valid(lane[0]):
            heappop(lane)
        if not lane:
            del self._lanes[adapter]
            return None
        return lane[0]

    def first(self) -> tuple[Order, Item] | None:
        """The order and the item that come first, blocked or not; None when there is no item."""
        while self._cold and not self._valid(self._cold[0]):
            heappop(self._cold)
        return (self._cold[0][0], self._cold[0][2]) if self._cold else None

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
        on_gpu, lanes = view.on_gpu, self._lanes
        best: tuple[Order, int, Item] | None = None
        far = 2
        names: set[str | None] = lanes.keys() & on_gpu.keys()
        if None in lanes:
            names.add(None)
        for name in names:
            entry = None if name in closed else self._first(name)
            if entry is None:
                continue
            if nearest:
                near = 0 if name is None or on_gpu[name].references else 1
                if best is None or (near, entry) < (far, best):
                    best, far = entry, near
            elif best is None or entry < best:
                best = entry
        if (best is None or not nearest) and view.slot_obtainable:
            entry = self._first_cold(view, closed, best)
            if entry is not None:
                best = entry
        return None if best is None else (best[2],)

    def _only(self, view: View, closed: Collection[str | None]) -> tuple[Item] | None:
        """`pick` among a single item."""
        item, (_, name) = next(iter(self._places.items()))
        if name in closed:
            return None
        if name is None or name in view.on_gpu:
            return (item,)
        return (item,) if view.adapters[name].tier != "loading" and view.slot_obtainable else None

    def _first_cold(
        self, view: View, closed: Collection[str | None], best: tuple[Order, int, Item] | None
    ) -> tuple[Order, int, Item] | None:
        """The first item that needs a load and comes before ``best``; None if there is none."""
        aside: list[tuple[Order, int, Item]] = []
        found: tuple[Order, int, Item] | None = None
        while self._cold and (best is None or self._cold[0] < best):
            entry = self._cold[0]
            if not self._valid(entry):
                heappop(self._cold)
                continue
            name = self._places[entry[2]][1]
            if name is not None and name not in closed and view.adapters[name].tier not in ("gpu", "loading"):
                found = entry
                break
            aside.append(heappop(self._cold))
        for entry in aside:
            heappush(self._cold, entry)
        return found
