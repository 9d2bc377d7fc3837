"""ends_through_failure: how each request of a small fleet ends while replicas fail, come back and drain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loratory.policies.fifo import Fifo
from loratory.serving.events import Ended, Event
from loratory.sim.cluster import simulate
from loratory.sim.fleet_options import FleetEvent, FleetOptions
from loratory.testing.broken_law import BrokenLaw
from loratory.testing.world import World

End = tuple[int, str, float]
"""The replica, the status, and the second."""


def ends_through_failure(world: World, replicas: int, failing: int, **options: Any) -> dict[str, End]:
    """The end of each request, by id. ``options``: those of `simulate`, such as ``router``.

    Replica ``failing`` fails when two fifths of the requests have arrived, and recovers when three fifths have; its
    requests go through the router again. When four fifths have arrived, the replica after it drains. Raises `BrokenLaw`
    where a request has not exactly one end, and what `simulate` raises.
    """
    arrivals = sorted(map(float, world.workload.arrival))
    fails, recovers, drains = (arrivals[len(arrivals) * fifths // 5] + 1e-3 * fifths for fifths in (2, 3, 4))
    life = FleetOptions(
        (
            FleetEvent(fails, "fail", failing),
            FleetEvent(recovers, "recover", failing),
            FleetEvent(drains, "drain", (failing + 1) % replicas),
        )
    )
    ends: dict[str, list[End]] = {}

    def sink(place: int) -> Callable[[Event], None]:
        def take(event: Event) -> None:
            if isinstance(event, Ended):
                ends.setdefault(event.request.request_id, []).append((place, event.status, event.now))

        return take

    simulate(
        world.workload,
        adapters=world.adapters,
        config=world.config,
        policy=Fifo,
        cost=world.cost,
        replicas=replicas,
        life=life,
        sink=sink,
        kv_bytes_per_token=world.kv_bytes_per_token,
        **options,
    )
    for index in range(len(arrivals)):
        found = ends.get(str(index), [])
        if len(found) != 1:
            raise BrokenLaw(
                "serves", f"request {index} ended {len(found)} times while replicas failed, came back and drained"
            )
    return {name: found[0] for name, found in ends.items()}
