"""LoraBatch: the adapters that running requests use, as a cost model counts them."""

from __future__ import annotations

from loratory.serving.compiling import mypyc_attr


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class LoraBatch:
    """How many distinct adapters the running requests use, of which ranks, and how many requests decode with one."""

    __slots__ = ("adapters", "decoding", "decoding_ranks", "max_rank", "ranks", "sum_ranks")

    def __init__(self) -> None:
        self.ranks: dict[int, int] = {}
        """The number of adapters in use of each rank."""
        self.adapters = 0
        self.sum_ranks = 0
        self.max_rank = 0
        self.decoding = 0
        """Decoding requests that use an adapter."""
        self.decoding_ranks = 0
        """The sum of their adapters' ranks."""

    def enter(self, rank: int) -> None:
        """An adapter of this rank has its first running request."""
        self.adapters += 1
        self.sum_ranks += rank
        self.ranks[rank] = self.ranks.get(rank, 0) + 1
        if rank > self.max_rank:
            self.max_rank = rank

    def leave(self, rank: int) -> None:
        """An adapter of this rank has no running request any more."""
        ranks = self.ranks
        self.adapters -= 1
        self.sum_ranks -= rank
        ranks[rank] -= 1
        if not ranks[rank]:
            del ranks[rank]
            self.max_rank = max(ranks, default=0)
