"""Laws of placements: homes for all that is wanted, within their bounds, and no churn where nothing has changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from lived import ROUTERS, Lived, assert_conserved, lives
from roster import POLICIES

from loratory.errors import InputError
from loratory.experiment.placement_spec import ALL, placement_factory, placement_names
from loratory.serving.events import Admitted
from loratory.sim.fleet_options import FleetOptions
from loratory.sim.placement import Homes, Placement, PlacementOptions, Room, Wanted
from loratory.sim.placements import min_cost_flow
from loratory.testing import World, worlds

NAMES = st.sampled_from([name for name in placement_names() if name != ALL])


def _make(name: str, most: int | None = None) -> Placement:
    make = placement_factory(name, most)
    assert make is not None
    return make()


@st.composite
def demands(draw: st.DrawFn) -> tuple[list[Wanted], list[Room]]:
    rates = draw(st.lists(st.floats(0.01, 20.0), min_size=1, max_size=20))
    wanted = [Wanted(f"a{number}", rate) for number, rate in enumerate(sorted(rates, reverse=True))]
    places = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True).map(sorted))
    rooms = [Room(place, draw(st.integers(1, 6)), draw(st.sampled_from([1.0, 10.0, 1e12]))) for place in places]
    return wanted, rooms


def _held(homes: Homes, room: Room) -> int:
    return sum(room.replica in mine for mine in homes.values())


@examples(200)
@given(demand=demands(), name=NAMES, most=st.none() | st.integers(1, 3))
def test_every_placement_keeps_the_laws(demand: tuple[list[Wanted], list[Room]], name: str, most: int | None) -> None:
    wanted, rooms = demand
    homes = _make(name, most).place(wanted, rooms, {})
    places = {room.replica for room in rooms}
    assert set(homes) == {each.adapter for each in wanted}
    for mine in homes.values():
        assert 1 <= len(mine) <= (most or len(rooms)) and set(mine) <= places
        assert list(mine) == sorted(set(mine))
    if len(wanted) <= sum(room.slots for room in rooms):
        assert all(_held(homes, room) <= room.slots for room in rooms)
    again = _make(name, most).place(wanted, rooms, homes)
    assert again == homes


def _rooms(count: int, slots: int, capacity: float) -> list[Room]:
    return [Room(place, slots, capacity) for place in range(count)]


def test_greedy_fills_one_replica_after_another() -> None:
    wanted = [Wanted(name, rate) for name, rate in (("a", 5.0), ("b", 4.0), ("c", 3.0), ("d", 2.0), ("e", 1.0))]
    homes = _make("greedy").place(wanted, _rooms(4, 8, 10.0), {})
    assert homes == {"a": (0,), "b": (1,), "c": (0,), "d": (1,), "e": (1,)}


def test_bin_pack_spreads_the_load() -> None:
    wanted = [Wanted(name, rate) for name, rate in (("a", 5.0), ("b", 4.0), ("c", 3.0), ("d", 2.0), ("e", 1.0))]
    homes = _make("bin_pack").place(wanted, _rooms(3, 8, 10.0), {})
    assert homes == {"a": (0,), "b": (1,), "c": (2,), "d": (2,), "e": (1,)}
    twice = _make("bin_pack").place([Wanted("a", 15.0), Wanted("b", 1.0)], _rooms(3, 8, 10.0), {})
    assert twice == {"a": (0, 2), "b": (1,)}


@examples(30)
@given(demand=demands(), data=st.data())
def test_min_cost_flow_moves_only_what_must_move(demand: tuple[list[Wanted], list[Room]], data: Any) -> None:
    """A replica leaves: where the others have the slots, no home on them is given up."""
    wanted, rooms = demand
    placement = _make("min_cost_flow", 1)
    homes = placement.place(wanted, rooms, {})
    left = [room for room in rooms if room is not data.draw(st.sampled_from(rooms))]
    if not left or sum(room.slots for room in left) < len(wanted):
        return
    there = {room.replica for room in left}
    before = {name: tuple(place for place in mine if place in there) for name, mine in homes.items()}
    after = placement.place(wanted, left, before)
    assert all(set(mine) <= set(after[name]) for name, mine in before.items())


def test_an_unknown_placement_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^cluster.placement 'binpack' is unknown: did you mean 'bin_pack'\?$"):
        placement_factory("binpack")


def _placed(world: World, name: str, every_s: float | None, most: int | None = None) -> PlacementOptions:
    counts = np.bincount(world.workload.adapter[world.workload.adapter >= 0], minlength=len(world.workload.adapters))
    rates = {name: float(count) for name, count in zip(world.workload.adapters, counts.tolist(), strict=True) if count}
    return PlacementOptions(lambda: _make(name, most), rates, (10.0,) * 3, every_s)


@examples(30)
@given(
    world=worlds(), life=lives(), name=NAMES, policy=st.sampled_from(sorted(POLICIES)), router=ROUTERS,
    every_s=st.none() | st.sampled_from([0.02, 0.3]),
)  # fmt: skip
def test_nothing_is_lost_with_homes_and_failures(
    world: World, life: FleetOptions, name: str, policy: str, router: str, every_s: float | None
) -> None:
    life = FleetOptions(life.events, life.resend, life.startup_s, placement=_placed(world, name, every_s))
    jumped = Lived(world, life, policy, router=router)
    assert_conserved(jumped)
    stepped = Lived(world, life, policy, router=router, jump=False)
    assert jumped.ends() == stepped.ends()
    assert jumped.end == stepped.end


@examples(40)
@given(world=worlds(), name=NAMES, router=ROUTERS)
def test_an_adapter_runs_only_where_it_has_a_home(world: World, name: str, router: str) -> None:
    run = Lived(world, FleetOptions(placement=_placed(world, name, None, most=1)), router=router)
    served: dict[str, set[int]] = {}
    for place, event in run.events:
        if isinstance(event, Admitted) and event.request.adapter is not None:
            served.setdefault(event.request.adapter, set()).add(place)
    assert all(len(places) == 1 for places in served.values())
    assert run.end.fleet is not None and run.end.fleet.homes_moved == 0


@pytest.mark.parametrize("seed", range(4))
def test_both_ways_to_solve_the_flow_find_the_same_cost(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large placements use the interior point method: its homes are whole as well, and cost as much."""
    rng = np.random.default_rng(seed)
    adapters, replicas = 30, 5
    pairs = [(a, r) for a in range(adapters) for r in range(replicas) if r == 0 or rng.random() < 0.7]
    edges = [np.array(column) for column in zip(*pairs, strict=True)]
    costs = rng.choice([-250.0, 1000.0], len(pairs)) + rng.integers(0, 5, len(pairs)) / 5
    homes, rooms = rng.integers(1, 4, adapters), [Room(r, int(rng.integers(2, 12)), 1.0) for r in range(replicas)]

    def total() -> float:
        chosen = min_cost_flow._solve(*edges, costs, homes, rooms)
        had, used = np.bincount(edges[0][chosen], minlength=adapters), np.bincount(edges[1][chosen], minlength=replicas)
        assert (had <= homes).all() and (had >= 1).all()
        crowded = np.maximum(used - [room.slots for room in rooms], 0).sum()
        return float(costs[chosen].sum() + 1e4 * (homes - had).sum() + 1e6 * crowded)

    by_simplex = total()
    monkeypatch.setattr(min_cost_flow, "_MOST_BY_SIMPLEX", 0)
    assert total() == pytest.approx(by_simplex)
