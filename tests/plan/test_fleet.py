"""The fleet that a plan finds, against all fleets of its space simulated one by one."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_plan import small

from loratory.errors import InputError
from loratory.experiment.resolve import build
from loratory.plan.evaluate import Evaluation, evaluate
from loratory.plan.measure import targets_of
from loratory.plan.run import plan_scenario
from loratory.plan.space import Base
from loratory.plan.verdict import judge


def brute(base: Base, replicas: list[int], slots: list[int], policies: list[str], seeds: list[int]) -> dict[Any, str]:
    """The verdict of every fleet, each run in full, with as many seeds as a plan would use at most."""
    found = {}
    for count, each, policy in product(replicas, slots, policies):
        candidate = base.candidate({"engine.max_loras": each, "policy": policy, "cluster.replicas": count})
        runs = [evaluate(Evaluation(candidate.scenario, policy, seed, stop_early=False)) for seed in seeds]
        targets = targets_of(candidate.scenario, build(candidate.scenario))
        found[count, each, policy] = judge(runs[:3], targets).verdict
        if found[count, each, policy] == "too_close":
            found[count, each, policy] = judge(runs, targets).verdict
    return found


@pytest.mark.parametrize("rate, limit", [(6.0, 0.3), (12.0, 0.6), (18.0, 0.4)])
def test_the_cheapest_fleet_is_that_of_brute_force(rate: float, limit: float) -> None:
    slots, policies, seeds = [1, 2, 4], ["fifo", "affinity"], [0, 1, 2, 3, 4, 5]
    base = small(
        workload={"arrivals": {"poisson": rate}, "requests": 100},
        slo={"ttft_p95_s": limit},
        plan={"space": {"engine.max_loras": slots, "policy": policies}, "seeds": {"first": 3, "most": 6}},
    )
    every = brute(base, [1, 2, 3, 4, 5], slots, policies, seeds)
    least = min((key[0] for key, verdict in every.items() if verdict == "met"), default=None)
    found = plan_scenario(base)
    if least is None:
        assert found["verdict"] != "met" and found["best"] is None
        return
    assert found["verdict"] == "met"
    best = found["best"]
    assert best["replicas"] == best["gpus"] == least
    assert every[least, best["engine"]["max_loras"], best["policy"]] == "met"


@settings(max_examples=6, deadline=None)
@given(st.floats(4, 40), st.floats(0.05, 2.0), st.sampled_from(["ttft_p95_s", "e2e_p90_s", "ttft_p50_s"]))
def test_discarding_never_changes_the_answer(rate: float, limit: float, target: str) -> None:
    base = small(
        workload={"arrivals": {"poisson": rate}, "requests": 60},
        slo={"_replace": True, target: limit},
        plan={"replicas": [1, 2, 3], "space": {"engine.max_loras": [1, 4]}, "seeds": {"first": 2, "most": 4}},
    )
    with_bounds, without = plan_scenario(base), plan_scenario(base, discard=False)
    assert with_bounds["verdict"] == without["verdict"]
    assert with_bounds["best"] == without["best"] or (
        {**with_bounds["best"], "candidate": 0} == {**without["best"], "candidate": 0}
    )


def test_prices_choose_among_gpu_types() -> None:
    """The cheaper card wins where a card of each kind is as fast, as it is with a linear cost model."""
    prices = {"h100-80gb": 3.0, "a100-80gb": 2.0}
    base = small(plan={"space": {"gpu": list(prices), "engine.max_loras": [4]}, "prices": prices, "currency": "EUR"})
    found = plan_scenario(base)
    assert found["best"]["gpu"] == "a100-80gb"
    assert found["best"]["price_per_hour"] == 2.0 * found["best"]["replicas"]
    assert f"{found['best']['price_per_hour']:.2f} EUR an hour" in found["answer"]


def test_a_budget_that_is_too_small_is_named() -> None:
    base = small(
        workload={"arrivals": {"poisson": 40.0}},
        plan={"space": {"engine.max_loras": [4]}, "prices": {"h100-80gb": 3.0}, "budget": {"price_per_hour": 3.5}},
    )
    found = plan_scenario(base)
    assert found["verdict"] == "missed" and found["feasible"] is False and found["best"] is None
    assert "price_per_hour 3.5" in found["binding"]


def test_an_slo_that_an_idle_engine_misses_is_named_and_not_simulated() -> None:
    found = plan_scenario(small(slo={"ttft_p95_s": 0.005}))
    assert found["verdict"] == "missed" and found["runs"] == 0
    assert "idle h100-80gb" in found["binding"]


def test_the_worst_adapter_decides() -> None:
    """A limit on each adapter's slowest request needs a larger fleet than the same limit on the median of all."""
    space = {"space": {"engine.max_loras": [1]}, "replicas": {"most": 8}}
    each = {"metric": "ttft", "mark": "max", "at_most_s": 1.0, "adapters": "each"}
    overall = plan_scenario(small(plan=space, slo={"_replace": True, "ttft_p50_s": 1.0}))
    worst = plan_scenario(small(plan=space, slo={"_replace": True, "targets": [each]}))
    assert overall["verdict"] == "met"
    assert worst["best"] is None or worst["best"]["replicas"] > overall["best"]["replicas"]


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"slo": {"_replace": True}}, "needs an SLO"),
        ({"plan": {"space": {"engine.max_lora": [4]}}}, "unknown key"),
        ({"plan": {"space": {"policy": ["fifoo"]}}}, "fifo"),
        ({"plan": {"space": {"router": ["nearest"]}}}, "nearest"),
        ({"plan": {"space": {"gpu": ["h1000"]}}}, "h100"),
        ({"plan": {"space": {"gpu": ["h100-80gb", "l4"]}}}, "no price"),
        ({"plan": {"space": {"engine.max_loras": ["many"]}}}, "plan.space.engine.max_loras"),
        (
            {"plan": {"space": {"engine.max_loras": list(range(1, 9)), "engine.max_num_seqs": list(range(1, 60))}}},
            "472",
        ),
    ],
)
def test_a_space_that_cannot_be_is_refused_in_one_sentence(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError) as error:
        plan_scenario(small(**changes))
    assert why in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "plan, why",
    [
        ({"space": {"engine.max_loras": []}}, "has no values"),
        ({"space": {"replicas": [1]}}, "plan.replicas"),
        ({"replicas": {"least": 4, "most": 2}}, "below least"),
        ({"ask": "capacity"}, "cluster.replicas"),
        ({"budget": {"price_per_hour": 3}}, "prices"),
        ({"goal": "ttft_p99_s"}, "settings"),
        ({"grow": "adapters"}, "capacity"),
        ({"seeds": {"first": 4, "most": 2}}, "below first"),
        ({"budget": {"gpus": True}}, "not true"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(plan: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError) as error:
        small(plan=plan)
    assert why in str(error.value) and "small.yaml" in str(error.value)
