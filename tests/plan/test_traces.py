"""Fleets that are planned for other people's traces, and run again under seeds that the plan never saw.

On the files in ../shared/data; skipped where those are not.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from loratory.experiment.resolve import build
from loratory.plan.evaluate import Evaluation, evaluate
from loratory.plan.measure import targets_of
from loratory.plan.run import plan_scenario
from loratory.scenarios.load import load_scenario, load_text
from loratory.scenarios.schema import Scenario

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

FRESH = (101, 102, 103, 104, 105)
"""Seeds that no plan here uses: those use 0 to 5."""

TRACES: dict[str, dict[str, Any]] = {
    "AzureLLMInferenceTrace_code.csv": {
        "workload": {"window": [0, 900], "rate_scale": 2.0},
        "slo": {"ttft_p95_s": 10.0, "tpot_p99_s": 0.25},
    },
    "synthetic_trace.jsonl": {
        "workload": {"window": [0, 600]},
        "gpu": "h100-80gb",
        "slo": {"ttft_p95_s": 8.0, "e2e_p99_s": 40.0},
    },
    "servegen_deepseek-r1_h10_x0.3.csv": {
        "workload": {"window": [0, 200], "rate_scale": 2.0, "adapter_from": "popularity"},
        "gpu": "h100-80gb",
        "slots": [32, 48],
        "slo": {"ttft_p95_s": 2.0, "tpot_p99_s": 0.08},
    },
    "servegen_m-small_d0h10_x0.008.csv": {
        "workload": {"window": [0, 300], "rate_scale": 8.0, "adapter_from": "popularity"},
        "slo": {"ttft_p95_s": 1.0, "targets": [{"attainment": 0.95, "ttft_s": 1.0, "tpot_s": 0.08}]},
    },
}


def planned(name: str) -> Scenario:
    """A fleet for part of a trace: 48 adapters by popularity, two numbers of slots."""
    if not (DATA / name).exists():
        pytest.skip(f"../shared/data/{name} is not here")
    given = TRACES[name]
    scenario = {
        "name": "fleet-for-a-trace",
        "model": "llama-3.1-8b",
        "gpu": given.get("gpu", "a100-80gb"),
        "engine": {"max_loras": 8, "max_cpu_loras": 64, "max_lora_rank": 32},
        "adapters": {"count": 48, "ranks": [8, 16, 32], "popularity": {"zipf": 1.0}, "initial_tier": "host"},
        "workload": {"trace": str(DATA / name), **given["workload"]},
        "slo": given["slo"],
        "cluster": {"router": "least_loaded"},
        "plan": {
            "replicas": {"most": 12},
            "space": {"engine.max_loras": given.get("slots", [8, 16])},
            "seeds": {"first": 3, "most": 6},
            "details": False,
        },
    }
    return load_text(yaml.safe_dump(scenario), name)


def means(scenario: Scenario) -> dict[str, float]:
    """The value of each target, a mean over the fresh seeds, each run in full."""
    runs = [evaluate(Evaluation(scenario, scenario.policies[0], seed, stop_early=False)) for seed in FRESH]
    return {
        target.name: fmean(value for run in runs if (value := run.values[target.name]) is not None)
        for target in targets_of(scenario, build(scenario))
    }


@pytest.mark.parametrize("name", TRACES)
def test_the_fleet_meets_its_slo_under_fresh_seeds_and_one_replica_less_does_not(name: str, tmp_path: Path) -> None:
    scenario = planned(name)
    found = plan_scenario(scenario, tmp_path / "plan")
    assert found["verdict"] == "met" and not set(found["seeds"]) & set(FRESH)
    best = load_scenario(tmp_path / "plan" / "best.yaml")
    replicas = best.cluster.replicas
    assert replicas == found["best"]["replicas"] >= 2
    targets = targets_of(best, build(best))
    fewer = best.model_copy(update={"cluster": best.cluster.model_copy(update={"replicas": replicas - 1})})
    enough, less = means(best), means(fewer)
    print(f"{found['answer']} | fresh seeds: {replicas} {enough}, {replicas - 1} {less}")
    assert all(target.met_by(enough[target.name]) for target in targets)
    assert not all(target.met_by(less[target.name]) for target in targets)
