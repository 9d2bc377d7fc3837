"""residency_filter: an adapter has homes, few of them, and gets one more only when all are overloaded."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from loratory.router import Column, Fleet, InputError, Request, Router


class ResidencyFilter(Router):
    """Keeps the requests of an adapter on its homes: at most ``replicas`` replicas.

    A request goes to the home with the fewest requests in flight, of those whose queue and KV use are within the
    thresholds. Where none is, the adapter gets one more home, if it has fewer than ``replicas`` and a replica is within
    the thresholds; else the least loaded home takes the request. A new home is where the adapter is (on the GPU or on
    its way there before host memory), else one with a free slot, then one that is home to the fewest adapters, then
    the least loaded. A home that takes no requests is dropped, and so is one that got none of the adapter's requests
    for ``forget_s``, so that the number of homes shrinks again. Base-model requests go to the least loaded replica.

    Not modelled: loading an adapter at its new home before requests go there, and homes shared by several routers.

    Parameters:
        replicas: homes that an adapter may have
        queue: waiting requests up to which a replica is not overloaded
        kv: share of KV blocks in use up to which a replica is not overloaded
        forget_s: seconds without a request of the adapter after which a home is dropped
    """

    source = (
        "llm-d-router issue 709 (an adapter on at most k replicas, one more under overload), pull requests 720 and "
        "2792; the thresholds are those of llm-d's saturation detector"
    )

    def __init__(self, replicas: int = 2, queue: int = 5, kv: float = 0.8, forget_s: float = 60.0) -> None:
        for name, value, least in (("replicas", replicas, 1), ("queue", queue, 0), ("kv", kv, 0)):
            if not value >= least:
                raise InputError(f"residency_filter: {name} is {value:g}: give {least} or more")
        if not forget_s > 0:
            raise InputError(f"residency_filter: forget_s is {forget_s:g}: give more than 0")
        self._most = replicas
        self._queue = queue
        self._kv = kv
        self._forget_s = forget_s
        self._homes: dict[str, list[int]] = {}
        self._used: OrderedDict[tuple[str, int], float] = OrderedDict()
        """When each home got its last request, the longest ago first."""
        self._guests = np.zeros(0, dtype=np.int64)
        """How many adapters each replica is home to."""

    def homes(self, adapter: str) -> tuple[int, ...]:
        """The replicas that are the adapter's homes, the oldest first."""
        return tuple(self._homes.get(adapter, ()))

    def replicas_changed(self, fleet: Fleet) -> None:
        """Drop homes that take no requests any more."""
        if not len(self._guests):
            self._guests = np.zeros(len(fleet), dtype=np.int64)
        for adapter, place in [key for key in self._used if not fleet.open[key[1]]]:
            self._drop(adapter, place)

    def route(self, request: Request, fleet: Fleet) -> int:
        """The adapter's least loaded home that is not overloaded, or what is next best."""
        self._forget(fleet.now - self._forget_s)
        adapter, in_flight = request.adapter, fleet.in_flight
        if adapter is None:
            return fleet.lowest(in_flight)
        candidates = fleet.candidates
        homes = self._homes.get(adapter, [])
        if homes and len(candidates) < len(fleet):  # with a placement, homes may have moved
            for place in [each for each in homes if each not in candidates]:
                self._drop(adapter, place)
            homes = self._homes.get(adapter, [])
        calm = [place for place in homes if fleet.waiting[place] <= self._queue and fleet.kv_use[place] <= self._kv]
        place = fleet.lowest(in_flight, np.array(calm)) if calm else self._new_home(adapter, homes, fleet)
        self._used[adapter, place] = fleet.now
        self._used.move_to_end((adapter, place))
        return place

    def _new_home(self, adapter: str, homes: list[int], fleet: Fleet) -> int:
        """One more home, or the least loaded one where there may be no more."""
        candidates = fleet.candidates
        if homes:
            calm = (fleet.waiting[candidates] <= self._queue) & (fleet.kv_use[candidates] <= self._kv)
            others = candidates[calm]  # no home is among them
            if len(homes) >= self._most or not len(others):
                return fleet.lowest(fleet.in_flight, np.array(homes))
        else:
            others = candidates
        for cost in (-fleet.tiers(adapter).astype(np.int64), fleet.free_slots == 0, self._guests):
            others = _least(cost, others)
        place = fleet.lowest(fleet.in_flight, others)
        self._homes.setdefault(adapter, []).append(place)
        self._guests[place] += 1
        return place

    def _forget(self, before: float) -> None:
        """Drop the homes that got no request since second ``before``."""
        used = self._used
        while used:
            (adapter, place), at = next(iter(used.items()))
            if at >= before:
                return
            self._drop(adapter, place)

    def _drop(self, adapter: str, place: int) -> None:
        del self._used[adapter, place]
        self._guests[place] -= 1
        homes = self._homes[adapter]
        homes.remove(place)
        if not homes:
            del self._homes[adapter]


def _least(cost: Column, places: Column) -> Column:
    """Those of ``places`` with the lowest cost."""
    values = cost[places]
    lowest: Column = places[values == values.min()]
    return lowest
