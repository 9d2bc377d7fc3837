"""Routers: who gets a request, and how little moves."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run

from loratory.errors import InputError
from loratory.serving.config import EngineConfig
from loratory.serving.ledger import Ledger
from loratory.serving.request import Request
from loratory.sim.routers import ROUTERS, LeastLoaded, LoraAffinity, Rendezvous, RoundRobin, router
from loratory.testing import ToyCost, World, adapter, workload

TIERS = ["gpu", "loading", "host", "disk"]


def _cluster(unfinished: list[int], tiers: list[str] | None = None) -> list[Any]:
    """Replicas with so many unfinished requests and adapter a1 on these tiers."""
    tiers = tiers or ["disk"] * len(unfinished)
    made = []
    for index, (load, tier) in enumerate(zip(unfinished, tiers, strict=True)):
        ledger = Ledger(EngineConfig(num_gpu_blocks=9), (adapter(1, tier="disk"),), ToyCost())
        ledger.adapters["a1"].tier = tier  # type: ignore[assignment]
        ledger.adapters["a1"].uses = int(tier != "disk")
        made.append(SimpleNamespace(index=index, unfinished=load, ledger=ledger))
    return made


def _request(name: str | None = "a1") -> Request:
    return Request("r", name, 0.0, 1, 1)


@examples(30)
@given(count=st.integers(1, 6), sent=st.integers(0, 40))
def test_round_robin_is_even(count: int, sent: int) -> None:
    chooser, cluster = RoundRobin(), _cluster([0] * count)
    assert [chooser.route(_request(), cluster) for _ in range(sent)] == [i % count for i in range(sent)]


@examples(50)
@given(loads=st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_least_loaded_takes_the_least_in_turn(loads: list[int]) -> None:
    chooser, cluster = LeastLoaded(), _cluster(loads)
    least = [index for index, load in enumerate(loads) if load == min(loads)]
    assert [chooser.route(_request(), cluster) for _ in range(3 * len(least))] == 3 * least


@examples(80)
@given(
    replicas=st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from(["gpu", "loading", "host", "disk"])), min_size=1, max_size=6
    )
)
def test_lora_affinity_stays_near_the_adapter_and_within_its_slack(replicas: list[tuple[int, str]]) -> None:
    loads, tiers = [r[0] for r in replicas], [r[1] for r in replicas]
    chosen = LoraAffinity(slack=4).route(_request(), _cluster(loads, tiers))
    assert loads[chosen] <= min(loads) + 4
    near = [load for load, tier in replicas if tier in ("gpu", "loading") and load <= min(loads) + 4]
    if near:
        assert tiers[chosen] in ("gpu", "loading") and loads[chosen] == min(near)
    assert LoraAffinity().route(_request(None), _cluster(loads, tiers)) == loads.index(min(loads))


def test_rendezvous_moves_only_what_a_new_replica_takes() -> None:
    names = [f"adapter-{n}" for n in range(600)]
    before = {name: Rendezvous().route(_request(name), _cluster([0] * 4)) for name in names}
    after = {name: Rendezvous().route(_request(name), _cluster([0] * 5)) for name in names}
    moved = [name for name in names if before[name] != after[name]]
    assert all(after[name] == 4 for name in moved) and 60 < len(moved) < 180
    assert all(100 < count < 200 for count in Counter(before.values()).values())


def test_an_unknown_router_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="rendezvous"):
        router("random")


def _spread(name: str, gap: float) -> tuple[int, list[int]]:
    """Loads, and requests a replica, of twelve adapters over four replicas of three slots."""
    draw = random.Random(3)
    adapters = tuple(adapter(n, tier="host") for n in range(1, 13))
    rows = [{"at": gap * i, "adapter": draw.randint(1, 12), "prompt": 4, "out": 8} for i in range(400)]
    config = EngineConfig(max_loras=3, max_cpu_loras=12, num_gpu_blocks=500, max_num_seqs=32)
    world = World(workload(rows, adapters), adapters, config, ToyCost())
    result = run(world, "fifo", replicas=4, router=name, check_books=False)
    return len(result.of("LoadStarted")), [sum(event[0] == "Ended" for event in flat) for flat in result.flat]


@pytest.mark.parametrize("gap", [0.2, 0.02, 0.002])
def test_routers_that_know_adapters_need_fewer_loads(gap: float) -> None:
    """At light and at heavy load; twelve loads would do."""
    loads = {name: _spread(name, gap)[0] for name in ROUTERS}
    assert loads["rendezvous"] < 0.7 * loads["round_robin"]
    assert loads["lora_affinity"] < 0.5 * loads["round_robin"]


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("gap", [0.2, 0.02, 0.002])
def test_every_replica_gets_work(name: str, gap: float) -> None:
    _, shares = _spread(name, gap)
    assert sum(shares) == 400 and min(shares) > 30
