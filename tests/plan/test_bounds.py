"""Bounds: what they discard misses its SLO when it is simulated, and what they grant is never more than a run takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_plan import small

from loratory.experiment.resolve import build
from loratory.plan.bounds import hopeless, idle_seconds
from loratory.plan.evaluate import Evaluation, evaluate, workload_of
from loratory.plan.measure import targets_of
from loratory.plan.space import Base

ROOFLINE = {"cost": {"_replace": True, "kind": "roofline"}}


def bound_of(base: Base, seed: int = 0) -> Any:
    built = build(base.scenario)
    return hopeless(base.scenario, built, [workload_of(base.scenario, seed, built)])


@settings(max_examples=30, deadline=None)
@given(
    st.floats(2, 400),
    st.floats(0.005, 1.5),
    st.sampled_from(["ttft_p95_s", "e2e_p50_s", "ttft_p50_s", "tpot_p90_s"]),
    st.integers(1, 3),
    st.sampled_from(["host", "disk", "remote"]),
    st.booleans(),
)
def test_what_is_discarded_misses_the_target(
    rate: float, limit: float, target: str, replicas: int, tier: str, roofline: bool
) -> None:
    base = small(
        slo={"_replace": True, target: limit},
        workload={"arrivals": {"poisson": rate}, "requests": 80},
        adapters={"initial_tier": tier, "count": 8},
        engine={"max_cpu_loras": 8 if tier == "host" else 2},
        cluster={"replicas": replicas},
        **(ROOFLINE if roofline else {}),
    )
    bound = bound_of(base)
    if bound is None:
        return
    run = evaluate(Evaluation(base.scenario, "fifo", 0, stop_early=False))
    (found,) = targets_of(base.scenario, build(base.scenario))
    value = run.values[target]
    assert value is None or not found.met_by(value), bound


@pytest.mark.parametrize("policy", ["fifo", "affinity", "fair_share", "rotation"])
def test_no_request_is_faster_than_on_an_idle_engine(policy: str) -> None:
    base = small(workload={"requests": 80}, **ROOFLINE)
    built = build(base.scenario)
    alone = idle_seconds(built, workload_of(base.scenario, 0, built))
    run = evaluate(Evaluation(base.scenario, policy, 0, stop_early=False))
    for metric in ("ttft", "e2e"):
        assert float(np.mean(alone[metric])) <= (run.values[f"{metric}_mean_s"] or 0.0) * (1 + 1e-9)


@pytest.mark.parametrize(
    "changes, by",
    [
        ({"slo": {"ttft_p95_s": 0.001}}, "idle latency"),
        ({"workload": {"arrivals": {"poisson": 400.0}, "requests": 600}, "slo": {"ttft_p95_s": 0.3}}, "offered load"),
        (
            {
                "adapters": {"count": 400, "initial_tier": "disk", "popularity": {"uniform": True}},
                "engine": {"max_cpu_loras": 4},
                "tiers": {"disk_latency_s": 2.0},
                "workload": {"arrivals": {"poisson": 2.0}, "requests": 600},
                "slo": {"ttft_p95_s": 1.5},
            },
            "idle latency",
        ),
        (
            {
                "adapters": {"count": 20, "initial_tier": "disk", "popularity": {"uniform": True}},
                "engine": {"max_cpu_loras": 4},
                "tiers": {"disk_latency_s": 2.0},
                "workload": {"arrivals": {"poisson": 2.0}, "requests": 600},
                "slo": {"ttft_p95_s": 1.5},
            },
            "adapter reads",
        ),
    ],
)
def test_each_bound_bites(changes: dict[str, Any], by: str) -> None:
    base = small(**changes)
    bound = bound_of(base)
    assert bound is not None and bound.by == by
    run = evaluate(Evaluation(base.scenario, "fifo", 0))
    assert run.missed == ("ttft_p95_s",)


def test_noise_and_cut_runs_are_not_bounded() -> None:
    noisy = {"cost": {"noise": {"cv": 0.1}}, "slo": {"ttft_p95_s": 0.001}}
    assert bound_of(small(**noisy)) is None
    assert bound_of(small(workload={"cutoff_s": 5.0}, slo={"ttft_p95_s": 0.001})) is None
