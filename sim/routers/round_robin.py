"""round_robin: each replica in turn."""

from __future__ import annotations

from loratory.router import Fleet, Request, Router


class RoundRobin(Router):
    """Sends each request to the next replica, whatever its state, as a plain load balancer does.

    Not modelled: weights of replicas, and several balancers that each take turns of their own.
    """

    source = "the default of most load balancers"
    reads_reports = False

    def __init__(self) -> None:
        self._last = -1

    def route(self, request: Request, fleet: Fleet) -> int:
        """The next candidate after the last one chosen."""
        candidates = fleet.candidates
        place = candidates.searchsorted(self._last, side="right")
        self._last = int(candidates[place if place < len(candidates) else 0])
        return self._last
