"""bin_pack: spreads the load of adapters evenly over all replicas, within their slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loratory.sim.placement import Filling, Homes, Placement, Room, Wanted


class BinPack(Placement):
    """Puts each adapter, the most wanted first, on the replica with the least load that has a slot for it.

    Load is what its adapters ask for, over what it can serve. An adapter that asks for more than a replica can serve
    has several homes. When no slot is left, load alone decides.
    """

    source = "longest processing time first: Graham, SIAM Journal on Applied Mathematics 17(2), 1969; slots are ours"

    def place(self, wanted: Sequence[Wanted], rooms: Sequence[Room], before: Mapping[str, tuple[int, ...]]) -> Homes:
        """See `Placement`."""
        filling = Filling(rooms)
        for first in (True, False):  # further homes only use the slots that are left when each adapter has one
            for each in wanted:
                copies = self.copies(each, rooms)
                for _ in range(1 if first else copies - 1):
                    free = filling.free(each.adapter)
                    if free or first:
                        least = min(free or filling.rooms, key=filling.share)
                        filling.put(each.adapter, least, each.rate / copies)
        return filling.result()
