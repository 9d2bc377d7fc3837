"""Analytic twins: closed forms that share no code with the engine, against simulated runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run
from roster import POLICIES

from loratory.experiment.resolve import build
from loratory.experiment.run import run_scenario
from loratory.reports import Recorder
from loratory.reports.stats import student_t
from loratory.reports.tables import floats
from loratory.scenarios.build import build_workload
from loratory.scenarios.load import load_text
from loratory.scenarios.schema import Scenario
from loratory.serving.config import EngineConfig
from loratory.serving.events import Arrived, Ended, Stepped
from loratory.sim.analytic import che_hit_rate, distinct_adapters, md1_wait_s, mean_in_system, zipf
from loratory.sim.cluster import simulate
from loratory.testing import Run, ToyCost, World, adapter, workload, worlds

TEXT = """\
name: twin
model: llama-2-7b
gpu: a10g
engine: {max_loras: 8, max_cpu_loras: 200, max_num_seqs: 8, max_num_batched_tokens: 8192, num_gpu_blocks: 4000}
cost:
  {kind: linear, decode_base_s: 0.001, decode_per_seq_s: 0, decode_per_kv_token_s: 0, prefill_base_s: 0.001,
   prefill_per_token_s: 0, load_base_s: 0.0005}
adapters: {count: 100, ranks: 8, popularity: {zipf: 1.0}, initial_tier: host}
workload: {arrivals: {poisson: 10}, input_tokens: 8, output_tokens: 1, max_tokens: exact, requests: 12000}
"""
"""Requests of one token each, so far apart that they hardly ever meet: references pin nothing."""


def scenario(*changes: str) -> Scenario:
    return load_text(TEXT, "twin", None, changes)


def tables(chosen: Scenario, policy: Any) -> Any:
    """Records of one run."""
    built = build(chosen)
    with Recorder() as recorder:
        simulate(
            build_workload(chosen, chosen.seeds[0], built.adapters),
            adapters=built.adapters,
            config=built.engine,
            policy=policy,
            cost=built.cost,
            sink=recorder.sink,
        )
    return recorder.close()


# -- the LRU cache of adapters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "slots", "exponent"), [(100, 8, 1.0), (100, 32, 1.0), (200, 16, 1.4), (50, 10, 0.6), (30, 4, 0.0)]
)
def test_the_adapter_hit_rate_is_che_s(count: int, slots: int, exponent: float) -> None:
    """Within 0.02 at steady state."""
    popularity = f"{{zipf: {exponent}}}" if exponent else "uniform"
    keys = (f"adapters.count={count}", f"engine.max_loras={slots}", f"adapters.popularity={popularity}")
    (found,) = run_scenario(scenario(*keys, "warmup_s=200"), decisions=False)["runs"]
    expected = che_hit_rate(zipf(count, exponent), slots)
    assert found["adapters"]["hit_rate"] == pytest.approx(expected, abs=0.02)
    assert 0.1 < expected < 0.95


def test_che_at_its_ends() -> None:
    assert che_hit_rate(zipf(8, 1.0), 8) == 1.0 and che_hit_rate(zipf(8, 1.0), 0) == 0.0
    rates = [che_hit_rate(zipf(100, 1.0), slots) for slots in range(1, 100)]
    assert rates == sorted(rates) and rates[-1] < 1.0
    assert che_hit_rate(np.array([0.5, 0.5, 0.0]), 2) == 1.0
    assert che_hit_rate(zipf(1000, 0.0), 250) == pytest.approx(0.25)


# -- distinct adapters in a batch ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "exponent"), [(4, 1.0), (16, 1.0), (16, 0.0), (48, 1.6)])
def test_distinct_adapters_in_a_batch(batch: int, exponent: float) -> None:
    """Groups of equal requests that arrive, start and end together, each drawing its adapter."""
    popularity, groups = zipf(60, exponent), 500
    drawn = np.random.default_rng(1).choice(60, size=groups * batch, p=popularity)
    rows = [{"at": float(n // batch), "adapter": int(a) + 1, "prompt": 2, "out": 2} for n, a in enumerate(drawn)]
    adapters = tuple(adapter(number) for number in range(1, 61))
    config = EngineConfig(max_loras=60, max_num_seqs=batch, num_gpu_blocks=1000, adapter_loading="sync")
    (events,) = run(World(workload(rows, adapters), adapters, config, ToyCost()), "fifo", check_books=False).events
    shapes = [event.shape for event in events if isinstance(event, Stepped)]
    seen = np.array([shape.distinct_adapters for shape in shapes if shape.decode_seqs == batch])
    expected = distinct_adapters(zipf(60, exponent), batch)
    error = seen.std(ddof=1) / math.sqrt(len(seen))
    assert len(seen) == groups and abs(seen.mean() - expected) < 3 * error
    assert error < 0.02 * expected


def test_distinct_adapters_at_its_ends() -> None:
    assert distinct_adapters(zipf(9, 1.0), 0) == 0.0
    assert distinct_adapters(zipf(9, 1.0), 1) == pytest.approx(1.0)
    assert distinct_adapters(zipf(9, 1.0), 10_000) == pytest.approx(9.0)
    assert distinct_adapters(np.array([1.0]), 5) == 1.0


# -- Little's law ----------------------------------------------------------------------------------------------------


def in_system_by_steps(events: Iterable[Any]) -> float:
    """Request seconds by the engine's counts: those waiting and running when a step was planned, times its length."""
    return sum((e.waiting + e.running) * (e.end - e.start) for e in events if isinstance(e, Stepped))


def in_system_by_requests(events: list[Any]) -> float:
    """Request seconds by each request's own times: of the steps planned between its arrival and its end.

    A turn that follows the one before at once comes after the step planned at that second: it counts from when the
    engine took it in.
    """
    taken = {e.request.request_id: e.now for e in events if isinstance(e, Arrived)}
    steps = [(e.start, e.end) for e in events if isinstance(e, Stepped)]
    starts, ends = np.array([s for s, _ in steps]), np.array([e for _, e in steps])
    below = np.concatenate(([0.0], np.cumsum(ends - starts)))
    total = 0.0
    for event in events:
        if isinstance(event, Ended):
            first = np.searchsorted(starts, taken[event.request.request_id], side="left")
            last = np.searchsorted(ends, event.now, side="right")
            total += float(below[max(last, first)] - below[first])
    return total


@pytest.mark.parametrize("policy", POLICIES)
@examples(15)
@given(world=worlds(), options=st.sampled_from([{}, {}, {"replicas": 2, "router": "least_loaded"}, {"cutoff_s": 0.3}]))
def test_little_s_law_holds_on_every_run(policy: str, world: World, options: dict[str, Any]) -> None:
    """The integral of the number in the system is the sum of the times in it, over the seconds the engine worked.

    One side comes from the steps' counts, the other from the requests' times; dividing both by the length of the run
    gives L = lambda W.
    """
    result: Run = run(world, policy, check_books=False, **options)
    for events in result.events:
        assert in_system_by_steps(events) == pytest.approx(in_system_by_requests(events), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("policy", ["fifo", "affine_deficit", "drain"])
def test_little_s_law_at_steady_state(policy: str) -> None:
    """Mean number in the system, by steps.parquet, is throughput times mean time in it, by requests.parquet."""
    chosen = scenario(
        "workload.arrivals={poisson: 40}",
        "workload.output_tokens={lognormal: {mean: 50, cv: 1}}",
        "workload.requests=6000",
        "cost.decode_per_seq_s=0.001",
        "cost.prefill_per_token_s=0.0005",
    )
    records = tables(chosen, POLICIES[policy])
    steps, requests = records.steps.read(), records.requests.read()
    length = floats(steps, "end") - floats(steps, "start")
    duration = float(floats(requests, "finish").max())
    by_steps = float(length @ (floats(steps, "waiting") + floats(steps, "running"))) / duration
    times = floats(requests, "finish") - floats(requests, "arrival")
    by_requests = mean_in_system(len(times) / duration, float(times.mean()))
    assert by_requests > 2
    assert by_steps == pytest.approx(by_requests, rel=0.03)
    assert by_steps < by_requests  # an arrival is counted from the next step on


# -- one server ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_sequence_at_a_time_waits_as_m_d_1(load: float) -> None:
    """max_num_seqs 1, equal requests of 10 steps of 1 ms: the mean wait is in the 99 % interval over ten seeds."""
    chosen = scenario(
        "engine.max_num_seqs=1",
        "adapters={count: 0}",
        "workload.output_tokens=10",
        f"workload.arrivals={{poisson: {load * 100}}}",
        "workload.requests=4000",
        "seeds=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]",
        "warmup_s=2",
    )
    waits = [found["queue_s"]["mean"] for found in run_scenario(chosen, decisions=False)["runs"]]
    half = student_t(len(waits) - 1, 0.99) * float(np.std(waits, ddof=1)) / math.sqrt(len(waits))
    expected = md1_wait_s(load * 100, 0.01)
    assert abs(float(np.mean(waits)) - expected) < half < 0.15 * expected


def test_m_d_1_at_its_ends() -> None:
    assert md1_wait_s(0.0, 1.0) == 0.0 and md1_wait_s(1.0, 1.0) == math.inf
    assert md1_wait_s(0.5, 1.0) == pytest.approx(0.5)
