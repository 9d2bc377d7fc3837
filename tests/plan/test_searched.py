"""searched: the setup of a plan tells of its answer, of all that it was chosen from, and of the seeds that ran."""

from __future__ import annotations

from typing import Any

import pytest
from small_plan import small

from loratory.plan.run import plan_scenario

ROOFLINE = {"_replace": True, "kind": "roofline"}


def made(**changes: Any) -> dict[str, Any]:
    return plan_scenario(small(cost=ROOFLINE, **changes))


def not_measured(found: dict[str, Any]) -> list[str]:
    return str(found["setup"]["known error"].partition("; not measured: ")[2]).split(", ")


@pytest.mark.parametrize("gpus", [["a100-80gb"], ["h100-80gb", "a100-80gb"]])
def test_the_known_error_is_of_every_gpu_that_was_tried(gpus: list[str]) -> None:
    prices = {"h100-80gb": 3.0, "a100-80gb": 1.0}
    found = made(plan={"space": {"gpu": gpus, "engine.max_loras": [4]}, "prices": prices, "seeds": {"most": 3}})
    assert found["best"]["gpu"] == "a100-80gb"
    assert set(not_measured(found)) == {"adapters on a100-80gb", "adapters under vLLM 0.32"}
    assert found["setup"]["GPU"].endswith("1 x a100-80gb") and "on a100-80gb" in found["setup"]["cost model"]


def test_a_plan_in_which_nothing_ran_names_the_gpu_that_a_bound_ruled_out() -> None:
    found = made(plan={"space": {"gpu": ["a100-80gb"]}}, slo={"_replace": True, "ttft_p95_s": 0.0001})
    assert found["runs"] == 0 and "adapters on a100-80gb" in not_measured(found)


def test_the_setup_is_the_answers_and_says_what_varied() -> None:
    prices = {"h100-80gb": 3.0, "a100-80gb": 2.9}
    space = {"gpu": list(prices), "engine.max_loras": [2, 4], "placement": [None, {"name": "greedy", "homes": 2}]}
    plan = {"space": space, "prices": prices, "mixed": True, "budget": {"gpus": 4}, "seeds": {"first": 2, "most": 4}}
    found = made(plan=plan)
    told = found["setup"]
    assert told["searched"] == (
        "gpu h100-80gb, a100-80gb; max_loras 2, 4; placement replicate_all, greedy (homes 2); 1 to 5 replicas, also "
        "of two GPU types, within the budget"
    )
    assert f"max_loras {found['best']['engine']['max_loras']}" in told["engine"]
    assert told["seeds"].startswith(", ".join(map(str, found["seeds"])) + "; warmup_s")


def test_seeds_beyond_the_first_are_said_to_be_of_open_verdicts() -> None:
    space = {"engine.max_loras": [2, 4]}
    plan = {"ask": "settings", "_replace": True, "space": space, "seeds": {"first": 2, "most": 4}, "details": False}
    found = plan_scenario(small(plan=plan, slo={"_replace": True, "ttft_p95_s": 1e-9}))
    assert found["setup"]["searched"] == "max_loras 2, 4"
    wanted = "; 2 of each candidate, and more while its verdict was open" if len(found["seeds"]) > 2 else ""
    assert found["setup"]["seeds"] == ", ".join(map(str, found["seeds"])) + f"; warmup_s 0{wanted}"


def test_the_load_of_the_setup_is_the_scenarios_and_not_the_answers() -> None:
    plan = {"ask": "capacity", "_replace": True, "space": {}, "seeds": {"first": 2, "most": 2}, "details": False}
    found = plan_scenario(small(plan=plan))
    assert found["best"]["load"] != 1.0
    assert found["setup"]["workload"].startswith("arrivals poisson 12,") and "searched" not in found["setup"]
