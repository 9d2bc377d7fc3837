"""Routers: laws for all of them, in random fleets; what each promises, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fleets import HandMade
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run
from roster import POLICIES

from loratory.errors import InputError
from loratory.experiment.router_spec import router_factory, router_names
from loratory.serving.plan import BatchShape
from loratory.sim.routers.least_cost import LeastCost
from loratory.sim.routers.multiplex import Multiplex
from loratory.sim.routers.power_of_two import PowerOfTwo
from loratory.sim.routers.residency_filter import ResidencyFilter
from loratory.testing import World, assert_serves, worlds

SPECS = [
    *router_names(),
    "residency_filter:replicas=1,queue=0",
    "multiplex:max_ongoing_requests=2",
    "least_cost:slo_s=0.01",
]
NAMES = ["a1", "a2", "a3", None]
TIERS = st.sampled_from(["gpu", "loading", "host", "disk"])
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from(NAMES), st.integers(1, 50)),
        st.tuples(st.just("end"), st.integers(0, 5)),
        st.tuples(st.just("open"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("report"), st.integers(0, 5), st.integers(0, 9), st.integers(0, 4), st.floats(0, 1)),
        st.tuples(st.just("put"), st.sampled_from(["a1", "a2", "a3"]), st.lists(TIERS, min_size=6, max_size=6)),
        st.tuples(st.just("homes"), st.none() | st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True)),
        st.tuples(st.just("wait"), st.floats(0, 100)),
    ),
    max_size=50,
)
"""What may happen in front of six replicas."""


class Played:
    """A fleet of ``count`` replicas in which moves are made; ``sent``: where requests went."""

    def __init__(self, spec: str, count: int) -> None:
        self.router: Any = router_factory(spec)()
        self.fleet = HandMade(self.router, count)
        self.count = count
        self.open = [True] * count
        self.loads = [0] * count
        self.sent: list[int] = []
        self.now = 0.0
        self.homes: set[int] | None = None

    def play(self, move: tuple[Any, ...]) -> None:
        kind, *what = move
        place = what[0] % self.count if isinstance(what[0], int) else 0
        if kind == "send":
            self._send(*what)
        elif kind == "end" and self.loads[place]:
            self.loads[place] -= 1
            self.fleet.end(place)
        elif kind == "open" and (what[1] or sum(self.open) > self.open[place]):
            self.open[place] = what[1]
            self.fleet.gateway.set_open(place, what[1])
        elif kind == "report":
            waiting, free, kv_use = what[1:]
            shape = BatchShape(decode_seqs=waiting, kv_tokens=10 * waiting)
            self.fleet.report(place, waiting=waiting, free_slots=free, idle_slots=4 - free, kv_use=kv_use, shape=shape)
        elif kind == "put":
            self.fleet.put(what[0], what[1][: self.count])
        elif kind == "homes":
            homes = what[0] and sorted({each % self.count for each in what[0]})
            self.homes = homes and set(homes)
            self.fleet.gateway.set_homes(homes and {"a1": np.array(homes)})
        elif kind == "wait":
            self.now += what[0]

    def _send(self, adapter: str | None, prompt: int) -> None:
        place = self.fleet.send(adapter, self.now, prompt_tokens=prompt)
        assert self.open[place]
        if adapter == "a1" and self.homes and any(self.open[home] for home in self.homes):
            assert place in self.homes
        self.loads[place] += 1
        self.sent.append(place)
        assert self.fleet.fleet.in_flight.tolist() == self.loads


@pytest.mark.parametrize("spec", SPECS)
def test_each_request_goes_to_one_open_replica_and_the_same_again(spec: str) -> None:
    @examples(20)
    @given(count=st.integers(1, 6), moves=MOVES)
    def anywhere(count: int, moves: list[Any]) -> None:
        sent = []
        for _ in range(2):
            played = Played(spec, count)
            for move in moves:
                played.play(move)
            sent.append(played.sent)
        assert sent[0] == sent[1]

    anywhere()


@pytest.mark.parametrize("spec", SPECS)
def test_every_request_is_served_once_and_runs_repeat(spec: str) -> None:
    """No adapter is starved: in every world all requests end, each once."""

    @examples(6)
    @given(world=worlds(), replicas=st.integers(2, 5), policy=st.sampled_from(sorted(POLICIES)))
    def anywhere(world: World, replicas: int, policy: str) -> None:
        results = [run(world, policy, replicas=replicas, router=spec) for _ in range(2)]
        assert_serves(results[0])
        ends = [event[2] for event in results[0].of("Ended")]
        assert sorted(ends, key=int) == [str(number) for number in range(len(world.workload))]
        assert results[0].flat == results[1].flat

    anywhere()


@examples(60)
@given(moves=MOVES, most=st.integers(1, 3), forget_s=st.sampled_from([1.0, 60.0]))
def test_homes_stay_within_their_bound(moves: list[Any], most: int, forget_s: float) -> None:
    """At most so many, all of them open; requests go to homes; the count of guests is that of the homes."""
    played = Played(f"residency_filter:replicas={most},forget_s={forget_s}", 6)
    router: ResidencyFilter = played.router
    for move in moves:
        played.play(move)
        homes = {name: router.homes(name) for name in ("a1", "a2", "a3")}
        assert all(len(places) <= most and len({*places}) == len(places) for places in homes.values())
        assert all(played.open[place] for places in homes.values() for place in places)
        if move[0] == "send" and move[1] is not None:
            assert played.sent[-1] in homes[move[1]]
        guests = [sum(place in places for places in homes.values()) for place in range(6)]
        assert router._guests.tolist() == guests


def test_a_home_is_added_under_overload_and_dropped_when_unused() -> None:
    router = ResidencyFilter(replicas=2, queue=2, forget_s=10.0)
    fleet = HandMade(router, 4)
    fleet.put("a1", ["disk", "host", "gpu", "disk"])
    assert fleet.send("a1") == 2  # where it is on the GPU
    fleet.report(2, waiting=3)
    assert fleet.send("a1") == 1  # the next best place
    fleet.report(1, waiting=3)
    fleet.load([0, 5, 4, 0])
    assert fleet.send("a1") == 2 and router.homes("a1") == (2, 1)  # both are overloaded, and there may be no third
    fleet.report(2)
    assert [fleet.send("a1", now=9.0) for _ in range(2)] == [2, 2]
    fleet.send("a2", now=11.0)
    assert router.homes("a1") == (2,)
    fleet.gateway.set_open(2, False)
    assert router.homes("a1") == ()


def test_no_home_is_added_where_every_replica_is_overloaded() -> None:
    router = ResidencyFilter(replicas=3, queue=0)
    fleet = HandMade(router, 3)
    home = fleet.send("a1")
    for place in range(3):
        fleet.report(place, waiting=1)
    assert fleet.send("a1") == home and router.homes("a1") == (home,)


def test_a_new_home_is_on_the_replica_with_the_fewest() -> None:
    router = ResidencyFilter()
    fleet = HandMade(router, 3)
    assert sorted(fleet.send(name) for name in ("a1", "a2", "a3")) == [0, 1, 2]
    fleet.report(0, free_slots=0)
    assert fleet.send("a4") != 0  # which has no free slot


@examples(40)
@given(loads=st.lists(st.integers(0, 9), min_size=2, max_size=8), choices=st.integers(1, 10))
def test_power_of_two_never_takes_the_busiest_of_those_it_draws(loads: list[int], choices: int) -> None:
    fleet = HandMade(PowerOfTwo(choices), len(loads))
    for _ in range(10):
        fleet.load(loads)
        place = fleet.send()
        assert sum(load >= loads[place] for load in loads) >= min(choices, len(loads))


def test_two_choices_level_loads_far_better_than_one() -> None:
    """Mitzenmacher's result: with n balls in n bins the fullest has about log n / log log n, against log log n."""
    fullest = []
    for choices in (1, 2):
        fleet = HandMade(PowerOfTwo(choices), 500)
        for _ in range(500):
            fleet.send()
        fullest.append(int(fleet.fleet.in_flight.max()))
    assert fullest[1] <= 3 < fullest[0]


def test_multiplex_goes_through_its_groups() -> None:
    fleet = HandMade(Multiplex(max_ongoing_requests=3), 4)
    fleet.put("a1", ["gpu", "loading", "host", "disk"])
    for place, free in enumerate((3, 3, 1, 2)):
        fleet.report(place, free_slots=free)
    fleet.load([1, 0, 0, 0])
    assert fleet.send("a1") == 1  # it is there or on its way, and the load is lower
    fleet.load([3, 3, 0, 0])
    assert fleet.send("a1") in (2, 3)  # those that have it and those with the fewest accept no more
    fleet.load([3, 3, 3, 3])
    fleet.report(3, free_slots=4)
    assert fleet.send("a2") in range(4)
    fleet.load([0, 0, 0, 2])
    assert fleet.send("a2") == 3  # nobody has it: the one with the fewest


def test_multiplex_never_spreads_an_adapter_under_the_limit_of_ray_serve_llm() -> None:
    fleet = HandMade(Multiplex(), 4)
    fleet.put("a1", ["disk", "disk", "gpu", "disk"])
    assert {fleet.send("a1") for _ in range(300)} == {2}


def test_least_cost_weighs_ranks_loads_and_lengths() -> None:
    fleet = HandMade(LeastCost(), 2)
    assert [fleet.send() for _ in range(2)] == [0, 1]  # equal ones take turns
    fleet.load([0, 0])
    fleet.put("a1", ["disk", "gpu"])
    assert [fleet.send("a1") for _ in range(1)] == [1]  # no load
    low = BatchShape(decode_seqs=5, kv_tokens=50, distinct_adapters=1, sum_ranks=8, max_rank=8)
    fleet.load([20, 1])
    assert fleet.send("a1") == 1 and fleet.send(None) == 1
    fleet.load([1, 9])
    for place in range(2):
        fleet.report(place, shape=low)
    assert fleet.send("a1", prompt_tokens=400) == 0  # the long prompt would hold up nine others
    fleet.load([6, 6])
    fleet.put("a1", ["gpu", "gpu"])
    fleet.report(0, shape=low._replace(decode_seqs=6, kv_tokens=60_000))
    fleet.report(1, shape=low._replace(decode_seqs=6, kv_tokens=60))
    assert {fleet.send("a1") for _ in range(2)} == {0, 1}  # the fixed part of a step counts nowhere


def test_least_cost_passes_over_replicas_above_the_slo() -> None:
    fleet = HandMade(LeastCost(slo_s=0.01), 2)
    fleet.put("a1", ["gpu", "disk"])
    fleet.report(0, shape=BatchShape(decode_seqs=1, kv_tokens=100_000))
    fleet.load([1, 5])
    assert fleet.send("a1") == 1
    fleet.report(1, shape=BatchShape(decode_seqs=1, kv_tokens=100_000))
    assert fleet.send("a1") == 0  # both are too slow


@pytest.mark.parametrize(
    "spec",
    [
        "power_of_two:choices=0",
        "residency_filter:replicas=0",
        "residency_filter:queue=-1",
        "residency_filter:kv=-0.1",
        "residency_filter:forget_s=0",
        "multiplex:max_ongoing_requests=0",
        "least_cost:tokens=0",
        "least_cost:slo_s=-1",
    ],
)
def test_parameters_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match=f"^{spec.partition(':')[0]}: .*give"):
        router_factory(spec)
