"""multiplex: Ray Serve's routing: a replica that has the adapter, else one that has the fewest, else any."""

from __future__ import annotations

from loratory.router import LOADING, Column, Fleet, InputError, Request, Router


class Multiplex(Router):
    """Looks for a replica in three groups, and in each takes the less loaded of two that are drawn at random.

    The groups are the replicas that have the adapter on the GPU or on its way there, those with the fewest adapters
    there, and all. A replica with ``max_ongoing_requests`` requests in flight accepts none; where both that were drawn
    are so, the next group is tried. Of all replicas, those that accept requests are drawn from; where none does, the
    request goes to the less loaded of two, and waits there. Base-model requests are drawn from all.

    Not modelled: a request that no replica accepts waits in Ray's router, and is sent again and again after a pause
    that grows, the second and third group after a second or two at the latest; queue lengths that are asked for or up
    to 10 s old; replicas on the router's own node first. The models of a replica are the adapters in its GPU slots, not
    a list of its own (``max_num_models_per_replica``).

    Parameters:
        max_ongoing_requests: requests in flight with which a replica accepts no more. The default is that of Ray Serve
            LLM, under which a replica accepts all, and an adapter stays where it is; Ray Serve's own is 5
    """

    source = "Ray Serve, python/ray/serve/_private/request_router: MultiplexMixin, PowerOfTwoChoicesRequestRouter"

    def __init__(self, max_ongoing_requests: int = 1_000_000_000) -> None:
        if max_ongoing_requests < 1:
            raise InputError(f"multiplex: max_ongoing_requests is {max_ongoing_requests}: give 1 or more")
        self._most = max_ongoing_requests

    def route(self, request: Request, fleet: Fleet) -> int:
        """The less loaded of two candidates of the first group in which one accepts the request."""
        candidates, in_flight = fleet.candidates, fleet.in_flight
        if request.adapter is not None:
            for group in self._groups(request.adapter, fleet):
                place = _less_loaded(group, fleet)
                if in_flight[place] < self._most:
                    return place
        accepting = candidates[in_flight[candidates] < self._most]
        return _less_loaded(accepting if len(accepting) else candidates, fleet)

    def _groups(self, adapter: str, fleet: Fleet) -> list[Column]:
        """The candidates that have the adapter, if there are any; those with the fewest adapters."""
        candidates = fleet.candidates
        held = (fleet.max_loras - fleet.free_slots)[candidates]
        groups = [candidates[held == held.min()]]
        if fleet.known(adapter):
            have = candidates[fleet.tiers(adapter)[candidates] >= LOADING]
            if len(have):
                groups.insert(0, have)
        return groups


def _less_loaded(group: Column, fleet: Fleet) -> int:
    """Of two replicas drawn at random, the one with fewer requests in flight."""
    if len(group) == 1:
        return int(group[0])
    drawn = group[fleet.random.sample(range(len(group)), 2)]
    return int(drawn[fleet.in_flight[drawn].argmin()])
