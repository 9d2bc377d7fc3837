"""FleetLife: replicas fail, recover, drain, start and go, and every request has exactly one end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from lived import ROUTERS, Lived, assert_conserved, assert_places, lives
from roster import POLICIES

from loratory.serving.config import EngineConfig
from loratory.serving.events import Arrived, Ended, Loaded, LoadStarted, Stepped
from loratory.serving.request import Request
from loratory.serving.sequence import sequence_of
from loratory.sim.autoscaler import Autoscaler
from loratory.sim.fleet import AWAY, Fleet
from loratory.sim.fleet_options import AutoscaleOptions, FleetEvent, FleetOptions
from loratory.sim.router import Router
from loratory.testing import ToyCost, World, adapter, workload, worlds

PLAIN = EngineConfig(num_gpu_blocks=99, max_num_seqs=4)


@examples(50)
@given(world=worlds(), life=lives(), policy=st.sampled_from(sorted(POLICIES)), router=ROUTERS)
def test_every_request_has_one_end_through_failures(world: World, life: FleetOptions, policy: str, router: str) -> None:
    jumped = Lived(world, life, policy, router=router)
    assert_conserved(jumped)
    assert_places(jumped)
    stepped = Lived(world, life, policy, router=router, jump=False)
    assert jumped.ends() == stepped.ends()
    assert jumped.end == stepped.end


TWO = (adapter(1), adapter(2))
GRID = ToyCost(grid=True)
"""Steps of 1/8 s."""


def _plain(rows: list[dict[str, Any]], **options: Any) -> World:
    return World(workload(rows, **options), (), PLAIN, GRID)


def _events(*events: tuple[float, str, int], **options: Any) -> FleetOptions:
    return FleetOptions(tuple(FleetEvent(*event) for event in events), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("jump", [True, False])
def test_steps_before_a_failure_are_committed_and_the_rest_never_happened(jump: bool) -> None:
    """Steps end at 1/8, 2/8, 3/8 and 4/8 s; replica 0 fails at 0.5: three count. The request then starts anew."""
    run = Lived(_plain([{"prompt": 1, "out": 9}]), _events((0.5, "fail", 0)), replicas=2, jump=jump)
    steps = [(place, event.start, event.end) for place, event in run.events if isinstance(event, Stepped)]
    assert max(end for place, _, end in steps if place == 0) == 0.375
    assert min(start for place, start, _ in steps if place == 1) == 0.5
    end = run.ended["0"]
    sequence = sequence_of(end.request)
    assert (end.status, end.now, sequence.request.arrival, sequence.admitted_at) == ("completed", 1.625, 0.0, 0.5)
    assert run.end.fleet is not None and run.end.fleet.resent == 1
    assert run.changes() == [(0.0, 0, "open"), (0.0, 1, "open"), (0.5, 0, "failed")]


def test_requests_of_a_failed_replica_may_fail() -> None:
    run = Lived(_plain([{"prompt": 1, "out": 9}]), _events((0.5, "fail", 0), resend=False), replicas=2)
    end = run.ended["0"]
    assert (end.status, end.why, end.now, run.end.never_served) == ("failed", "its replica failed", 0.5, 0)


def test_requests_wait_at_the_gateway_until_a_replica_opens() -> None:
    rows = [{"prompt": 1, "out": 2}, {"prompt": 1, "out": 2, "at": 0.5}, {"prompt": 1, "out": 2, "at": 0.6}]
    life = _events((0.125, "fail", 0), (1.0, "recover", 0), startup_s=0.25)
    run = Lived(_plain(rows), life, replicas=1)
    assert [run.ended[each].now for each in "012"] == [1.5, 1.5, 1.5]
    assert [event.request.request_id for event in run.of(Arrived)][1:] == ["0", "1", "2"]
    assert run.changes()[-2:] == [(1.0, 0, "starting"), (1.25, 0, "open")]


@pytest.mark.parametrize("cutoff", [None, 2.0])
@pytest.mark.parametrize("jump", [True, False])
def test_requests_that_wait_at_the_gateway_for_ever_end_with_the_run(cutoff: float | None, jump: bool) -> None:
    rows = [{"prompt": 1, "out": 50}, {"prompt": 1, "out": 2, "at": 1.5}]
    run = Lived(_plain(rows), _events((1.0, "fail", 0)), replicas=1, cutoff_s=cutoff, jump=jump)
    status = "failed" if cutoff is None else "aborted"
    assert {end.status for end in run.of(Ended)} == {status} and len(run.of(Ended)) == 2
    assert run.end.end_s == (1.5 if cutoff is None else 2.0)
    assert run.end.never_served == (2 if cutoff is None else 0)


def test_a_drained_replica_goes_when_its_last_request_has_ended() -> None:
    rows = [{"prompt": 1, "out": 4}, {"prompt": 1, "out": 8}, {"prompt": 1, "out": 1, "at": 0.3}]
    run = Lived(_plain(rows), _events((0.25, "drain", 0)), replicas=2)
    assert run.changes()[2:] == [(0.25, 0, "draining"), (0.5, 0, "off")]
    assert [place for place, event in run.events if isinstance(event, Ended)] == [0, 1, 1]


def test_a_failed_replica_loses_its_adapters_and_their_loads() -> None:
    """The adapter is on the GPU at first; after the failure it is loaded again, and the load in flight never ends."""
    config = EngineConfig(num_gpu_blocks=99, max_loras=2, adapter_loading="async")
    rows = [{"prompt": 1, "out": 9, "adapter": 1}, {"prompt": 1, "out": 3, "adapter": 2, "at": 0.99}]
    world = World(workload(rows, TWO), TWO, config, ToyCost(grid=True, load_s=0.1))
    life = _events((1.0, "fail", 0), (1.5, "recover", 0))
    run = Lived(world, life, replicas=1)
    assert {end.status for end in run.of(Ended)} == {"completed"}
    loads = [(event.adapter, event.now >= 1.0) for event in run.of(Loaded) if not event.prefetch]
    assert ("a1", True) in loads and ("a2", True) in loads and ("a2", False) not in loads
    assert_places(run)


def test_what_changed_nothing_is_told() -> None:
    life = _events((0.1, "drain", 0), (0.2, "fail", 0), (99.0, "fail", 1))
    run = Lived(_plain([{"prompt": 1, "out": 9, "at": 1.0}]), life, replicas=2)
    assert run.end.notes == (
        "cluster.events: fail 0 at 0.2 s changed nothing, because replica 0 was off then",
        "cluster.events: fail 1 at 99 s did not happen, because the run was over before",
    )
    assert run.end.end_s == 2.125


def test_of_many_that_changed_nothing_the_first_is_named() -> None:
    life = _events((0.1, "drain", 0), (0.2, "fail", 0), (0.3, "drain", 0), (98.0, "fail", 1), *[(99.0, "drain", 1)] * 5)
    run = Lived(_plain([{"prompt": 1, "out": 9, "at": 1.0}]), life, replicas=2)
    assert run.end.notes == (
        "cluster.events: fail 0 at 0.2 s and 1 other changed nothing, because their replicas were off then",
        "cluster.events: fail 1 at 98 s and 5 others did not happen, because the run was over before",
    )


def test_a_run_that_is_over_before_the_first_decision_says_so() -> None:
    scale = AutoscaleOptions(1, 3, "queue", 1.0, interval_s=100.0)
    run = Lived(_plain([{"prompt": 1, "out": 9, "at": 1.0}]), FleetOptions(autoscale=scale), replicas=1)
    assert run.end.notes == ("cluster.autoscale decided nothing, as the run was over before interval_s (100 s)",)


def scales(most: int) -> st.SearchStrategy[AutoscaleOptions]:
    by_queue = st.tuples(st.just("queue"), st.sampled_from([0.5, 1.0, 3.0]))
    by_time = st.tuples(st.just("attainment"), st.sampled_from([0.5, 0.9]))
    return st.builds(
        lambda by, **options: AutoscaleOptions(1, most, *by, ttft_s=0.05, **options),
        by=by_queue | by_time,
        interval_s=st.sampled_from([0.01, 0.1]),
        startup_s=st.sampled_from([0.0, 0.03]),
        warm_adapters=st.integers(0, 1),
        scale_down_after_s=st.sampled_from([0.0, 0.1]),
    )


@examples(50)
@given(
    world=worlds(), life=lives(), scale=scales(3), policy=st.sampled_from(sorted(POLICIES)), router=ROUTERS,
    replicas=st.integers(1, 3),
)  # fmt: skip
def test_nothing_is_lost_when_replicas_come_and_go_with_the_load(
    world: World, life: FleetOptions, scale: AutoscaleOptions, policy: str, router: str, replicas: int
) -> None:
    life = replace(life, autoscale=scale)
    jumped = Lived(world, life, policy, router=router, replicas=replicas)
    assert_conserved(jumped)
    assert_places(jumped)
    stepped = Lived(world, life, policy, router=router, replicas=replicas, jump=False)
    assert jumped.ends() == stepped.ends()
    assert jumped.end == stepped.end


def _scale(**options: Any) -> AutoscaleOptions:
    given: dict[str, Any] = {"least": 1, "most": 9, "by": "queue", "target": 10.0, "interval_s": 15.0}
    return AutoscaleOptions(**{**given, "scale_down_after_s": 60.0, **options})


def test_the_queue_decides_as_kubernetes_does() -> None:
    scaler = Autoscaler(_scale())
    assert scaler.wanted(15.0, 2, 40) == 4
    assert scaler.wanted(30.0, 4, 43) == 4, "within a tenth of the target"
    assert scaler.wanted(45.0, 4, 45) == 5
    assert scaler.wanted(60.0, 5, 1000) == 9, "no more than most"
    assert scaler.wanted(75.0, 9, 20) == 9, "more were wanted less than 60 s ago"
    assert scaler.wanted(119.0, 9, 30) == 9
    assert scaler.wanted(121.0, 9, 0) == 3, "the highest number of the last 60 s"
    assert scaler.wanted(182.0, 3, 0) == 1, "no fewer than least"


def test_a_replica_that_starts_loads_hot_adapters_before_it_opens() -> None:
    """a1 is asked for most. The second replica starts at 0.25, loads a1 from 1.25 on, and opens when that is there."""
    config = EngineConfig(num_gpu_blocks=99, max_loras=2, max_num_seqs=4)
    rows = [{"prompt": 1, "out": 60, "adapter": 1 + (n == 2), "at": n / 100} for n in range(8)]
    world = World(workload(rows, TWO), TWO, config, ToyCost(grid=True, load_s=0.1))
    scale = AutoscaleOptions(1, 2, "queue", 4.0, interval_s=0.25, startup_s=1.0, warm_adapters=1)
    run = Lived(world, FleetOptions(autoscale=scale), replicas=1)
    starting, opened = run.changes()[1:3]
    assert starting == (0.25, 1, "starting") and opened[1:] == (1, "open") and opened[0] > 1.25
    loads = [(event.now, event.adapter) for place, event in run.events if place == 1 and isinstance(event, LoadStarted)]
    assert loads == [(1.25, "a1")]
    loaded = [event.now for place, event in run.events if place == 1 and isinstance(event, Loaded)]
    assert loaded == [opened[0]]


@pytest.mark.parametrize("most", [2, 3])
def test_an_autoscaler_replaces_what_failed_while_it_has_places(most: int) -> None:
    """Both replicas fail. With a third place one starts; without, the run ends, and does not ask for ever."""
    rows = [{"prompt": 1, "out": 9}, {"prompt": 1, "out": 9}]
    scale = AutoscaleOptions(1, most, "queue", 1.0, interval_s=0.25, startup_s=1.0)
    life = replace(_events((0.125, "fail", 0), (0.125, "fail", 1)), autoscale=scale)
    run = Lived(_plain(rows), life, replicas=2)
    assert {end.status for end in run.of(Ended)} == {"completed" if most == 3 else "failed"}
    assert len(run.of(Ended)) == 2


@pytest.mark.parametrize("delay_s", [0.0, 3.0])
def test_a_replica_that_starts_anew_is_seen_as_it_is(delay_s: float) -> None:
    """All fail with queues, and open at the same second: the router sees empty ones, and spreads what has waited."""
    rows = [{"prompt": 8, "out": 40, "adapter": 1 + n % 2, "at": 0.01 * n} for n in range(60)]
    events = [FleetEvent(0.5, "fail", place) for place in range(3)]
    events += [FleetEvent(0.75, "recover", place) for place in range(3)]
    seen: list[tuple[float, dict[str, list[float]], list[int]]] = []

    class Watching(Router):
        def route(self, request: Request, fleet: Fleet) -> int:
            names = ("waiting", "running", "free_slots", "kv_use", "in_flight")
            columns = {name: getattr(fleet, name).tolist() for name in names}
            seen.append((fleet.now, columns, fleet.tiers("a1").tolist()))
            return fleet.lowest(fleet.in_flight)

    adapters = (adapter(1), adapter(2))
    config = PLAIN.model_copy(update={"max_num_seqs": 2, "max_loras": 2})
    world = World(workload(rows, adapters), adapters, config, ToyCost())
    run = Lived(world, FleetOptions(tuple(events)), router=Watching(), metrics_delay_s=delay_s)
    assert_conserved(run)
    at_once = [(columns, tiers) for now, columns, tiers in seen if now == 0.75]
    assert len(at_once) > 30
    for number, (columns, tiers) in enumerate(at_once):
        assert columns["waiting"] == columns["running"] == columns["kv_use"] == [0.0] * 3 and tiers == [AWAY] * 3
        assert columns["free_slots"] == [config.max_loras] * 3
        assert sum(columns["in_flight"]) == number and max(columns["in_flight"]) - min(columns["in_flight"]) <= 1
    before = [columns for now, columns, _ in seen if 0.3 < now < 0.5]
    assert any(sum(each["waiting"]) for each in before) == (delay_s == 0.0)
