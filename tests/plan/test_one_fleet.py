"""Questions about one fleet: its capacity, its settings, what breaks first; and the budget it has to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import command_line
from small_plan import small, text

from loratory.plan.run import plan_scenario


def found(**changes: Any) -> dict[str, Any]:
    plan = {"replicas": None, "details": False, "space": {}, **changes.pop("plan")}
    return plan_scenario(small(plan={"_replace": True, **plan}, **changes))


@pytest.mark.parametrize("ask", ["capacity", "settings", "sensitivity"])
def test_a_fleet_beyond_the_budget_is_named_and_not_simulated(ask: str) -> None:
    plan = {"ask": ask, "budget": {"gpus": 1}} | ({"space": None} if ask == "sensitivity" else {})
    beyond = found(cluster={"replicas": 2}, plan=plan)
    assert beyond["verdict"] == "missed" and beyond["runs"] == 0
    assert "2 x h100-80gb" in beyond["answer"] and beyond["answer"].endswith("has 2 GPUs, above plan.budget.gpus (1)")
    assert found(cluster={"replicas": 1}, plan=plan)["runs"] > 0


def test_a_price_limit_holds_for_settings_too() -> None:
    prices = {"prices": {"h100-80gb": 3.0, "a100-80gb": 2.0}, "budget": {"price_per_hour": 2.5}}
    cheap = found(plan={"ask": "settings", "space": {"gpu": ["h100-80gb", "a100-80gb"]}, **prices})
    assert [each["label"] for each in cheap["discarded"]] == ["1 x h100-80gb, fifo"]
    assert {each["gpu"] for each in cheap["candidates"]} == {"a100-80gb"}


@pytest.mark.parametrize(
    ("most", "words"), [(3, "too close to call at"), pytest.param(30, "missed at", marks=pytest.mark.slow)]
)
def test_the_load_above_the_largest_is_called_what_its_verdict_is(most: int, words: str) -> None:
    seen = set()
    for limit in (0.4, 0.5, 0.6, 0.7, 0.8):
        plan = found(plan={"ask": "capacity", "seeds": {"first": 3, "most": most}}, slo={"ttft_p95_s": limit})
        (curve,) = plan["curves"]
        (beyond,) = [point for point in curve["points"] if point["x"] == curve["missed_at"]]
        said = {"missed": "missed at", "too_close": "too close to call at"}[beyond["verdict"]]
        assert f"; {said} " in plan["answer"]
        seen.add(said)
    assert words in seen


def test_sensitivity_lists_the_fleet_once_as_it_is() -> None:
    plan = found(
        plan={"ask": "sensitivity", "space": None, "factors": ["traffic", "adapters"]}, slo={"ttft_p95_s": 2.0}
    )
    assert [(each["label"], each["load"]) for each in plan["candidates"]] == [("1 x h100-80gb, fifo", 1.0)]
    assert [len(each["points"]) > 1 for each in plan["sensitivity"]] == [True, True]


def test_the_answer_and_the_first_row_are_of_the_goal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"ask": "settings", "space": {"engine.max_loras": [1, 2, 4]}, "goal": "loads"}
    (tmp_path / "goal.yaml").write_text(
        text(plan={"_replace": True, "details": False, **asked}, slo={"ttft_p95_s": 9.0})
    )
    monkeypatch.chdir(tmp_path)
    done = command_line(capsys, monkeypatch)("plan", "goal.yaml", "--jobs", "1")
    answer, question, _, heads, _, first, *_ = done.out.splitlines()
    assert heads.split() == ["candidate", "loads", "ttft_p95_s", "SLO"]
    label, loads = answer.split(": loads ")
    assert first.split()[:6] == label.split() and loads.split(",")[0] == first.split()[6]
    assert question.startswith("the settings with the least loads")
