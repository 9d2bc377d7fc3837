"""Routers: who gets a request, and how little moves."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from fleets import HandMade
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run

from loratory.errors import InputError
from loratory.experiment.router_spec import router_factory, router_names
from loratory.serving.config import EngineConfig
from loratory.sim.routers.least_loaded import LeastLoaded
from loratory.sim.routers.lora_affinity import LoraAffinity
from loratory.sim.routers.rendezvous import Rendezvous
from loratory.sim.routers.round_robin import RoundRobin
from loratory.testing import ToyCost, World, adapter, workload


@examples(30)
@given(count=st.integers(2, 6), sent=st.integers(0, 40))
def test_round_robin_is_even(count: int, sent: int) -> None:
    fleet = HandMade(RoundRobin(), count)
    assert [fleet.send() for _ in range(sent)] == [i % count for i in range(sent)]


def test_round_robin_passes_over_replicas_that_take_none() -> None:
    fleet = HandMade(RoundRobin(), 4)
    fleet.gateway.set_open(1, False)
    assert [fleet.send() for _ in range(4)] == [0, 2, 3, 0]
    fleet.gateway.set_open(1, True)
    assert [fleet.send() for _ in range(4)] == [1, 2, 3, 0]


@examples(50)
@given(loads=st.lists(st.integers(0, 5), min_size=2, max_size=6))
def test_least_loaded_takes_the_least_in_turn(loads: list[int]) -> None:
    fleet = HandMade(LeastLoaded(), len(loads))
    fleet.load(loads)
    least = [index for index, load in enumerate(loads) if load == min(loads)]
    assert [fleet.send() for _ in least] == least
    fleet.load(loads)
    assert fleet.send() == least[0]


def _score(tier: str, free: int, idle: int, waiting: int, kv_use: float, queues: list[int]) -> float:
    """llm-d's scores, written out."""
    slot = 0.6 if free else 0.3 if idle else 0.0
    place = {"gpu": 1.0, "loading": 1.0, "host": 0.7, "disk": slot}[tier]
    spread = max(queues) - min(queues)
    return place + ((max(queues) - waiting) / spread if spread else 1.0) + (1.0 - kv_use)


@examples(150)
@given(
    replicas=st.lists(
        st.tuples(
            st.sampled_from(["gpu", "loading", "host", "disk"]),
            st.integers(0, 2),
            st.integers(0, 2),
            st.sampled_from([0, 0, 1, 5]),
            st.sampled_from([0.0, 0.25, 0.5, 1.0]),
        ),
        min_size=2,
        max_size=6,
    ),
    base=st.booleans(),
)
def test_lora_affinity_takes_the_highest_score(replicas: list[tuple[str, int, int, int, float]], base: bool) -> None:
    fleet = HandMade(LoraAffinity(), len(replicas))
    fleet.put("a1", [each[0] for each in replicas])
    for place, (_, free, idle, waiting, kv_use) in enumerate(replicas):
        fleet.report(place, free_slots=free, idle_slots=idle, waiting=waiting, kv_use=kv_use)
    queues = [each[3] for each in replicas]
    scores = [_score(*each, queues) for each in replicas]
    if base:
        spread = max(queues) - min(queues)
        scores = [
            (free + idle) / 4 + ((max(queues) - waiting) / spread if spread else 1.0) + 1.0 - kv_use
            for _, free, idle, waiting, kv_use in replicas
        ]
    chosen = fleet.send(None if base else "a1")
    assert scores[chosen] == pytest.approx(max(scores))


def test_rendezvous_moves_only_what_a_new_replica_takes() -> None:
    names = [f"a{n}" for n in range(1, 601)]

    def homes(count: int) -> dict[str, int]:
        found = {}
        for name in names:
            fleet = HandMade(Rendezvous(), count)
            found[name] = fleet.send(name)
        return found

    before, after = homes(4), homes(5)
    moved = [name for name in names if before[name] != after[name]]
    assert all(after[name] == 4 for name in moved) and 60 < len(moved) < 180
    assert all(100 < count < 200 for count in Counter(before.values()).values())


@examples(60)
@given(
    count=st.integers(2, 6),
    load=st.sampled_from([1.0, 1.25, 2.0]),
    few=st.sampled_from([0, 1, 4]),
    moves=st.lists(st.tuples(st.sampled_from(["a1", "a2", "a3"]), st.booleans()), max_size=60),
)
def test_rendezvous_keeps_every_load_within_its_bound(
    count: int, load: float, few: int, moves: list[tuple[str, bool]]
) -> None:
    """At most ``few``, or ``load`` times the mean, the new request counted, rounded up."""
    fleet = HandMade(Rendezvous(load=load, few=few), count)
    loads = [0] * count
    for name, ends in moves:
        if ends and max(loads):
            place = loads.index(max(loads))
            fleet.end(place)
            loads[place] -= 1
            continue
        place = fleet.send(name)
        loads[place] += 1
        assert loads[place] <= max(few, math.ceil(load * sum(loads) / count))


def test_rendezvous_passes_over_replicas_without_a_slot() -> None:
    fleet = HandMade(Rendezvous(load=100.0), 3)
    home = fleet.send("a1")
    fleet.report(home, free_slots=0, idle_slots=0)
    other = fleet.send("a1")
    assert other != home
    fleet.put("a1", ["gpu" if place == home else "disk" for place in range(3)])
    assert fleet.send("a1") == home
    for place in range(3):
        fleet.put("a1", ["disk"] * 3)
        fleet.report(place, free_slots=0, idle_slots=0)
    assert fleet.send("a1") == home


def test_an_unknown_router_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="rendezvous"):
        router_factory("random")


def _spread(name: str, gap: float) -> tuple[int, list[int]]:
    """Loads, and requests a replica, of twelve adapters over four replicas of three slots."""
    draw = random.Random(3)
    adapters = tuple(adapter(n, tier="host") for n in range(1, 13))
    rows = [{"at": gap * i, "adapter": draw.randint(1, 12), "prompt": 4, "out": 8} for i in range(400)]
    config = EngineConfig(max_loras=3, max_cpu_loras=12, num_gpu_blocks=500, max_num_seqs=32)
    world = World(workload(rows, adapters), adapters, config, ToyCost())
    result = run(world, "fifo", replicas=4, router=name, check_books=False)
    return len(result.of("LoadStarted")), [sum(event[0] == "Ended" for event in flat) for flat in result.flat]


@pytest.mark.parametrize("gap", [0.2, 0.02])
def test_routers_that_know_adapters_need_fewer_loads(gap: float) -> None:
    """Twelve loads would do."""
    loads = {name: _spread(name, gap)[0] for name in router_names()}
    assert loads["rendezvous"] < 0.7 * loads["round_robin"]
    assert loads["lora_affinity"] < 0.5 * loads["round_robin"]


@pytest.mark.parametrize("name", router_names())
@pytest.mark.parametrize("gap", [0.2, 0.02, 0.002])
def test_every_replica_gets_work(name: str, gap: float) -> None:
    _, shares = _spread(name, gap)
    assert sum(shares) == 400 and min(shares) > 30
