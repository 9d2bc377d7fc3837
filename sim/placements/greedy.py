"""greedy: fills one replica after another, so that few are needed and each has few adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loratory.sim.placement import Filling, Homes, Placement, Room, Wanted


class Greedy(Placement):
    """Puts each adapter, the most wanted first, on the first replica that has a slot and load to spare.

    A replica is full when its adapters ask for 80 % of what it can serve, or hold all its slots; an adapter that
    asks for more than a replica has several homes. What fits nowhere goes to the replica with the least load. What a
    replica can serve is the cost model's ceiling for the workload's mean request.

    Not modelled: the paper's learned model of what a set of adapters lets a replica serve.
    """

    source = "Agullo et al., Data-Driven Optimization of GPU Efficiency for Distributed LLM-Adapter Serving, 2026"

    def __init__(self, most: int | None = None, fill: float = 0.8) -> None:
        super().__init__(most)
        self._fill = fill

    def place(self, wanted: Sequence[Wanted], rooms: Sequence[Room], before: Mapping[str, tuple[int, ...]]) -> Homes:
        """See `Placement`."""
        filling = Filling(rooms)
        for first in (True, False):  # further homes only use the slots that are left when each adapter has one
            for each in wanted:
                copies = self.copies(each, rooms)
                for _ in range(1 if first else copies - 1):
                    self._put(filling, each.adapter, each.rate / copies, first)
        return filling.result()

    def _put(self, filling: Filling, adapter: str, rate: float, must: bool) -> None:
        free = filling.free(adapter)
        for room in free:
            if filling.load[room.replica] + rate <= self._fill * room.capacity:
                filling.put(adapter, room, rate)
                return
        if free or must:
            filling.put(adapter, min(free or filling.rooms, key=filling.share), rate)
