"""rendezvous: each adapter has its own order of replicas; the first with room gets the request."""

from __future__ import annotations

from hashlib import blake2b
from math import ceil

import numpy as np

from loratory.router import LOADING, Column, Fleet, InputError, Request, Router


class Rendezvous(Router):
    """Sends the requests of an adapter to its home, and on to its next home while one has no room.

    An adapter's order of replicas is that of a hash of both names, so that adding a replica moves few adapters. A
    replica has room for a request while that is one of its first ``few``, or leaves it with at most ``load`` times the
    mean of requests in flight, rounded up, and while it has a GPU slot for the adapter: that is there, or on its way,
    or a slot is free or can be freed. Where none has a slot, load alone decides. Base-model requests go to the least
    loaded replica.

    Not modelled: moving an adapter to a new home before requests go there, and several homes for a hot adapter, which
    Dynamo's allocator computes from its rate: here it overflows to its next home.

    Parameters:
        load: requests in flight that a replica may have, as a multiple of the mean; from 1 to 1e9
        few: requests in flight that a replica may have in any case; with 0 an adapter strays at light load
        slots: whether a replica without a slot for the adapter is passed over
    """

    source = (
        "Thaler and Ravishankar, IEEE/ACM Transactions on Networking 6(1), 1998; bounded loads: Mirrokni, Thorup and "
        "Zadimoghaddam, SODA 2018; slots: NVIDIA Dynamo's LoRA allocator"
    )

    def __init__(self, load: float = 1.25, few: int = 8, slots: bool = True) -> None:
        if not 1.0 <= load <= 1e9:
            raise InputError(f"rendezvous: load is {load:g}: give a number from 1 to 1e9")
        if few < 0:
            raise InputError(f"rendezvous: few is {few}: give 0 or more")
        self._load = load
        self._few = few
        self._slots = slots
        self._orders: dict[str, Column] = {}

    def route(self, request: Request, fleet: Fleet) -> int:
        """The first candidate of the adapter's order that has room."""
        adapter, in_flight = request.adapter, fleet.in_flight
        if adapter is None:
            return fleet.lowest(in_flight)
        order = self._orders.get(adapter)
        if order is None:
            order = self._orders[adapter] = _order(adapter, len(fleet))
        candidates = fleet.candidates
        total, count = int(in_flight.sum()), len(fleet)
        if len(candidates) < count:
            order = order[np.isin(order, candidates)]
            total, count = int(in_flight[candidates].sum()), len(candidates)
        most = max(self._few, ceil(self._load * (total + 1) / count))
        tiers = fleet.tiers(adapter)
        fallback: int | None = None
        places: list[int] = order.tolist()
        for place in places:
            if in_flight[place] >= most:
                continue
            if not self._slots or tiers[place] >= LOADING or fleet.free_slots[place] or fleet.idle_slots[place]:
                return place
            if fallback is None:
                fallback = place
        assert fallback is not None  # the bounds add up to more than there is in flight
        return fallback


def _order(adapter: str, count: int) -> Column:
    """All replicas, the adapter's favourite first."""
    weights = [blake2b(f"{adapter}@{index}".encode(), digest_size=8).digest() for index in range(count)]
    return np.array(sorted(range(count), key=weights.__getitem__, reverse=True), dtype=np.int64)
