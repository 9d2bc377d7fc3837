"""Placement: the base class of placements, which give adapters their homes: the replicas that serve their requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

Homes = dict[str, tuple[int, ...]]
"""The replicas of each adapter, ascending."""


class Wanted(NamedTuple):
    """An adapter that is asked for, in requests a second, above 0."""

    adapter: str
    rate: float


class Room(NamedTuple):
    """A replica that takes requests: its GPU slots, and the requests/s that it can serve at most."""

    replica: int
    slots: int
    capacity: float


class Placement:
    """Gives each adapter that is asked for at least one home. A run makes one of its own.

    ``source``: the publication or program that it is taken from. ``most``: the most homes of one adapter; None: any.
    """

    source: str = ""

    def __init__(self, most: int | None = None) -> None:
        self.most = most

    def place(self, wanted: Sequence[Wanted], rooms: Sequence[Room], before: Mapping[str, tuple[int, ...]]) -> Homes:
        """The homes of all ``wanted`` adapters, the most wanted of which come first, among ``rooms``, at least one.

        ``before``: the homes so far, those only that are among ``rooms``. Where nothing else has changed, they stay.
        """
        raise NotImplementedError

    def copies(self, each: Wanted, rooms: Sequence[Room]) -> int:
        """As many homes as an adapter's requests fill, within the limit."""
        mean = sum(room.capacity for room in rooms) / len(rooms)
        return max(1, min(self.limit(rooms), ceil(each.rate / mean) if mean > 0.0 else 1))

    def limit(self, rooms: Sequence[Room]) -> int:
        """The most homes that an adapter may have."""
        return len(rooms) if self.most is None else min(self.most, len(rooms))


@dataclass(frozen=True, slots=True)
class PlacementOptions:
    """``make`` makes the placement of a run. It decides at the start from ``rates`` (requests/s by adapter, expected),
    again when replicas come or go, and every ``every_s`` seconds from what arrived in the last three such periods.

    ``capacities``: requests/s that each replica can serve at most.
    """

    make: Callable[[], Placement]
    rates: Mapping[str, float]
    capacities: tuple[float, ...]
    every_s: float | None = None


class Filling:
    """Rooms as they fill: the load and the adapters that each has so far."""

    def __init__(self, rooms: Sequence[Room]) -> None:
        self.rooms = list(rooms)
        self.load = dict.fromkeys((room.replica for room in rooms), 0.0)
        self.held = dict.fromkeys((room.replica for room in rooms), 0)
        self.homes: dict[str, list[int]] = {}

    def share(self, room: Room) -> float:
        """Its load over its capacity."""
        return self.load[room.replica] / room.capacity if room.capacity > 0.0 else self.load[room.replica]

    def free(self, adapter: str) -> list[Room]:
        """The rooms with a free slot that are no home of an adapter yet."""
        mine = self.homes.get(adapter, ())
        return [room for room in self.rooms if self.held[room.replica] < room.slots and room.replica not in mine]

    def put(self, adapter: str, room: Room, rate: float) -> None:
        """One more home, which takes so many requests/s."""
        self.load[room.replica] += rate
        self.held[room.replica] += 1
        self.homes.setdefault(adapter, []).append(room.replica)

    def result(self) -> Homes:
        """The homes, in order."""
        return {adapter: tuple(sorted(homes)) for adapter, homes in self.homes.items()}
