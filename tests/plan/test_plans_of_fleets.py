"""Plans of fleets with placements, with replicas that fail, and with routers and policies in files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import command_line
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from small_plan import small, text

from loratory.errors import InputError
from loratory.experiment.resolve import build
from loratory.plan.bounds import hopeless
from loratory.plan.evaluate import Evaluation, evaluate, workload_of
from loratory.plan.measure import targets_of
from loratory.plan.run import BEST, plan_scenario
from loratory.plan.space import Base
from loratory.scenarios.load import load_scenario, load_text

ONE = {"first": 1, "most": 1}
PLACEMENTS: list[Any] = ["greedy", "bin_pack", {"name": "min_cost_flow", "homes": 2}, None]
WORDS = {"greedy", "bin_pack", "min_cost_flow (homes 2)", "replicate_all"}


def plan_of(ask: str, **plan: Any) -> dict[str, Any]:
    return {"_replace": True, "ask": ask, "details": False, "seeds": ONE, **plan}


@pytest.mark.parametrize(
    ("ask", "where"),
    [
        ("fleet", "space"),
        ("settings", "space"),
        pytest.param("capacity", "space", marks=pytest.mark.slow),
        *((ask, "scenario") for ask in ("fleet", "capacity", "settings", "sensitivity")),
    ],
)
def test_a_placement_is_planned(ask: str, where: str, tmp_path: Path) -> None:
    cluster: dict[str, Any] = {"replicas": 2, "router": "least_loaded"}
    plan = plan_of(ask, **({"factors": ["traffic"]} if ask == "sensitivity" else {"space": {}}))
    if where == "space":
        plan["space"] = {"placement": PLACEMENTS}
    else:
        cluster["placement"] = {"name": "min_cost_flow", "homes": 2}
    plan |= {"replicas": {"most": 3}} if ask == "fleet" else {}
    changes = {"workload": {"requests": 40}, "adapters": {"count": 6}, "slo": {"ttft_p95_s": 0.9}}
    found = plan_scenario(small(cluster=cluster, plan=plan, **changes), tmp_path / "plan")
    several = [each for each in found["candidates"] if each["replicas"] > 1]
    tried = {each["placement"] for each in several}
    assert tried <= WORDS and {each["placement"] for each in found["candidates"] if each["replicas"] == 1} <= {None}
    best = load_scenario(tmp_path / "plan" / BEST)
    if where == "scenario":
        assert tried <= {"min_cost_flow (homes 2)"}
        assert best.cluster.placement is not None and best.cluster.placement.homes == 2
        return
    if ask != "fleet":
        assert tried == WORDS  # every one is tried, and told in the label
        assert all(each["placement"] in each["label"].split(", ") for each in several)
        chosen = None if best.cluster.placement is None else best.cluster.placement.name
        assert found["best"]["placement"].partition(" ")[0] == chosen


def test_a_placement_changes_what_a_plan_finds() -> None:
    """With slots for half the adapters, homes spare loads."""
    changes = {"engine": {"max_loras": 3}, "adapters": {"popularity": {"uniform": True}}}
    plan = plan_of("settings", space={"placement": ["bin_pack", "replicate_all"]}, goal="loads")
    found = plan_scenario(small(cluster={"replicas": 3, "router": "least_loaded"}, plan=plan, **changes))
    loads = {each["placement"]: each["metrics"]["loads"]["mean"] for each in found["candidates"]}
    assert loads["bin_pack"] < loads["replicate_all"] and found["best"]["placement"] == "bin_pack"
    assert any("placement is bin_pack" in note for note in found["flags"]["notes"])


@pytest.mark.parametrize(
    ("space", "why"),
    [
        ({"placement": ["greedi"]}, "greedy"),
        ({"placement": [{"nmae": "greedy"}]}, "plan.space.cluster.placement"),
        ({"placement": [3]}, "not a name"),
        ({"placement": [None, "replicate_all"]}, "repeats a value"),
        ({"placement": ["greedy"], "cluster.placement": ["greedy"]}, "is the same as"),
        ({"cluster.placment": ["greedy"]}, "cannot vary"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(space: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError) as error:
        plan_scenario(small(plan=plan_of("fleet", space=space)))
    assert why in str(error.value) and "\n" not in str(error.value)


FAIL = [{"at_s": 2.0, "fail": 0}]


def test_a_failure_takes_a_replica_more() -> None:
    """N + 1: what a fleet needs that loses a replica for good is one more than without, or more."""
    changes = {"workload": {"requests": 150}, "slo": {"_replace": True, "ttft_p95_s": 0.6}}
    plan = plan_of("fleet", space={"engine.max_loras": [4]}, replicas={"most": 6})
    calm = plan_scenario(small(cluster={"router": "least_loaded"}, plan=plan, **changes))
    failing = {"router": "least_loaded", "replicas": 2, "events": FAIL}
    found = plan_scenario(small(cluster=failing, plan=plan, **changes))
    assert calm["best"]["replicas"] < found["best"]["replicas"] <= calm["best"]["replicas"] + 2
    assert "through fail 0 at 2 s" in found["question"]
    fewer = [each for each in found["candidates"] if each["replicas"] == calm["best"]["replicas"]]
    assert fewer and all(each["verdict"] != "met" for each in fewer)


def test_fleets_without_the_replica_that_fails_are_discarded_with_the_reason() -> None:
    cluster = {"router": "least_loaded", "replicas": 3, "events": [{"at_s": 2.0, "fail": 2}]}
    found = plan_scenario(small(cluster=cluster, plan=plan_of("fleet", space={})))
    assert min(each["replicas"] for each in found["candidates"]) >= 3
    assert [each["label"] for each in found["discarded"]] == ["1 to 2 replicas"]
    assert "needs 3 replicas at least" in found["discarded"][0]["reason"]
    none = plan_scenario(small(cluster=cluster, plan=plan_of("fleet", space={}, replicas=[1, 2])))
    assert none["verdict"] == "missed" and "needs 3 replicas at least" in none["answer"]


@pytest.mark.parametrize("ask", ["capacity", "settings", "sensitivity"])
def test_other_questions_go_through_the_failure(ask: str) -> None:
    """A fleet that loses a replica is worse than one that does not, whatever is asked of it."""
    plan = plan_of(ask, **({"factors": ["traffic"]} if ask == "sensitivity" else {"space": {}}))
    drawn = {"_replace": True, "arrivals": {"poisson": 8.0}, "input_tokens": 100, "output_tokens": 12, "duration_s": 12}
    changes = {"workload": drawn, "plan": plan, "slo": {"_replace": True, "ttft_p95_s": 1.0}}
    cluster = {"router": "least_loaded", "replicas": 2}
    calm = plan_scenario(small(cluster=cluster, **changes))
    found = plan_scenario(small(cluster=cluster | {"events": FAIL}, **changes))
    if ask == "capacity":
        assert (found["curves"][0]["largest"] or 0) < calm["curves"][0]["largest"]
    else:
        one, two = (each["candidates"][0]["metrics"]["ttft_p95_s"] for each in (calm, found))
        assert two["mean"] > one["mean"]


def test_an_event_that_would_not_be_tried_is_refused() -> None:
    cluster = {"router": "least_loaded", "replicas": 2, "events": [{"at_s": 500.0, "fail": 0}]}
    with pytest.raises(InputError, match=r"fail 0 is at 500 s, but the last request arrives at .* s \(seed 0\)"):
        plan_scenario(small(cluster=cluster, plan=plan_of("fleet")))
    loop = {"_replace": True, "arrivals": {"closed_loop": {"concurrency": 4}}, "input_tokens": 100, "output_tokens": 10}
    with pytest.raises(InputError, match="fail 0 is at 500 s, but a run was over at"):
        plan_scenario(small(cluster=cluster, plan=plan_of("fleet"), workload={**loop, "requests": 60}))
    gpus = {"gpu": ["h100-80gb", "a100-80gb"]}
    plan = plan_of("fleet", mixed=True, space=gpus, prices={"h100-80gb": 3.0, "a100-80gb": 2.0})
    roofline = {"_replace": True, "kind": "roofline"}
    with pytest.raises(InputError, match="of which GPU type"):
        plan_scenario(small(cluster=cluster | {"events": FAIL}, plan=plan, cost=roofline))


@pytest.mark.parametrize("ask", ["fleet", "autoscale"])
def test_a_roll_out_is_gone_through(ask: str) -> None:
    """A new version is loaded anew, whatever the question, and the question says so."""
    cluster: dict[str, Any] = {"router": "least_loaded", "events": [{"at_s": 3.0, "roll_out": "all"}]}
    cluster |= {"autoscale": {"most": 3, "target": 6, "interval_s": 1, "startup_s": 1}} if ask == "autoscale" else {}
    found = plan_scenario(small(cluster=cluster, plan=plan_of(ask, space={}), workload={"requests": 80}))
    cluster["events"] = None
    calm = plan_scenario(small(cluster=cluster, plan=plan_of(ask, space={}), workload={"requests": 80}))
    assert "through roll_out at 3 s" in found["question"] and "through" not in calm["question"]
    loads = [
        {c["label"]: c["metrics"].get("loads", {}).get("mean") for c in each["candidates"]} for each in (found, calm)
    ]
    both = [label for label in loads[0] if loads[0][label] is not None and loads[1].get(label) is not None]
    assert both and all(loads[0][label] > loads[1][label] for label in both)


def test_a_plan_goes_through_the_whole_roll_out() -> None:
    cluster = {"router": "least_loaded", "events": [{"at_s": 3.0, "roll_out": {"adapters": 3, "apart_s": 1000}}]}
    with pytest.raises(
        InputError, match="the roll_out of 3 adapters at 3 s ends at 2003 s at the earliest, but the last"
    ):
        plan_scenario(small(cluster=cluster, plan=plan_of("fleet", space={}), workload={"requests": 80}))


def test_traffic_grows_as_long_as_the_failure_is_tried() -> None:
    """Of a number of requests more traffic is a shorter run: the load beyond which the event is not in it is named."""
    cluster = {"router": "least_loaded", "replicas": 3, "events": [{"at_s": 5.0, "fail": 0}]}
    plan = plan_of("capacity", space={}, seeds={"first": 2, "most": 4})
    changes = {
        "workload": {"arrivals": {"poisson": 8.0}, "requests": 100},
        "slo": {"_replace": True, "ttft_p95_s": 9.0},
    }
    found = plan_scenario(small(cluster=cluster, plan=plan, **changes))
    assert found["verdict"] == "met" and "but the last request arrives at" in found["binding"]


@examples(8)
@given(
    st.floats(4, 600),
    st.floats(0.1, 3.0),
    st.sampled_from(["ttft_p95_s", "e2e_p50_s", "tpot_p90_s"]),
    st.sampled_from(["disk", "host"]),
    st.one_of(
        st.builds(
            lambda least, target, warm: {
                "replicas": least,
                "autoscale": {
                    "least": least,
                    "most": 3,
                    "target": target,
                    "interval_s": 0.3,
                    "startup_s": 0.2,
                    "warm_adapters": warm,
                    "scale_down_after_s": 1,
                },
            },
            st.integers(1, 3),
            st.integers(1, 20),
            st.integers(0, 2),
        ),
        st.builds(
            lambda at, back: {"replicas": 2, "events": [{"at_s": at, "fail": 1}, {"at_s": at + back, "recover": 1}]},
            st.floats(0.01, 0.1),
            st.floats(0.01, 0.1),
        ),
    ),
)
def test_what_is_discarded_of_a_fleet_that_changes_misses_the_slo(
    rate: float, limit: float, target: str, tier: str, cluster: dict[str, Any]
) -> None:
    base = small(
        slo={"_replace": True, target: limit},
        workload={"arrivals": {"poisson": rate}, "requests": 160},
        adapters={"initial_tier": tier, "count": 8},
        engine={"max_cpu_loras": 8 if tier == "host" else 2, "max_num_seqs": 3},
        cluster={"router": "least_loaded", **cluster},
    )
    built = build(base.scenario)
    bound = hopeless(base.scenario, built, [workload_of(base.scenario, 0, built)])
    if bound is not None:
        value = evaluate(Evaluation(base.scenario, "fifo", 0, stop_early=False)).values[target]
        (limits,) = targets_of(base.scenario, built)
        assert value is None or not limits.met_by(value), bound


ROUTER = '''
from loratory.router import Fleet, Request, Router


class First(Router):
    """Always the first replica."""

    def route(self, request: Request, fleet: Fleet) -> int:
        return int(fleet.candidates[0])
'''
POLICY = '''
from loratory.policy import Policy, View, want


class Oldest(Policy):
    """First come, first served."""

    def schedule(self, view: View):
        for request in view.waiting:
            yield from want(view, request)
'''


def test_files_of_a_space_are_looked_for_beside_the_scenario(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    monkeypatch.chdir(tmp_path)
    (beside / "my_router.py").write_text(ROUTER, encoding="utf-8")
    (beside / "my_policy.py").write_text(POLICY, encoding="utf-8")
    space = {"router": ["my_router.py:First", "round_robin"], "policy": ["my_policy.py:Oldest", "fifo"]}
    plan = plan_of("settings", space=space, goal="ttft_mean_s")
    changed = text(workload={"requests": 40}, cluster={"replicas": 2}, plan=plan, slo={"ttft_p95_s": 30.0})
    (beside / "mine.yaml").write_text(changed, encoding="utf-8")
    found = command_line(capsys, monkeypatch)("plan", "beside/mine.yaml", "--jobs", "1", "--json").json
    tried = {(each["router"], each["policy"]) for each in found["candidates"]}
    own = (f"{beside / 'my_router.py'}:First", f"{beside / 'my_policy.py'}:Oldest")
    assert tried == {(router, policy) for router in (own[0], "round_robin") for policy in (own[1], "fifo")}
    python = plan_scenario(load_scenario(beside / "mine.yaml"))
    assert python["answer"] == found["answer"]
    best = load_scenario(tmp_path / "results" / "small-plan-settings" / BEST)
    assert best.policies == [found["best"]["policy"]] and best.cluster.router == found["best"]["router"]


def test_a_space_of_the_command_line_has_nulls() -> None:
    base: Base = small(cluster={"replicas": 2, "router": "least_loaded"})
    words = ("plan={ask: settings, goal: loads, details: false, space: {cluster.placement: [null, greedy]}}",)
    found = plan_scenario(replace(base, scenario=load_text(base.text, base.source, None, words), overrides=words))
    assert {each["placement"] for each in found["candidates"]} == {"greedy", "replicate_all"}
