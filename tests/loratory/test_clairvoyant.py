"""The clairvoyant keeps every law, is given the future and nothing else, and is optimal where the optimum is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.experiment.clairvoyant import Clairvoyant
from loratory.experiment.policy_spec import policy_factory, policy_names
from loratory.testing import EngineConfig, Run, ToyCost, World, adapter, assert_laws, run, workload, worlds

SHIPPED = [name for name in policy_names() if name != "deadline"]


def clairvoyant(world: World) -> Clairvoyant:
    return Clairvoyant(world.workload, world.cost, world.config)


def mean_e2e(done: Run) -> float:
    arrival = done.world.workload.arrival
    return float(np.mean([end.now - arrival[int(name)] for name, end in done.ended.items()]))


@given(worlds())
def test_it_keeps_every_law(world: World) -> None:
    assert_laws(lambda: clairvoyant(world), world)


@given(worlds(concurrency=3, turns=False))
def test_it_keeps_every_law_in_a_closed_loop(world: World) -> None:
    assert_laws(lambda: clairvoyant(world), world)


@given(worlds(fits=True, turns=False, most=12))
def test_it_serves_on_several_replicas(world: World) -> None:
    done = run(world, lambda: clairvoyant(world), replicas=2, router="round_robin")
    assert all(end.status == "completed" for end in done.ended.values())


@given(worlds(most=12))
def test_it_uses_nothing_but_what_it_was_given(world: World) -> None:
    """Priorities, deadlines, predictions and tenants are not the future: its decisions do not change with them."""
    work = world.workload
    count = len(work)
    other = replace(
        work,
        tenant=np.zeros(count, np.int64),
        priority=np.arange(count)[::-1].copy(),
        predicted_tokens=np.full(count, 7),
        deadline=np.full(count, np.inf),
    )
    same = replace(world, workload=other)
    assert run(world, lambda: clairvoyant(world)).decisions == run(same, lambda: clairvoyant(same)).decisions


SIZES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(1, 3)), min_size=1, max_size=10)


@settings(max_examples=40)
@given(SIZES)
def test_alone_on_the_server_shortest_first_is_optimal(sizes: list[tuple[int, int, int]]) -> None:
    """One request at a time, all there at once, loads that take no time: SPT has the least mean E2E (Smith 1956)."""
    adapters = tuple(adapter(n, size=0) for n in (1, 2, 3))
    rows = [{"at": 0.0, "prompt": p, "out": out, "adapter": n} for p, out, n in sizes]
    config = EngineConfig(max_num_seqs=1, num_gpu_blocks=200, max_loras=3, max_num_batched_tokens=200)
    world = World(workload(rows, adapters), adapters, config, ToyCost(load_s=0.0))
    least = mean_e2e(run(world, lambda: clairvoyant(world), check_books=False))
    for name in SHIPPED:
        found = mean_e2e(run(world, policy_factory(name), check_books=False))
        assert least <= found + 1e-9, name


def fewest_loads(uses: Sequence[int], slots: int) -> int:
    """The fewest loads with which a cache of ``slots`` serves these uses in order, tried in every way."""

    @cache
    def rest(place: int, held: frozenset[int]) -> int:
        if place == len(uses):
            return 0
        use = uses[place]
        if use in held:
            return rest(place + 1, held)
        if len(held) < slots:
            return 1 + rest(place + 1, held | {use})
        return 1 + min(rest(place + 1, held - {out} | {use}) for out in held)

    return rest(0, frozenset())


@settings(max_examples=60)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=16), st.integers(1, 4), st.sampled_from([None, 1]))
def test_one_at_a_time_it_loads_as_often_as_beladys_min(uses: list[int], slots: int, clients: int | None) -> None:
    adapters = tuple(adapter(n, tier="host") for n in range(1, 7))
    rows = [{"at": 10.0 * place, "prompt": 3, "out": 2, "adapter": n} for place, n in enumerate(uses)]
    config = EngineConfig(max_num_seqs=1, num_gpu_blocks=50, max_loras=slots, max_cpu_loras=6)
    world = World(workload(rows, adapters, concurrency=clients), adapters, config, ToyCost())
    done = run(world, lambda: clairvoyant(world))
    assert len(done.of("LoadStarted")) == fewest_loads(uses, slots)


def test_cost_weighs_in_what_is_evicted() -> None:
    """Next uses 40 and 50 s away, but the second reload takes ten times as long: the first one goes."""
    adapters = (adapter(1, size=10, tier="host"), adapter(2, size=1000, tier="host"), adapter(3, tier="host"))
    rows = [{"at": 10.0 * n, "adapter": a, "prompt": 2, "out": 2} for n, a in enumerate((1, 2, 3, 3, 3, 3, 1, 2))]
    config = EngineConfig(max_num_seqs=1, num_gpu_blocks=50, max_loras=2, max_cpu_loras=3)
    world = World(workload(rows, adapters), adapters, config, ToyCost())
    evicted = [event[2] for event in run(world, lambda: clairvoyant(world)).of("Evicted")]
    assert evicted[0] == "a1"


@pytest.mark.parametrize("size", [10, 1000])
def test_the_request_with_the_most_left_gives_way(size: int) -> None:
    rows = [{"at": 0.0, "prompt": 20, "out": out} for out in (30, 60, 25)]
    config = EngineConfig(num_gpu_blocks=9, block_size=10, max_loras=1, max_num_seqs=4, max_num_batched_tokens=size)
    world = World(workload(rows), (), config, ToyCost())
    preempted = [event[2] for event in run(world, lambda: clairvoyant(world)).of("Preempted")]
    assert preempted and preempted[0] == "1"
