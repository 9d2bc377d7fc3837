"""simulate: who counts as submitted at a cutoff, empty and odd workloads, links shared by loads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run
from roster import POLICIES

from loratory.serving.config import EngineConfig
from loratory.serving.sequence import sequence_of
from loratory.testing import ToyCost, World, adapter, assert_run, workload, worlds


@examples(60)
@given(
    world=worlds(),
    policy=st.sampled_from(sorted(POLICIES)),
    replicas=st.sampled_from([1, 2]),
    cutoff_s=st.sampled_from([0.00113, 0.0321, 0.077, 0.3001]),
    jump=st.booleans(),
)
def test_whoever_arrived_before_the_cutoff_was_submitted(
    world: World, policy: str, replicas: int, cutoff_s: float, jump: bool
) -> None:
    result = run(world, policy, cutoff_s=cutoff_s, replicas=replicas, jump=jump)
    assert_run(result, everything_sent=False)
    outcome = result.outcome
    work = world.workload
    due = work.arrival.tolist()
    for turn, before in enumerate([] if work.after is None or work.delay_s is None else work.after.tolist()):
        if before >= 0:
            event = result.ended.get(str(before))
            over = event is not None and event.status != "aborted"
            due[turn] = event.now + work.delay_s[turn] if over else np.inf
    expected = int((np.array(due) <= cutoff_s).sum()) if outcome.cut_off else len(work)
    assert outcome.submitted == len(result.ended) == expected
    if outcome.cut_off:
        assert outcome.end_s == cutoff_s and outcome.never_served == 0
        assert all(event.now <= cutoff_s for event in result.ended.values())
        late = [event for event in result.ended.values() if event.status == "aborted"]
        assert all(event.why == f"the run was cut off at {cutoff_s:g} s" for event in late)


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
@pytest.mark.parametrize("concurrency", [1, 2, 3, 7])
def test_a_closed_loop_sends_each_request_once(replicas: int, concurrency: int) -> None:
    """Equal requests end at the same second on every replica."""
    rows = [{"prompt": 1, "out": 2}] * 10
    world = World(workload(rows, concurrency=concurrency), (), EngineConfig(num_gpu_blocks=9), ToyCost())
    result = run(world, "fifo", replicas=replicas)
    assert_run(result)
    assert result.outcome.submitted == 10


def test_an_empty_workload_is_over_at_once() -> None:
    world = World(workload([]), (), EngineConfig(num_gpu_blocks=9), ToyCost())
    outcome = run(world, "fifo").outcome
    assert (outcome.end_s, outcome.never_served, outcome.cut_off, outcome.submitted) == (0.0, 0, False, 0)


def test_all_may_arrive_at_once() -> None:
    rows = [{"at": 3.0, "prompt": 2, "out": 2, "adapter": n % 3 + 1} for n in range(50)]
    adapters = tuple(adapter(n) for n in (1, 2, 3))
    world = World(workload(rows, adapters), adapters, EngineConfig(num_gpu_blocks=40, max_loras=2), ToyCost())
    for policy in POLICIES:
        result = run(world, policy)
        assert_run(result)


def test_long_gaps_and_late_clocks_lose_no_time() -> None:
    """A month in, a step is still as long as at the start, to the last bit the clock has."""
    rows = [{"at": at, "prompt": 2, "out": 200} for at in (0.0, 3600.0, 2.6e6)]
    world = World(workload(rows), (), EngineConfig(num_gpu_blocks=40), ToyCost())
    ended = run(world, "fifo", check_books=False).ended
    spans = [ended[i].now - ended[i].request.arrival for i in "012"]
    assert np.allclose(spans, spans[0], rtol=1e-8)


@pytest.mark.parametrize("loading", ["sync", "async"])
def test_loads_take_turns_on_each_link(loading: str) -> None:
    """Three adapters from disk: storage 0.625 s each in turn, the GPU link 0.25 s, pipelined."""
    adapters = tuple(adapter(n) for n in (1, 2, 3))
    rows = [{"prompt": 1, "out": 1, "adapter": n} for n in (1, 2, 3)]
    config = EngineConfig(max_loras=3, num_gpu_blocks=99, adapter_loading=loading)
    result = run(World(workload(rows, adapters), adapters, config, ToyCost(grid=True)), "fifo")
    admitted = [sequence_of(result.ended[i].request).admitted_at for i in "012"]
    last = 3 * 0.625 + 0.25
    assert admitted == ([last] * 3 if loading == "sync" else [0.875, 1.5, last])


def test_a_prefetch_hides_the_disk() -> None:
    """One slot, busy for 2.5 s: meanwhile the look-ahead brings the next adapter to host memory."""
    adapters = tuple(adapter(n) for n in (1, 2))
    rows = [{"prompt": 1, "out": 20, "adapter": 1}, {"prompt": 1, "out": 1, "adapter": 2, "at": 1.0}]
    config = EngineConfig(max_loras=1, max_cpu_loras=2, num_gpu_blocks=99)
    world = World(workload(rows, adapters), adapters, config, ToyCost(grid=True))
    plain, ahead = (sequence_of(run(world, policy).ended["1"].request) for policy in ("fifo", "fifo-prefetch"))
    assert plain.first_token_at - ahead.first_token_at == 0.625
    assert ahead.first_token_at == 0.875 + 20 * 0.125 + 0.25 + 0.125


@examples(40)
@given(world=worlds(), policy=st.sampled_from(sorted(POLICIES)))
def test_a_lone_replica_behind_a_router_is_a_lone_replica(world: World, policy: str) -> None:
    """The short cut for one replica changes nothing: a second, unused one gives the same run."""
    from loratory.sim.routers.round_robin import RoundRobin

    class First(RoundRobin):
        def route(self, request, cluster):  # type: ignore[no-untyped-def]
            return 0

    alone = run(world, policy, check_books=False)
    paired = run(world, policy, replicas=2, router=First(), check_books=False)
    assert alone.decisions[0] == paired.decisions[0] and not paired.flat[1]
    assert sorted(alone.of("Ended")) == sorted(paired.of("Ended"))


@examples(30)
@given(world=worlds(turns=False), policy=st.sampled_from(sorted(POLICIES)))
def test_arrivals_at_one_time_are_taken_in_workload_order(world: World, policy: str) -> None:
    work = replace(world.workload, arrival=np.zeros(len(world.workload)))
    arrived = [event[2] for event in run(replace(world, workload=work), policy, check_books=False).of("Arrived")]
    assert arrived == [str(i) for i in range(len(work))]
