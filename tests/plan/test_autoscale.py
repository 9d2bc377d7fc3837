"""Plans of an autoscaler's bounds: against all bounds one by one, against a run's own report, and what is refused."""

from __future__ import annotations

from html import unescape
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import command_line
from small_plan import small, text

from loratory.errors import InputError
from loratory.experiment.run import run_scenario
from loratory.plan.evaluate import Evaluation, evaluate
from loratory.plan.page import page
from loratory.plan.run import BEST, plan_scenario
from loratory.scenarios.load import load_scenario

WAVE = {
    "_replace": True,
    "arrivals": {"diurnal": {"rate": 12, "period_s": 30}},
    "input_tokens": {"uniform": [20, 200]},
    "output_tokens": {"uniform": [4, 24]},
    "duration_s": 30,
}
SCALE = {"most": 4, "target": 3, "interval_s": 1, "startup_s": 1, "scale_down_after_s": 4}
ONE = {"first": 1, "most": 1}


def asked(ask: str = "autoscale", scale: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A plan of a fleet whose load rises and falls."""
    plan = {"_replace": True, "ask": ask, "details": False, "seeds": ONE} | changes.pop("plan", {})
    cluster = {"router": "least_loaded", "autoscale": SCALE | (scale or {})} | changes.pop("cluster", {})
    return {"workload": WAVE, "engine": {"max_loras": 4}, "cluster": cluster, "plan": plan, **changes}


@pytest.mark.parametrize("limit", [0.2, 0.6])
def test_no_bounds_that_meet_the_slo_cost_less(limit: float) -> None:
    """Every pair of least and most, simulated one by one."""
    changes = asked(plan={"space": {"policy": ["fifo"]}}, slo={"_replace": True, "ttft_p95_s": limit})
    base = small(**changes)
    found = plan_scenario(base)
    costs = {}
    for least, most in [*combinations(range(1, 5), 2), *((n, n) for n in range(1, 5))]:
        bounds = {"cluster.autoscale.least": least, "cluster.autoscale.most": most, "cluster.replicas": least}
        made = base.candidate(bounds).scenario
        values = evaluate(Evaluation(made, "fifo", 0, stop_early=False)).values
        value, hours = values["ttft_p95_s"], values["gpu_hours"]
        assert value is not None and hours is not None
        if value <= limit:
            costs[least, most] = hours
    if not costs:
        assert found["best"] is None and found["verdict"] == "missed"
        return
    assert found["verdict"] == "met"
    assert found["autoscale"]["gpu_hours"] == pytest.approx(min(costs.values()), rel=1e-6)


def test_the_cost_is_that_of_the_best_scenarios_own_report(tmp_path: Path) -> None:
    prices = {"prices": {"h100-80gb": 3.0}, "currency": "EUR", "seeds": {"first": 2, "most": 2}}
    found = plan_scenario(small(**asked(plan=prices | {"space": {}})), tmp_path / "plan")
    scaled = found["autoscale"]
    best = load_scenario(tmp_path / "plan" / BEST)
    assert best.cluster.autoscale is not None
    assert (best.cluster.autoscale.least, best.cluster.autoscale.most) == (scaled["least"], scaled["most"])
    runs = run_scenario(best.model_copy(update={"seeds": [0, 1]}))["runs"]
    hours = [run["fleet"]["gpu_hours"] for run in runs]
    assert sum(hours) / 2 == pytest.approx(scaled["gpu_hours"])
    assert scaled["replicas_peak"] <= scaled["most"] and scaled["replicas_mean"] < scaled["fixed"]["replicas"]
    assert scaled["price_per_hour"] == pytest.approx(3.0 * scaled["replicas_mean"])
    assert f"{scaled['price_per_hour']:.2f} EUR an hour" in found["answer"]
    one, two = hours, [scaled["fixed"]["gpu_hours"]] * 2
    assert scaled["saved"]["mean"] == pytest.approx(1 - sum(one) / sum(two), abs=0.01)


def test_a_steady_load_is_served_by_a_fleet_that_stays() -> None:
    """With as many replicas as it needs from the start, an autoscaler has nothing to save."""
    steady = {**WAVE, "arrivals": {"constant": 16.0}, "duration_s": 30}
    plan = {"details": True, "space": {}, "factors": ["skew"]}
    found = plan_scenario(small(**asked(workload=steady, cluster={"replicas": 3}, scale={"least": 2}, plan=plan)))
    assert found["best"] is not None and found["autoscale"]["least"] is None
    assert found["autoscale"]["saved"]["mean"] == 0 and "autoscaling saves nothing" in found["answer"]
    assert "kubernetes" not in found["flags"]
    assert found["regret"] and not any("regret is left out" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (asked(scale={"most": 1}), "within 1 replica, the most that cluster.autoscale allows"),
        (asked(plan={"budget": {"gpus": 1}}), "within plan.budget.gpus 1"),
        (asked(slo={"ttft_p95_s": 0.001}), "on an idle h100-80gb"),
    ],
)
def test_what_binds_is_named(changes: dict[str, Any], words: str) -> None:
    found = plan_scenario(small(**changes))
    assert found["verdict"] == "missed" and found["best"] is None and found["autoscale"] is None
    assert words in found["binding"] and words in found["answer"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (asked(scale={"least": 5}), "is 5, but most is 4"),
        (asked(scale={"least": 2}), "cluster.autoscale allows 2 to 4"),
        (asked(scale={"taget": 3}), "target"),
        (asked(ask="fleet"), "set plan.ask to autoscale"),
        (asked(cluster={"autoscale": None}), "there is no cluster.autoscale"),
        (asked(plan={"replicas": [2]}), "cluster.autoscale's least and most"),
        (asked(plan={"space": {"cluster.autoscale.most": [2]}}), "is what ask: autoscale chooses"),
        (asked(plan={"space": {"cluster.autoscale.taget": [2]}}), "target"),
        (asked(cluster={"events": [{"at_s": 5, "fail": 0}]}), "cluster.events has replicas beside cluster.autoscale"),
        (asked("settings", cluster={"autoscale": None}, plan={"space": {"cluster.autoscale.target": [2]}}), "add it"),
    ],
)
def test_a_mistake_is_one_sentence(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError) as error:
        plan_scenario(small(**changes))
    assert why in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        (1, "not known"),
        (500, "no bounds of an autoscaler were tried"),
        (700, "none of the bounds tried meets the SLO"),
        (900, "2 to 3 x h100-80gb"),
    ],
)
def test_a_plan_whose_budget_of_requests_is_spent_says_what_it_knows(requests: int, words: str) -> None:
    plan = {"space": {}, "budget": {"requests": requests}}
    found = plan_scenario(small(**asked(plan=plan, slo={"_replace": True, "ttft_p95_s": 0.2})))
    assert words in found["answer"] and (found["best"] is None) == (found["autoscale"] is None)
    assert any(f"plan.budget.requests ({requests}) is spent" in note for note in found["notes"])


@pytest.mark.parametrize("ask", ["capacity", "settings", pytest.param("sensitivity", marks=pytest.mark.slow)])
def test_other_questions_are_of_an_autoscaled_fleet(ask: str) -> None:
    plan = {"goal": "gpu_hours", "space": {"cluster.autoscale.target": [3, 6]}} if ask == "settings" else {}
    plan |= {"factors": ["traffic"]} if ask == "sensitivity" else {"space": {}} if ask == "capacity" else {}
    short = {**WAVE, "duration_s": 20}
    found = plan_scenario(small(**asked(ask, plan=plan, workload=short, slo={"_replace": True, "ttft_p95_s": 3.0})))
    assert found["best"] is not None and found["autoscale"] is None
    assert found["answer"].startswith("1 to 4 x h100-80gb") and "replicas on average and" in found["answer"]
    if ask == "settings":
        hours = {each["label"]: each["metrics"]["gpu_hours"]["mean"] for each in found["candidates"]}
        assert len(hours) == 2 and min(hours.values()) == found["best"]["metrics"]["gpu_hours"]["mean"]


def test_the_manifest_and_the_page_have_the_bounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    changes = asked(scale={"interval_s": 2, "warm_adapters": 1}, plan={"space": {}})
    Path("wave.yaml").write_text(text(**changes), encoding="utf-8")
    loratory = command_line(capsys, monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    found = loratory("plan", "wave.yaml", "--jobs", "1", "--json").json
    scaled, manifest = found["autoscale"], yaml.safe_load(found["flags"]["kubernetes"])
    assert manifest["kind"] == "HorizontalPodAutoscaler"
    assert (manifest["spec"]["minReplicas"], manifest["spec"]["maxReplicas"]) == (scaled["least"], scaled["most"])
    (metric,) = manifest["spec"]["metrics"]
    assert float(metric["pods"]["target"]["averageValue"]) == 3.0
    notes = " ".join(found["flags"]["notes"])
    assert "every 2 s" in notes and "num_requests_waiting" in notes and "loads 1 adapter" in notes
    shown = page(found)
    assert f"{scaled['least']} to {scaled['most']} replicas by queue" in shown
    code = shown.split("<code>")[-1].split("</code>")[0]
    assert yaml.safe_load(unescape(code.replace("<span>", "").replace("</span>", ""))) == manifest
    assert all(line.count("<span>") == line.count("</span>") for line in code.splitlines())  # no word has two lines
    done = loratory("plan", "wave.yaml", "--jobs", "1")
    head = next(line for line in done.out.splitlines() if line.lstrip().startswith("candidate"))
    assert head.split() == ["candidate", "ttft_p95_s", "SLO", "GPU", "hours"]
    pasted = ("vllm: ", "sglang: ", "loratory: ", "report: ")
    assert all(len(line) <= 80 for line in done.out.splitlines() if not line.startswith(pasted))


def test_by_attainment_there_is_no_manifest() -> None:
    plan = {"goal": "gpu_hours", "space": {}}
    changes = asked("settings", scale={"by": "attainment", "target": 0.9}, plan=plan, slo={"ttft_p95_s": 30.0})
    found = plan_scenario(small(**changes))
    assert "kubernetes" not in found["flags"]
    assert any("scales between 1 and 4 replicas by attainment" in note for note in found["flags"]["notes"])


@pytest.mark.slow
def test_what_ifs_are_of_the_bounds() -> None:
    plan = {"details": True, "space": {}, "factors": ["traffic"]}
    found = plan_scenario(small(**asked(plan=plan, slo={"_replace": True, "ttft_p95_s": 0.2})))
    labels = [each["label"] for each in found["what_if"]]
    assert (found["autoscale"]["least"], found["autoscale"]["most"]) == (2, 3)
    assert {"least 1 instead of 2", "least 3 instead of 2", "most 2 instead of 3", "most 4 instead of 3"} <= {*labels}
    assert found["regret"] is None and any("regret is left out" in note for note in found["notes"])
