"""Router: the base class of routers, which decide which replica a request goes to."""

from __future__ import annotations

from loratory.serving.request import Request
from loratory.sim.fleet import Fleet, Report


class Router:
    """Chooses a replica for each request, once, when it arrives. A run makes one of its own.

    ``source``: the publication or program that the router is taken from, for ``loratory routers``. ``reads_reports``:
    whether it looks at what replicas report; where it is False, a note tells that ``cluster.metrics_delay_s`` has no
    effect.
    """

    source: str = ""
    reads_reports: bool = True

    def route(self, request: Request, fleet: Fleet) -> int:
        """The index of the replica that gets the request: one of ``fleet.candidates``."""
        raise NotImplementedError

    def replicas_changed(self, fleet: Fleet) -> None:
        """A replica has joined, is about to leave, or has failed: ``fleet.open`` says which ones take requests.

        Called before the first request, too.
        """

    def reported(self, place: int, report: Report) -> None:
        """The router has got a report of the replica at ``place``. For routers that keep an index of their own.

        Where adapters are is told without a report.
        """
