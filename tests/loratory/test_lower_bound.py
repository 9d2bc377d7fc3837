"""The lower bound is below what any policy does, and is met where a request has the engine for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.experiment.clairvoyant import Clairvoyant
from loratory.experiment.lower_bound import decode_alone_s, lower_bound, mean_flow_s, prefill_alone_s, token_seconds
from loratory.experiment.policy_spec import policy_factory, policy_names
from loratory.reports.metrics import run_object
from loratory.reports.recorder import Recorder
from loratory.reports.run_columns import RunColumns
from loratory.reports.run_info import RunInfo
from loratory.serving.plan import BatchShape
from loratory.serving.policy import PolicyLike
from loratory.sim.cluster import simulate
from loratory.testing import EngineConfig, ToyCost, World, adapter, workload, worlds

POLICIES = [*policy_names(), "clairvoyant"]


def measured(world: World, policy: Callable[[], PolicyLike], replicas: int = 1) -> RunColumns:
    with Recorder(None) as recorder:
        end = simulate(
            world.workload,
            adapters=world.adapters,
            config=world.config,
            policy=policy,
            cost=world.cost,
            replicas=replicas,
            sink=recorder.sink,
            kv_bytes_per_token=world.kv_bytes_per_token,
        )
        return RunColumns(RunInfo("toy", "toy", replicas=replicas, duration_s=end.end_s), recorder.close())


def bound_of(world: World, run: RunColumns) -> dict[str, Any]:
    open_loop = world.workload.concurrency is None and world.workload.after is None
    return lower_bound(run, world.cost, world.config, world.adapters, open_loop)


@settings(max_examples=60)
@given(worlds(), st.sampled_from(POLICIES), st.sampled_from([1, 1, 2]))
def test_no_policy_is_below_it(world: World, name: str, replicas: int) -> None:
    if name == "clairvoyant":
        run = measured(world, lambda: Clairvoyant(world.workload, world.cost, world.config), replicas)
    else:
        run = measured(world, policy_factory(name), replicas)
    found, bound = run_object(run), bound_of(world, run)
    for group, values in bound.items():
        for mark, least in values.items():
            assert least <= found[group][mark] * (1 + 1e-9) + 1e-12, (group, mark)


@pytest.mark.parametrize("cached", [0, 30])
@pytest.mark.parametrize("line", [True, False])
def test_a_request_alone_meets_it(cached: int, line: bool) -> None:
    adapters = (adapter(1),)
    rows = [{"at": 100.0 * n, "prompt": 90, "cached": cached, "out": 40, "adapter": 1} for n in range(3)]
    config = EngineConfig(num_gpu_blocks=100, max_loras=1, max_num_batched_tokens=256)
    world = World(workload(rows, adapters), adapters, config, ToyCost(load_s=0.0, line=line))
    run = measured(world, policy_factory("fifo"))
    bound = bound_of(world, run)
    assert run.ttft[1:].mean() == pytest.approx(bound["ttft_s"]["mean"], rel=0.02)
    if line:
        assert run.e2e[1:].mean() == pytest.approx(bound["e2e_s"]["mean"], rel=0.02)
    assert bound["adapters"] == {"loads": 1}


def test_a_queue_raises_it_above_the_times_alone() -> None:
    rows = [{"at": 0.0, "prompt": 100, "out": 1} for _ in range(50)]
    config = EngineConfig(num_gpu_blocks=500, max_loras=1, max_num_seqs=8, max_num_batched_tokens=128)
    world = World(workload(rows), (), config, ToyCost())
    run = measured(world, policy_factory("fifo"))
    columns = np.full(50, 100), np.zeros(50, np.int64), np.zeros(50, np.int64)
    alone = float(prefill_alone_s(world.cost, *columns, budget=128).mean())
    bound = bound_of(world, run)["ttft_s"]["mean"]
    assert 10 * alone < bound <= run.ttft.mean()
    assert bound > 0.8 * run.ttft.mean()


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), min_size=1, max_size=6))
def test_mean_flow_is_that_of_the_best_preemptive_schedule(jobs: list[tuple[int, int]]) -> None:
    """In whole seconds a preemptive schedule may switch at each second; the best priority order is the best of all."""
    arrival, work = zip(*jobs, strict=True)
    best = min(_flow(arrival, work, order) for order in permutations(range(len(jobs))))
    assert mean_flow_s(arrival, work) <= best + 1e-9
    assert mean_flow_s(arrival, work) >= float(np.mean(work)) - 1e-9


def _flow(arrival: Sequence[int], work: Sequence[int], order: Sequence[int]) -> float:
    """Mean flow where the first job of an order that is there and not done has the server, second by second."""
    left, ends, now = [*work], [0] * len(work), 0
    while any(left):
        there = [job for job in order if left[job] and arrival[job] <= now]
        now += 1
        if there:
            left[there[0]] -= 1
            if not left[there[0]]:
                ends[there[0]] = now
    return float(np.mean([end - at for end, at in zip(ends, arrival, strict=True)]))


@given(
    st.integers(1, 300),
    st.integers(1, 60),
    st.floats(0, 1e5),
    st.floats(0, 1e5),
    st.sampled_from([0.0, 0.03]),
    st.data(),
)
def test_token_seconds_are_below_every_step(
    tokens: int, seqs: int, prefill: float, decode: float, floor: float, data: st.DataObject
) -> None:
    cost = ToyCost(floor_s=floor)
    a, b = token_seconds(cost, tokens, seqs, prefill, decode)
    assert a >= 0 and b >= 0
    decodes = data.draw(st.integers(0, min(seqs, tokens)))
    fresh = data.draw(st.integers(0, tokens - decodes))
    shape = BatchShape(fresh, float(fresh), min(fresh, 1), decodes, decodes)
    assert a * fresh + b * decodes <= cost.step_seconds(shape) * (1 + 1e-9)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.sampled_from([0, 8]), st.integers(10, 40))
def test_no_split_of_a_prompt_is_faster(chunks: list[int], rank: int, budget: int) -> None:
    cost = ToyCost()
    chunks = [min(chunk, budget) for chunk in chunks]
    total, done = 0.0, 0
    for chunk in chunks:
        lora = (1, rank, rank, chunk, chunk * rank) if rank else (0, 0, 0, 0, 0)
        total += cost.step_seconds(BatchShape(chunk, chunk * (done + (chunk + 1) / 2), 1, 0, 0, *lora))
        done += chunk
    (least,) = prefill_alone_s(cost, np.array([done]), np.array([0]), np.array([rank]), budget)
    assert least <= total * (1 + 1e-9)


@given(st.integers(1, 500), st.integers(0, 200), st.sampled_from([0.0, 0.02, 0.5]), st.sampled_from([0, 16]))
def test_decode_seconds_are_the_sum_of_the_steps(prompt: int, steps: int, floor: float, rank: int) -> None:
    cost = ToyCost(floor_s=floor)
    lora = (1, rank, rank, 1, rank) if rank else (0, 0, 0, 0, 0)
    every = [cost.step_seconds(BatchShape(0, 0.0, 0, 1, prompt + n, *lora)) for n in range(steps)]
    (found,) = decode_alone_s(cost, np.array([prompt]), np.array([steps]), np.array([rank]))
    assert found == pytest.approx(sum(every), rel=1e-9)
