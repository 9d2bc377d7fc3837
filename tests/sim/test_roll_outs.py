"""RollOuts: every request gets one version, shares are exact, and the old version is gone when its last request is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from lab import examples
from lived import ROUTERS, Lived, assert_conserved, assert_places, lives
from roster import POLICIES

from loratory.serving.config import EngineConfig
from loratory.serving.events import AdapterRemoved, Arrived, Ended, Loaded, LoadStarted
from loratory.serving.run_end import RollOutRecord, TrafficShare
from loratory.serving.sequence import sequence_of
from loratory.sim.fleet_options import AutoscaleOptions, FleetEvent, FleetOptions, RollOut
from loratory.sim.placement import PlacementOptions
from loratory.sim.placements.bin_pack import BinPack
from loratory.testing import ToyCost, World, adapter, workload, worlds

TIMES = st.floats(0.0, 1.0) | st.sampled_from([0.0, 0.125, 0.25, 0.5])
MOVES = st.sampled_from(
    [
        {},
        {"preload": True},
        {"shares": (0.25, 0.5, 1.0), "every_s": 0.1},
        {"shares": (0.3, 1.0), "every_s": 0.25, "preload": True},
        {"over_s": 0.5},
    ]
)


@st.composite
def orders(draw: st.DrawFn, world: World) -> tuple[RollOut, ...]:
    """Up to three roll-outs of the adapters of a world, of which some are of one adapter."""
    found: list[RollOut] = []
    latest = {each.name: each for each in world.adapters}
    for place, at_s in enumerate(sorted(draw(st.lists(TIMES, max_size=3)))):
        first = draw(st.sampled_from(world.adapters))
        old, number = latest[first.name], 100 + place
        new = adapter(number, rank=draw(st.sampled_from([4, 8, 16])), size=old.bytes, name=f"{first.name}@{number}")
        latest[first.name] = new
        found.append(RollOut(at_s, first.name, old, new, **draw(MOVES), pinned=first.pinned))
    return tuple(found)


def versions(run: Lived) -> dict[str, str | None]:
    """By request, the version that it ended with."""
    return {name: event.request.adapter for name, event in run.ended.items()}


def assert_versions(run: Lived, rolled: Sequence[RollOut], resent: bool) -> None:
    """Each request ended with a version of the adapter that it asks for, and with none that takes no requests."""
    assert run.end.fleet is not None
    records = run.end.fleet.roll_outs
    assert [(each.adapter, each.old, each.new) for each in records] == [
        (each.adapter, each.old.name, each.new.name) for each in rolled
    ]
    work = run.world.workload
    for name, version in versions(run).items():
        place = int(work.adapter[int(name)])
        asked = work.adapters[place] if place >= 0 else None
        mine = [each for each in records if each.adapter == asked]
        assert version in {asked, *(each.new for each in mine)}
        arrival = sequence_of(run.ended[name].request).request.arrival
        for each in mine:
            if each.moved_s is not None and arrival > each.moved_s:
                assert version != each.old
            if version == each.new and not resent:
                assert each.shares and arrival >= each.shares[0].at_s
    for each in records:
        times = [share.at_s for share in each.shares]
        assert times == sorted(times)
        if each.freed_s is not None:
            assert each.moved_s is not None and each.freed_s >= each.moved_s
            ends = [event.now for event in run.of(Ended) if event.request.adapter == each.old]
            # with async scheduling, the step that gives the last token does not keep the adapter
            ahead = run.world.config.async_scheduling
            assert resent or ahead or each.freed_s >= max(ends, default=0.0)
            assert resent or all(each.old not in engine.ledger.adapters for engine in run.engines)


@examples(35)
@given(
    data=st.data(), world=worlds(memory="slots"), life=lives(), policy=st.sampled_from(sorted(POLICIES)),
    router=ROUTERS, delay=st.sampled_from([0.0, 0.1]), scaled=st.booleans(), replicas=st.integers(1, 3),
)  # fmt: skip
def test_every_request_is_served_once_by_one_version(
    data: st.DataObject, world: World, life: FleetOptions, policy: str, router: str, delay: float, scaled: bool,
    replicas: int,
) -> None:  # fmt: skip
    """While replicas fail, recover, drain and start, whatever the router and the policy, jumping or stepping."""
    assume(world.adapters)
    rolled = data.draw(orders(world))
    scale = AutoscaleOptions(1, 3, "queue", 3.0, interval_s=0.1, startup_s=0.03, warm_adapters=1)
    events = tuple(event for event in life.events if event.replica < replicas)
    life = replace(life, events=events, roll_outs=rolled, autoscale=scale if scaled else None)
    run = partial(Lived, world, life, policy, router=router, replicas=replicas, metrics_delay_s=delay)
    jumped = run()
    assert_conserved(jumped)
    assert_places(jumped)
    assert_versions(jumped, rolled, bool(life.events) or scaled)
    stepped = run(jump=False)
    assert jumped.ends() == stepped.ends()
    assert jumped.end == stepped.end
    assert run().values == jumped.values


@examples(30)
@given(world=worlds(memory="slots"), policy=st.sampled_from(sorted(POLICIES)), router=ROUTERS)
def test_a_roll_out_after_the_end_changes_nothing_but_a_note(world: World, policy: str, router: str) -> None:
    assume(world.adapters and len(world.workload))
    old = world.adapters[0]
    never = FleetOptions(roll_outs=(RollOut(1e6, old.name, old, adapter(99, name="a1@2")),))
    run, plain = (Lived(world, life, policy, router=router) for life in (never, FleetOptions()))
    assume(plain.end.never_served == 0)
    assert run.values == plain.values
    (note,) = set(run.end.notes) - set(plain.end.notes)
    assert note == "cluster.events: the roll-out of a1@2 at 1e+06 s did not happen, because the run was over before"
    assert run.end.fleet is not None and run.end.fleet.roll_outs[0].began_s is None


def test_of_many_that_did_not_happen_the_first_is_named() -> None:
    olds = [adapter(place) for place in (1, 2, 3)]
    orders = tuple(RollOut(1e6, old.name, old, adapter(90 + i, name=f"a{i}@2")) for i, old in enumerate(olds, 1))
    run = Lived(_world([{"prompt": 1, "out": 9}], adapters=tuple(olds)), FleetOptions(roll_outs=orders))
    assert run.end.notes == (
        "cluster.events: the roll-out of a1@2 at 1e+06 s and 2 others did not happen, because the run was over before",
    )


TWO = (adapter(1), adapter(2))
CONFIG = EngineConfig(num_gpu_blocks=99, max_loras=2, max_cpu_loras=4, max_num_seqs=4, adapter_loading="async")


def _world(rows: list[dict[str, Any]], config: EngineConfig = CONFIG, adapters: Any = TWO, **options: Any) -> World:
    return World(workload(rows, adapters), adapters, config, ToyCost(grid=True, load_s=0.1, **options))


def _new(**options: Any) -> Any:
    return adapter(7, name="a1@2", **options)


def _life(at_s: float, *, old: Any = TWO[0], new: Any = None, life: FleetOptions | None = None, **how: Any) -> Any:
    return replace(life or FleetOptions(), roll_outs=(RollOut(at_s, "a1", old, new or _new(), **how),))


@examples(40)
@given(
    shares=st.lists(st.floats(0.01, 0.99), max_size=3, unique=True).map(sorted),
    gaps=st.lists(st.sampled_from([0.01, 0.02, 0.05]), min_size=1, max_size=60),
)
def test_each_step_sends_its_share_to_within_one_request(shares: list[float], gaps: list[float]) -> None:
    rows, at = [], 0.0
    for gap in gaps:
        rows.append({"prompt": 1, "out": 1, "adapter": 1, "at": at})
        at += gap
    run = Lived(_world(rows), _life(0.055, shares=(*shares, 1.0), every_s=0.5), replicas=2)
    record = _record(run)
    edges = [share.at_s for share in record.shares]
    for share, (begin, end) in zip(record.shares, pairwise([*edges, 1e9]), strict=True):
        mine = [v for n, v in versions(run).items() if begin <= run.world.workload.arrival[int(n)] < end]
        assert abs(mine.count("a1@2") - share.share * len(mine)) < 1.0 + 1e-6
    assert all(v == "a1" for n, v in versions(run).items() if run.world.workload.arrival[int(n)] < 0.055)


def _record(run: Lived) -> RollOutRecord:
    assert run.end.fleet is not None
    return run.end.fleet.roll_outs[0]


def test_a_share_that_grows_evenly_is_a_half_on_average() -> None:
    rows = [{"prompt": 1, "out": 1, "adapter": 1, "at": n / 100} for n in range(300)]
    run = Lived(_world(rows), _life(1.0, over_s=1.0), replicas=2)
    found = versions(run)
    assert _record(run).shares == (TrafficShare(1.0, 0.0), TrafficShare(2.0, 1.0))
    during = [found[str(n)] for n in range(100, 200)]
    assert 48 <= during.count("a1@2") <= 50 and during[:50].count("a1@2") < 14
    assert {found[str(n)] for n in range(201, 300)} == {"a1@2"}


@pytest.mark.parametrize("jump", [True, False])
def test_the_old_version_ends_its_requests_and_is_gone(jump: bool) -> None:
    """A long request runs with a1 when traffic moves at 0.3 s. It ends with a1; only then is a1 gone from replica 0.
    Replica 1 has nothing to end, and forgets a1 at once."""
    rows = [{"prompt": 1, "out": 17, "adapter": 1}, {"prompt": 1, "out": 2, "adapter": 1, "at": 0.5}]
    rows += [{"prompt": 1, "out": 40, "adapter": 2, "at": 0.6}]
    run = Lived(_world(rows), _life(0.3), replicas=2, jump=jump)
    assert versions(run) == {"0": "a1", "1": "a1@2", "2": "a2"}
    gone = {place: event.now for place, event in run.events if isinstance(event, AdapterRemoved)}
    ended = run.ended["0"].now
    assert gone == {0: ended, 1: 0.3} and _record(run).freed_s == ended
    assert all("a1" not in engine.ledger.adapters and "a1@2" in engine.ledger.adapters for engine in run.engines)
    loads = [(event.now, event.tier) for event in run.of(LoadStarted) if event.adapter == "a1@2"]
    assert loads == [(0.5, "disk")], "a new version is a new artefact, though a1 was loaded before"


def test_with_preload_traffic_moves_when_every_replica_has_a_copy() -> None:
    rows = [{"prompt": 1, "out": 4, "adapter": 1, "at": n / 10} for n in range(30)]
    run = Lived(_world(rows), _life(1.0, preload=True), replicas=2)
    copied = [event.now for event in run.of(Loaded) if event.prefetch and event.adapter == "a1@2"]
    assert len(copied) == 2 and _record(run).moved_s == max(copied) > 1.0
    assert {event.tier for event in run.of(LoadStarted) if event.adapter == "a1@2" and not event.prefetch} == {"host"}


def test_a_copy_that_finds_no_room_keeps_no_traffic_back() -> None:
    rows = [{"prompt": 1, "out": 9, "adapter": 1 + n % 2, "at": n / 10} for n in range(30)]
    tight = CONFIG.model_copy(update={"max_cpu_loras": 2})
    run = Lived(_world(rows, tight), _life(1.0, preload=True), replicas=1)
    assert "1 were not made: host memory holds no adapter that may leave" in " ".join(run.end.notes)
    assert _record(run).moved_s is not None and _record(run).freed_s is not None


def test_a_failure_does_not_bring_the_old_version_back() -> None:
    """Replica 0 fails after traffic has moved: its request with a1 starts anew with a1@2, and a1 is gone."""
    rows = [{"prompt": 1, "out": 50, "adapter": 1}, {"prompt": 1, "out": 2, "adapter": 1, "at": 9.0}]
    events = (FleetEvent(2.0, "fail", 0), FleetEvent(4.0, "recover", 0))
    run = Lived(_world(rows), _life(1.0, life=FleetOptions(events)), replicas=2)
    assert versions(run) == {"0": "a1@2", "1": "a1@2"} and _record(run).freed_s == 2.0
    assert "a1" not in run.engines[-1].ledger.adapters


def test_what_the_old_version_left_in_the_kv_cache_is_not_cached_for_the_new_one() -> None:
    """Of each version, the first request on a replica computes its whole prompt; a turn also after another version."""
    rows: list[dict[str, Any]] = [
        {"prompt": 9, "out": 1, "adapter": 1, "cached": 3, "at": float(n), "after": -1, "delay": 0.0} for n in range(4)
    ]
    rows.append({"prompt": 9, "out": 1, "adapter": 1, "cached": 3, "at": 5.0, "after": 0, "delay": 5.0})
    run = Lived(_world(rows), _life(1.5), replicas=1)
    cached = {n: sequence_of(event.request).request.cached_tokens for n, event in run.ended.items()}
    assert cached == {"0": 3, "1": 3, "2": 0, "3": 3, "4": 0}


def test_the_new_version_inherits_the_homes_of_the_adapter() -> None:
    rows = [{"prompt": 1, "out": 9, "adapter": 1 + n % 2, "at": n / 10} for n in range(40)]
    placement = PlacementOptions(partial(BinPack, 1), {"a1": 5.0, "a2": 5.0}, (9.0, 9.0))
    run = Lived(_world(rows), _life(1.0, life=FleetOptions(placement=placement), preload=True), replicas=2)
    places: dict[str, set[int]] = {}
    for place, event in run.events:
        if isinstance(event, Arrived) and event.request.adapter is not None:
            places.setdefault(event.request.adapter, set()).add(place)
    assert places["a1"] == places["a1@2"] != places["a2"] and len(places["a1"]) == 1
    assert len([event for event in run.of(Loaded) if event.prefetch]) == 1, "only its home copies it"


def test_a_pinned_adapter_stays_pinned_in_its_new_version() -> None:
    pinned = (adapter(1, pinned=True), adapter(2))
    rows = [{"prompt": 1, "out": 2, "adapter": 1, "at": n / 2} for n in range(8)]
    life = _life(1.0, old=pinned[0], pinned=True)
    run = Lived(_world(rows, adapters=pinned), life, replicas=1)
    states = {state.name: state.pinned for state in run.engines[0].ledger.adapters.made()}
    assert states["a1@2"] and "a1" not in states


def test_a_second_roll_out_waits_for_the_first() -> None:
    first = RollOut(0.5, "a1", TWO[0], _new(), shares=(0.5, 1.0), every_s=1.0)
    second = RollOut(1.0, "a1", first.new, adapter(8, name="a1@3"))
    rows = [{"prompt": 1, "out": 2, "adapter": 1, "at": n / 10} for n in range(40)]
    run = Lived(_world(rows), FleetOptions(roll_outs=(first, second)), replicas=2)
    assert run.end.fleet is not None
    assert [each.moved_s for each in run.end.fleet.roll_outs] == [1.5, 1.5]
    assert {v for n, v in versions(run).items() if int(n) > 15} == {"a1@3"}
    assert all(set(engine.ledger.adapters) == {"a2", "a1@3"} for engine in run.engines)
    assert "began after 1 s, when all requests went to a1@2" in run.end.notes[0]
