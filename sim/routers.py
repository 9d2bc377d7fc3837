"""Router: decides which replica a request goes to; the routers there are."""

from __future__ import annotations

from hashlib import blake2b
from typing import Protocol

from loratory.errors import InputError
from loratory.serving.ledger import Ledger
from loratory.serving.request import Request


class ReplicaView(Protocol):
    """What a router sees of a replica."""

    index: int

    @property
    def unfinished(self) -> int:
        """Requests it has not ended."""

    @property
    def ledger(self) -> Ledger:
        """Its ledger, to be read only."""


class Router(Protocol):
    """Chooses a replica for each request, once, at arrival."""

    def route(self, request: Request, cluster: list[ReplicaView]) -> int:
        """The index of the replica that gets the request."""


def _least_loaded(cluster: list[ReplicaView]) -> int:
    """The fewest unfinished requests; among equals the fewest adapters on the GPU or on their way there."""

    def load(replica: ReplicaView) -> tuple[int, int, int]:
        slots = replica.ledger.slots
        return replica.unfinished, len(slots.on_gpu) + len(slots.loading), replica.index

    return min(cluster, key=load).index


class RoundRobin:
    """Each replica in turn."""

    def __init__(self) -> None:
        self._next = 0

    def route(self, request: Request, cluster: list[ReplicaView]) -> int:
        """The next one."""
        index = self._next % len(cluster)
        self._next += 1
        return index


class LeastLoaded:
    """The replica with the fewest unfinished requests; among equals the one chosen longest ago."""

    def __init__(self) -> None:
        self._chosen: dict[int, int] = {}
        self._count = 0

    def route(self, request: Request, cluster: list[ReplicaView]) -> int:
        """The least loaded one."""
        index = min(cluster, key=lambda replica: (replica.unfinished, self._chosen.get(replica.index, 0))).index
        self._count += 1
        self._chosen[index] = self._count
        return index


class LoraAffinity:
    """The least loaded replica that has the adapter on its GPU or waits for it, unless far above the least loaded.

    ``slack``: by how many unfinished requests a replica may exceed the least loaded one and still be preferred.
    """

    def __init__(self, slack: int = 8) -> None:
        self._slack = slack

    def route(self, request: Request, cluster: list[ReplicaView]) -> int:
        """A replica with the adapter, or else the least loaded."""
        least = _least_loaded(cluster)
        if request.adapter is None:
            return least
        limit = next(r for r in cluster if r.index == least).unfinished + self._slack
        best: tuple[int, int, int] | None = None
        for replica in cluster:
            state = replica.ledger.adapters.get(request.adapter)
            if state is None or replica.unfinished > limit:
                continue
            near = 0 if state.tier == "gpu" or state.tier == "loading" or state.queue else 2
            if near and state.tier == "host" and state.uses:
                near = 1
            rank = (near, replica.unfinished, replica.index)
            if best is None or rank < best:
                best = rank
        return least if best is None or best[0] == 2 else best[2]


class Rendezvous:
    """Highest random weight: an adapter always goes to the same replica, and few move when a replica is added.

    Source: Thaler and Ravishankar, IEEE/ACM Transactions on Networking 6(1), 1998. Base-model requests go to the least
    loaded replica.
    """

    def __init__(self) -> None:
        self._homes: dict[tuple[str, int], int] = {}

    def route(self, request: Request, cluster: list[ReplicaView]) -> int:
        """The adapter's home."""
        if request.adapter is None:
            return _least_loaded(cluster)
        key = (request.adapter, len(cluster))
        home = self._homes.get(key)
        if home is None:
            weights = [
                (blake2b(f"{request.adapter}@{replica.index}".encode(), digest_size=8).digest(), replica.index)
                for replica in cluster
            ]
            home = self._homes[key] = max(weights)[1]
        return home


ROUTERS: dict[str, type[Router]] = {
    "round_robin": RoundRobin,
    "least_loaded": LeastLoaded,
    "lora_affinity": LoraAffinity,
    "rendezvous": Rendezvous,
}


def router(name: str) -> Router:
    """A router by name. Raises `InputError` for an unknown one."""
    router = ROUTERS.get(name)
    if router is None:
        raise InputError(f"cluster.router {name!r} is unknown: choose one of {', '.join(ROUTERS)}")
    return router()
