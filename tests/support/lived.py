"""Lived: runs of fleets whose replicas fail, come and go, with what must hold in each; random lives of fleets."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import strategies as st
from roster import POLICIES

from loratory.experiment.router_spec import router_factory, router_names
from loratory.serving.events import Arrived, Ended, Event, Loaded, LoadStarted, Stepped
from loratory.serving.run_end import RunEnd
from loratory.serving.sequence import sequence_of
from loratory.sim.cluster import simulate
from loratory.sim.fleet_options import FleetEvent, FleetOptions
from loratory.sim.router import Router
from loratory.testing import World
from loratory.testing.checked_engine import CheckedEngine
from loratory.testing.run import STALL_PLANS, Values, plain

ROUTERS = st.sampled_from(router_names())


class Lived:
    """What a run of a fleet left: events with their replica, as they came; the same as values; how it ended."""

    def __init__(
        self, world: World, life: FleetOptions, policy: str = "fifo", replicas: int = 3,
        router: str | Router = "round_robin", **options: Any,
    ) -> None:  # fmt: skip
        self.world = world
        self.events: list[tuple[int, Event]] = []
        self.values: list[tuple[int, Values]] = []
        self.engines: list[CheckedEngine] = []

        def sink(place: int) -> Any:
            def take(event: Event) -> None:
                self.events.append((place, event))
                self.values.append((place, plain(event)))

            return take

        def checked(*arguments: Any) -> CheckedEngine:
            self.engines.append(CheckedEngine(*arguments))
            return self.engines[-1]

        self.end: RunEnd = simulate(
            world.workload, adapters=world.adapters, config=world.config, policy=POLICIES[policy], cost=world.cost,
            kv_bytes_per_token=world.kv_bytes_per_token, replicas=replicas,
            router=router_factory(router)() if isinstance(router, str) else router, life=life,
            sink=sink, engine=checked, stall_plans=STALL_PLANS, **options,
        )  # fmt: skip

    def of(self, kind: type) -> list[Any]:
        return [event for _, event in self.events if isinstance(event, kind)]

    @property
    def ended(self) -> dict[str, Ended]:
        return {event.request.request_id: event for event in self.of(Ended)}

    def ends(self) -> list[Values]:
        return sorted((place, *values) for place, values in self.values if values[0] == "Ended")

    def changes(self) -> list[tuple[float, int, str]]:
        assert self.end.fleet is not None
        return [tuple(change) for change in self.end.fleet.changes]


def assert_conserved(run: Lived, everything_sent: bool = True) -> None:
    """Every request that arrived has one end, its output is complete, and its times are in order."""
    ends = Counter(event.request.request_id for event in run.of(Ended))
    arrived = {event.request.request_id for event in run.of(Arrived)}
    assert max(ends.values(), default=1) == 1
    assert len(ends) == run.end.submitted and arrived <= set(ends)
    work = run.world.workload
    if everything_sent:
        assert len(ends) == len(work)
    for event in run.of(Ended):
        sequence, index = sequence_of(event.request), int(event.request.request_id)
        times = [sequence.request.arrival, sequence.admitted_at, sequence.first_token_at, event.now]
        known = [at for at in times if at is not None]
        assert known == sorted(known)
        if event.status == "completed":
            assert sequence.generated == min(int(work.output_tokens[index]), run.world.output_limit(index))
        if work.after is None and work.concurrency is None:
            assert sequence.request.arrival == work.arrival[index]


def assert_places(run: Lived) -> None:
    """Replicas do things only while they are there."""
    assert run.end.fleet is not None
    alive: dict[int, list[tuple[float, float]]] = {}
    since: dict[int, float] = {}
    for at, place, state in run.end.fleet.changes:
        if state in ("starting", "open", "draining"):
            since.setdefault(place, at)
        elif place in since:
            alive.setdefault(place, []).append((since.pop(place), at))
    for place, start in since.items():
        alive.setdefault(place, []).append((start, run.end.end_s))
    for place, event in run.events:
        if isinstance(event, Stepped | Loaded | LoadStarted):
            end = event.end if isinstance(event, Stepped) else event.now
            start = event.start if isinstance(event, Stepped) else event.now
            assert any(low <= start and end <= high for low, high in alive[place]), (place, event, alive)


@st.composite
def lives(draw: st.DrawFn, replicas: int = 3) -> FleetOptions:
    """Failures, recoveries and drains in any order, at times when something is going on."""
    times = st.floats(0.0, 1.5) | st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, 3.0])
    kinds = st.sampled_from(["fail", "recover", "fail", "recover", "drain"])
    event = st.builds(FleetEvent, times, kinds, st.integers(0, replicas - 1))
    events = sorted(draw(st.lists(event, max_size=8)), key=lambda each: each.at_s)
    startup = draw(st.sampled_from([0.0, 0.01, 0.2]))
    return FleetOptions(tuple(events), draw(st.booleans()), startup)
