"""vLLM 0.32 on a CPU: the replay is exact, `near` is predicted from `below`, and the shipped profile is the fit's."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from loratory.reproduce import Reproduction, reproduce
from loratory.reproduce.cases import Case, run_case
from loratory.reproduce.fit.vllm032 import Shipped, fitted, measured_steps
from loratory.reproduce.vllm032 import composition, step_ending_at
from loratory.reproduce.vllm032_runs import RUNS, RunName, recorded, replayed
from loratory.scenarios.load import load_scenario
from loratory.serving.plan import BatchShape
from loratory.sim.cost.profile import ProfileCost, load_profile


@pytest.fixture(scope="module")
def found() -> Reproduction:
    return reproduce("vllm032")


LIMITS = {"TTFT mean": 0.05, "E2E mean": 0.05, "TTFT P95": 0.10, "E2E P95": 0.10}
"""Issue 3, item 5 (b)."""


@pytest.mark.parametrize("metric", LIMITS)
def test_near_is_predicted_from_below(found: Reproduction, metric: str) -> None:
    (check,) = [c for c in found.checks if c.what == f"near, fitted step times: error of {metric}"]
    assert check.limit == LIMITS[metric] and check.holds, check


def test_every_check_of_the_replay_is_exact(found: Reproduction) -> None:
    checks = [c for c in found.checks if c.what.startswith("replay")]
    assert len(checks) == 8
    assert all(check.limit == 0 and check.value == 0 for check in checks), checks
    assert found.holds and len(checks) + len(LIMITS) == len(found.checks)


@pytest.mark.parametrize("name", RUNS)
def test_vllm_and_our_engine_compute_the_same_in_every_step(name: RunName) -> None:
    run = recorded(name)
    played, unfinished = replayed(run)
    assert unfinished == 0
    assert [composition(step) for step in played] == list(run.compositions)


@pytest.mark.parametrize("name", RUNS)
def test_tokens_are_seen_at_the_end_of_a_step(name: RunName) -> None:
    """So there is no front end to model on the way out: first_token_s and finish_s are ends of steps to 2 us."""
    run = recorded(name)
    for seconds in (run.first_token_s, run.finish_s):
        assert None not in step_ending_at(run.recording.steps, seconds)


@pytest.mark.parametrize("name", get_args(Shipped))
def test_the_fit_writes_the_profiles_that_are_shipped(name: Shipped) -> None:
    fit = fitted(name)
    shipped = load_profile(name)
    assert fit.profile.coefficients == pytest.approx(shipped.coefficients, rel=1e-5)
    assert fit.profile.load.fixed_s == pytest.approx(shipped.load.fixed_s, rel=1e-5)
    found, written = fit.profile.residuals, shipped.residuals
    assert found is not None and written is not None
    assert found.decode == pytest.approx(written.decode, rel=2e-3)
    assert found.prefill == pytest.approx(written.prefill, rel=2e-3)
    told = {"coefficients", "held_out", "load", "residuals"}
    assert fit.profile.model_dump(exclude=told) == shipped.model_dump(exclude=told)
    users = {"vllm-0.32-cpu-56m-below": ("-below", "-near"), "vllm-0.32-cpu-56m": ("",)}[name]
    for scenario in (load_scenario(f"published/vllm032-cpu{user}") for user in users):
        assert scenario.cost.profile == name  # type: ignore[union-attr]
        assert scenario.tiers.disk_latency_s == pytest.approx(fit.disk_s, rel=1e-5)


def test_the_profile_for_users_is_concave_in_the_batch_and_knows_both_runs() -> None:
    """Each further sequence costs no more than the one before, and never nothing, also beyond the measured 15."""
    profile = load_profile("vllm-0.32-cpu-56m")
    assert profile.ranges["decode_seqs"] == 15 and profile.samples == 4558
    cost = ProfileCost(profile)
    seconds = [cost.step_seconds(BatchShape(decode_seqs=n, kv_tokens=40 * n)) for n in range(1, 64)]
    steps = np.diff(seconds)
    assert (np.diff(steps) < 1e-12).all() and steps[-1] > 5e-4 and steps[0] > 1.3 * steps[-1]


def test_what_near_measured_lies_in_the_range_of_the_residuals_of_below() -> None:
    """TTFT and E2E, mean and P95, of a run that the profile does not know; without noise each is a single number."""
    run = recorded("near")
    case = Case("published/vllm032-cpu-near", ("cost.noise=residuals", f"seeds={list(range(20))}"))
    found = run_case(case)
    for metric, measured in (("ttft_s", run.ttft_s), ("e2e_s", run.e2e_s)):
        for mark, value in (("mean", np.mean(measured)), ("p95", np.percentile(measured, 95))):
            values = [each[metric][mark] for each in found]
            assert min(values) < value < max(values), (metric, mark)
            assert max(values) < 1.2 * min(values)


def test_step_seconds_cover_the_whole_of_a_busy_run() -> None:
    """Steps and what vLLM does between them: nothing of the time in which requests were there is left out."""
    run = recorded("near")
    steps = measured_steps(run)
    idle = run.arrival_s[0]
    assert sum(step.seconds for step in steps) == pytest.approx(run.recording.steps[-1].end_s - idle, rel=1e-9)
    assert sum(step.from_disk for step in steps) == 8


def test_more_adapters_than_places_load_from_disk() -> None:
    """Adapter churn costs time: what the kept-aside runs vary is a key of the scenario."""
    short = ("workload.duration_s=20", "seeds=[0]")
    calm = run_case(Case("published/vllm032-cpu", short))[0]
    churn = ("adapters.count=24", "engine.max_loras=2", "engine.max_cpu_loras=2", "adapters.popularity=uniform")
    busy = run_case(Case("published/vllm032-cpu", (*short, *churn)))[0]
    assert busy["ttft_s"]["mean"] > 3 * calm["ttft_s"]["mean"]
