"""power_of_two: of two random replicas, the one with fewer requests in flight."""

from __future__ import annotations

from loratory.router import Fleet, InputError, Request, Router


class PowerOfTwo(Router):
    """Draws replicas at random, two by default, and sends the request to the one with the fewest requests in flight.

    Two choices keep the longest queue nearly as short as looking at all replicas does, and routers that do not know of
    each other do not all run to the same replica.

    Not modelled: weights of replicas, and several routers, each with requests in flight of its own.

    Parameters:
        choices: replicas that are drawn for a request, all different; with 1 the choice is random
    """

    source = "Mitzenmacher, IEEE TPDS 12(10), 2001; Envoy's LEAST_REQUEST with choice_count"
    reads_reports = False

    def __init__(self, choices: int = 2) -> None:
        if choices < 1:
            raise InputError(f"power_of_two: choices is {choices}: give 1 or more")
        self._choices = choices

    def route(self, request: Request, fleet: Fleet) -> int:
        """The drawn candidate with the fewest requests in flight; of equal ones the first that was drawn."""
        candidates, in_flight = fleet.candidates, fleet.in_flight
        count = len(candidates)
        drawn = candidates[fleet.random.sample(range(count), min(self._choices, count))]
        return int(drawn[in_flight[drawn].argmin()])
