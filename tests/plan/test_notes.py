"""What a plan says besides its answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from small_plan import small

from loratory.experiment.run import run_scenario
from loratory.plan.answer import smaller
from loratory.plan.candidate import Candidate
from loratory.plan.outcome import PlanOutcome, Tried
from loratory.plan.run import plan_scenario
from loratory.plan.verdict import Judgement


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


def placed(*placements: Any, **plan: Any) -> dict[str, Any]:
    space = {"placement": list(placements), "router": ["least_loaded", "rendezvous", "lora_affinity"]}
    ways = {"space": space, "replicas": [2], "seeds": {"first": 2, "most": 2}, **plan}
    return plan_scenario(
        small(plan=ways, workload={"_replace": True, **LOAD}, slo={"_replace": True, "ttft_p95_s": 5.0})
    )


LOAD = {
    "arrivals": {"poisson": 14.0},
    "input_tokens": {"uniform": [20, 200]},
    "output_tokens": {"uniform": [4, 24]},
    "duration_s": 10,
}


def test_a_placement_that_knows_the_whole_workload_is_said_to_and_its_ties_are_named() -> None:
    """With one home each, the router has no choice."""
    found = placed({"name": "min_cost_flow", "homes": 1})
    assert found["best"]["replicas"] == 2
    knows = [note for note in found["notes"] if "knows what is to come" in note]
    assert knows == [
        "the placement min_cost_flow knows what is to come: without every_s it decides from what the whole workload "
        "asks for, which no operator has; an every_s within it, such as {name: min_cost_flow, every_s: 1}, has it "
        "decide again from what arrived"
    ]
    equal = [note for note in found["notes"] if note.startswith("equal to the answer in every metric: ")]
    assert equal == [
        "equal to the answer in every metric: 2 x h100-80gb, min_cost_flow (homes 1), rendezvous, fifo; "
        "2 x h100-80gb, min_cost_flow (homes 1), lora_affinity, fifo"
    ]


@pytest.mark.parametrize(("every_s", "said"), [(2, False), (60, True)])
def test_a_placement_that_decides_again_is_not_said_to_know_it(every_s: float, said: bool) -> None:
    found = placed({"name": "greedy", "every_s": every_s})
    assert any("with an every_s (60) beyond the run" in note for note in found["notes"]) is said
    assert any("knows what is to come" in note for note in found["notes"]) is said


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"replicas": 2, "placement": "greedy"}, "the placement greedy knows what is to come: without every_s"),
        ({"replicas": 2, "placement": {"name": "greedy", "every_s": 2}}, None),
        ({"replicas": 2, "placement": "replicate_all"}, None),
        ({"replicas": 1, "placement": "greedy"}, "cluster.placement has no effect, as there is one replica"),
    ],
)
def test_a_run_says_it_too(cluster: dict[str, Any], said: str | None) -> None:
    found = run_scenario(small(cluster=cluster, workload={"_replace": True, **LOAD}).scenario, decisions=False)
    told = [text for text in found["runs"][0]["warnings"] if "placement" in text]
    assert len(told) == (said is not None) and (said is None or told[0].startswith(said))


@pytest.mark.parametrize(
    ("replicas", "words"),
    [
        (1, "with 1 replica the SLO is missed: slow"),
        (
            [{"count": 1}, {"gpu": "a100-80gb", "count": 2}],
            "with 1 x h100-80gb + 2 x a100-80gb the SLO is missed: slow",
        ),
    ],
)
def test_a_smaller_fleet_is_named_by_its_kinds(replicas: Any, words: str) -> None:
    base = small(cost={"_replace": True, "kind": "roofline"}, cluster={"replicas": replicas})
    less = Candidate((("policy", "fifo"),), base.scenario, "fifo")
    more = [{"count": 2}] if replicas == 1 else [{"count": 1}, {"gpu": "a100-80gb", "count": 3}]
    larger = small(cost={"_replace": True, "kind": "roofline"}, cluster={"replicas": more}).scenario
    best = Tried(Candidate((("policy", "fifo"),), larger, "fifo"), Judgement("met", {}, 2))
    outcome = PlanOutcome(best, tried=[best, Tried(less, Judgement("missed", {}, 2, reason="slow"))])
    assert smaller(outcome, best) == words
    other = replace(less, settings=(("engine.max_loras", 8), ("policy", "fifo")))
    outcome.tried[1] = Tried(other, Judgement("too_close", {}, 2, reason="near"))
    assert smaller(outcome, best) == f"with {other.label} it is too close to call: near"
