"""Homes: has a placement decide where adapters have their homes, again and again, and tells the gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from loratory.sim.gateway import Gateway
from loratory.sim.placement import Homes, PlacementOptions, Room, Wanted
from loratory.sim.recent_requests import RecentRequests

PERIODS = 3
"""Of so many periods the arrivals are counted that a placement is decided from."""


class HomeKeeper:
    """The homes of a fleet's adapters. ``moved``: how many homes have been added since the first decision;
    ``observed``: whether a period of ``every_s`` has ended.

    ``versions``: by name of a version, the adapter whose homes are its own.
    """

    def __init__(self, gateway: Gateway, options: PlacementOptions, versions: Mapping[str, str]) -> None:
        self.options = options
        self.moved = 0
        self.observed = False
        self.recent = None if options.every_s is None else RecentRequests(PERIODS * options.every_s)
        self._gateway = gateway
        self._versions = versions
        self._placement = options.make()
        self._homes: Homes | None = None
        self._rates = dict(options.rates)
        self._open: list[int] = []

    def arrived(self, adapter: str | None, now: float) -> None:
        """A request arrived."""
        if self.recent is not None:
            self.recent.arrived(adapter, now)

    def observe(self, now: float) -> None:
        """Decide from what has arrived lately; without arrivals, all stays as it is."""
        self.observed = True
        if self.recent is not None and (rates := self.recent.rates(now)):
            self._rates = rates
            self.place(self._open)

    def place(self, places: Sequence[int]) -> None:
        """Decide for the replicas at these places, which take requests."""
        self._open = list(places)
        if not self._open:
            return
        slots = self._gateway.fleet.max_loras
        rooms = [Room(place, int(slots[place]), self.options.capacities[place]) for place in self._open]
        wanted = [Wanted(name, self._rates[name]) for name in sorted(self._rates, key=lambda n: (-self._rates[n], n))]
        there = set(self._open)
        before = {name: tuple(each for each in homes if each in there) for name, homes in (self._homes or {}).items()}
        homes = self._placement.place(wanted, rooms, before)
        if self._homes is not None:
            self.moved += sum(len(set(mine) - set(self._homes.get(name, ()))) for name, mine in homes.items())
        self._homes = homes
        columns = {name: np.array(mine, dtype=np.int64) for name, mine in homes.items()}
        columns |= {name: columns[adapter] for name, adapter in self._versions.items() if adapter in columns}
        self._gateway.set_homes(columns)

    def of(self, adapter: str) -> tuple[int, ...] | None:
        """The homes of an adapter; None for one that may be served anywhere."""
        return (self._homes or {}).get(adapter)

    @property
    def mean(self) -> float | None:
        """Homes of an adapter that has any, on average."""
        homes = self._homes or {}
        return sum(map(len, homes.values())) / len(homes) if homes else None
