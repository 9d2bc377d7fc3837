"""min_cost_flow: the homes that cost least, where a new home costs much more than one that stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from math import floor
from typing import Any

import numpy as np

from loratory.errors import InputError
from loratory.sim.placement import Homes, Placement, Room, Wanted

_NEW, _KEPT = 1000.0, -250.0
"""What a home costs that is new, or stays: Dynamo's gamma_load and beta_keep."""
_DROPPED, _CROWDED = 1.0e4, 1.0e6
"""What it costs that an adapter has one home fewer than it should have, or that a replica has one more than slots."""

_MOST_BY_SIMPLEX = 20_000
"""Edges up to which the dual simplex method solves the flow. Above, the interior point method is several times as fast;
its crossover ends in a vertex as well."""


class MinCostFlow(Placement):
    """All homes at once: a flow from adapters to replicas, which a linear program solves exactly.

        adapter --(number of homes)--> replica --(slots)--> sink

    The slots of all replicas are shared out among the adapters by what they ask for, at least one each. An adapter's
    candidates are its homes so far and the first 16 of its order by rendezvous hashing; a candidate costs its place in
    that order, besides what a new home costs. So homes change as little as slots and demand allow.
    """

    source = "NVIDIA Dynamo, pull requests ai-dynamo/dynamo 8177 to 8180 and 5992"

    def __init__(self, most: int | None = None, candidates: int = 16) -> None:
        super().__init__(most)
        self._candidates = candidates

    def place(self, wanted: Sequence[Wanted], rooms: Sequence[Room], before: Mapping[str, tuple[int, ...]]) -> Homes:
        """See `Placement`."""
        if not wanted:
            return {}
        homes = self._shares(wanted, rooms)
        row_of, place_of = {room.replica: row for row, room in enumerate(rooms)}, [room.replica for room in rooms]
        adapters: list[int] = []
        places: list[int] = []
        costs: list[float] = []
        for number, each in enumerate(wanted):
            old = before.get(each.adapter, ())
            order = sorted(place_of, key=lambda replica, name=each.adapter: _weight(name, replica))  # type: ignore[misc]
            for rank, replica in enumerate(order):
                if rank < max(self._candidates, homes[number]) or replica in old:
                    adapters.append(number)
                    places.append(row_of[replica])
                    costs.append((_KEPT if replica in old else _NEW) + rank / len(rooms))
        chosen = _solve(np.array(adapters), np.array(places), np.array(costs), np.array(homes), rooms)
        found: dict[str, list[int]] = {each.adapter: [] for each in wanted}
        for edge in np.flatnonzero(chosen).tolist():
            found[wanted[adapters[edge]].adapter].append(place_of[places[edge]])
        return {adapter: tuple(sorted(mine)) for adapter, mine in found.items()}

    def _shares(self, wanted: Sequence[Wanted], rooms: Sequence[Room]) -> list[int]:
        """How many homes each adapter should have: by its share of the requests, at least one, by largest remainder."""
        slots, total = sum(room.slots for room in rooms), sum(each.rate for each in wanted)
        limit = self.limit(rooms)
        exact = [each.rate / total * slots for each in wanted]
        homes = [min(limit, max(1, floor(share))) for share in exact]
        left = slots - sum(homes)
        for number in sorted(range(len(wanted)), key=lambda number: floor(exact[number]) - exact[number]):
            if left > 0 and exact[number] > homes[number] and homes[number] < limit:
                homes[number] += 1
                left -= 1
        return homes


def _weight(adapter: str, replica: int) -> bytes:
    return blake2b(f"{adapter}@{replica}".encode(), digest_size=8).digest()


def _solve(adapters: Any, places: Any, costs: Any, homes: Any, rooms: Sequence[Room]) -> Any:
    """Which edges (of ``adapters`` to ``places``) the cheapest flow uses. A network's optimal vertices are whole."""
    try:
        from scipy.optimize import linprog
        from scipy.sparse import coo_array
    except ImportError:
        raise InputError("placement min_cost_flow needs scipy: pip install scipy, or choose bin_pack") from None
    edges, count, replicas = len(costs), len(homes), len(rooms)
    ones, dropped, crowded = np.ones(edges), edges + np.arange(count), edges + count + np.arange(replicas)
    columns = edges + count + replicas
    supply = coo_array(
        (np.r_[ones, np.ones(count)], (np.r_[adapters, np.arange(count)], np.r_[np.arange(edges), dropped])),
        shape=(count, columns),
    )
    room = coo_array(
        (np.r_[ones, -np.ones(replicas)], (np.r_[places, np.arange(replicas)], np.r_[np.arange(edges), crowded])),
        shape=(replicas, columns),
    )
    found = linprog(
        np.r_[costs, np.full(count, _DROPPED), np.full(replicas, _CROWDED)],
        A_eq=supply,
        b_eq=homes,
        A_ub=room,
        b_ub=[each.slots for each in rooms],
        bounds=np.c_[np.zeros(columns), np.r_[ones, homes - 1, np.full(replicas, np.inf)]],
        method="highs-ds" if edges <= _MOST_BY_SIMPLEX else "highs-ipm",
    )
    return found.x[:edges] > 0.5
