"""Runs that are stopped early: the full run misses the same targets."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from small_plan import small

from loratory.experiment.resolve import build
from loratory.plan.evaluate import Evaluation, evaluate
from loratory.plan.measure import targets_of

TARGETS: list[dict[str, Any]] = [
    {"ttft_p95_s": 0.3},
    {"ttft_p50_s": 0.2, "e2e_p90_s": 1.5},
    {"tpot_p99_s": 0.05, "ttft_p99_s": 1.0, "attainment": 0.9},
    {"targets": [{"metric": "ttft", "mark": "p90", "at_most_s": 0.4, "adapters": "each"}]},
    {"targets": [{"attainment": 0.95, "ttft_s": 0.5, "e2e_s": 2.0}]},
    {"targets": [{"metric": "e2e", "mark": "max", "at_most_s": 2.0, "adapters": ["adapter-000"]}]},
]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(TARGETS), st.floats(3, 40), st.integers(0, 5), st.integers(1, 4))
def test_a_run_that_is_stopped_would_have_missed_the_same(
    slo: dict[str, Any], rate: float, seed: int, slots: int
) -> None:
    base = small(
        slo={"_replace": True, **slo},
        workload={"arrivals": {"poisson": rate}, "requests": 60},
        engine={"max_loras": slots},
    )
    early = evaluate(Evaluation(base.scenario, "fifo", seed))
    full = evaluate(Evaluation(base.scenario, "fifo", seed, stop_early=False))
    targets = {target.name: target for target in targets_of(base.scenario, build(base.scenario))}
    if early.stopped:
        assert early.requests <= full.requests
        for name in early.missed:
            value = full.values[name]
            assert value is not None and not targets[name].met_by(value)
    else:
        assert early.values == full.values


def test_an_overload_is_stopped_long_before_its_end() -> None:
    base = small(workload={"arrivals": {"poisson": 100.0}, "requests": 400}, slo={"ttft_p95_s": 0.1})
    early = evaluate(Evaluation(base.scenario, "fifo", 0))
    assert early.missed == ("ttft_p95_s",) and early.requests < 100
