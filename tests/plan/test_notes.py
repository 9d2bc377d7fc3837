"""What a plan says besides its answer."""

from __future__ import annotations

from typing import Any

import pytest
from small_plan import small

from loratory.plan.run import plan_scenario


@pytest.mark.parametrize("slo, claim", [({}, "it is the best"), ({"ttft_p99_s": 1000.0}, "the SLO is met")])
def test_an_overload_that_never_settles_is_said_and_claims_an_slo_only_where_there_is_one(
    slo: dict[str, Any], claim: str
) -> None:
    base = small(
        workload={"arrivals": {"poisson": 60.0}, "requests": 400},
        slo={"_replace": True, **slo},
        plan={
            "_replace": True,
            "ask": "settings",
            "goal": "ttft_mean_s",
            "space": {"engine.max_loras": [2, 4]},
            "details": False,
        },
    )
    notes = [note for note in plan_scenario(base)["notes"] if "had not settled" in note]
    assert len(notes) == 1 and f"{claim} for this length of traffic" in notes[0]


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        (
            {"replicas": 2, "router": "round_robin", "metrics_delay_s": 1.0},
            "cluster.metrics_delay_s (1.0) has no effect, as round_robin does not look at what replicas report",
        ),
        ({"metrics_interval_s": 2.0}, "cluster.metrics_interval_s (2.0) has no effect, as there is one replica"),
        ({"placement": {"name": "greedy"}}, "cluster.placement has no effect, as there is one replica"),
        ({"replicas": 2, "router": "lora_affinity", "metrics_delay_s": 1.0}, None),
    ],
)
def test_what_has_no_effect_on_the_best_fleet_is_said(cluster: dict[str, Any], said: str | None) -> None:
    """The router is what a plan chooses, so that it says nothing of that."""
    plan = {"_replace": True, "ask": "settings", "goal": "ttft_mean_s", "details": False}
    base = small(cluster=cluster, plan={**plan, "space": {"engine.max_loras": [2, 4]}})
    notes = [note for note in plan_scenario(base)["notes"] if "has no effect" in note]
    assert notes == ([] if said is None else [said])
