"""least_loaded: the replica with the fewest requests in flight."""

from __future__ import annotations

from loratory.router import Fleet, Request, Router


class LeastLoaded(Router):
    """Sends each request to the replica with the fewest requests in flight; equal ones take turns.

    Not modelled: weights of replicas, and several balancers that each count requests of their own.
    """

    source = "Envoy's LEAST_REQUEST over all hosts; HAProxy's leastconn"
    reads_reports = False

    def route(self, request: Request, fleet: Fleet) -> int:
        """The least loaded candidate."""
        return fleet.lowest(fleet.in_flight)
