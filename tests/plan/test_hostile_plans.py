"""Plans of scenarios at their edges: each is answered, or refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import Command, command_line
from small_plan import SMALL, small, text

from loratory.errors import InputError
from loratory.plan.run import plan_scenario
from loratory.plan.store import EVALUATIONS


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    found = command_line(capsys, monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    return found


@pytest.mark.parametrize(
    "changes, why",
    [
        (
            {"workload": {"arrivals": {"poisson": 0.01}, "requests": None, "duration_s": 5.0}},
            "no requests under seed 0",
        ),
        ({"plan": {"space": {"slo": [{"ttft_p95_s": 9}]}}}, "slo cannot vary"),
        ({"plan": {"space": {"slo.ttft_p95_s": [9]}}}, "cannot vary"),
        ({"plan": {"space": {"seeds": [[1]]}}}, "cannot vary"),
        ({"plan": {"space": {"plan.ask": ["fleet"]}}}, "cannot vary"),
        ({"plan": {"space": {"policies": [["fifo"]]}}}, "cannot vary"),
        ({"plan": {"space": {"workload.arrivals.poisson": [1, 2]}}}, "cannot vary"),
        ({"plan": {"space": {"cluster": [{"replicas": 3}]}}}, "cannot vary"),
        ({"plan": {"space": {"router": ["least_loaded"], "cluster.router": ["rendezvous"]}}}, "the same as"),
        ({"plan": {"replicas": {"most": 10**9}}}, "10000"),
        ({"plan": {"seeds": {"first": 10**8, "most": 10**8}}}, "1000"),
        (
            {"plan": {"space": {f"engine.{key}": [*range(1, 2000)] for key in ("max_loras", "max_num_seqs")}}},
            "3,996,001",
        ),
        ({"plan": {"prices": {"h100": 3}}}, "plan.prices"),
        ({"plan": {"space": {"gpu": ["h100"]}}}, "plan.space.gpu"),
    ],
)
def test_what_cannot_be_planned_is_refused(changes: dict[str, Any], why: str) -> None:
    changes = {key: {k: v for k, v in value.items() if v is not None} for key, value in changes.items()}
    if "workload" in changes:
        drawn = {key: value for key, value in SMALL["workload"].items() if key != "requests"}
        changes["workload"] = {"_replace": True, **drawn, **changes["workload"]}
    with pytest.raises(InputError) as error:
        plan_scenario(small(**changes))
    assert why in str(error.value) and "\n" not in str(error.value)


def test_the_columns_of_the_verdict_and_the_price_are_always_there(tmp_path: Path, plan: Command) -> None:
    target = {"metric": "ttft", "mark": "p95", "at_most_s": 1.0, "tenant": "adapter-001"}
    (tmp_path / "long.yaml").write_text(
        text(
            slo={"ttft_p95_s": 2.0, "targets": [target]},
            workload={"requests": 60},
            plan={"space": {"engine.max_loras": [2, 4]}, "prices": {"h100-80gb": 3.0}},
        )
    )
    done = plan("plan", str(tmp_path / "long.yaml"), "--jobs", "1", "--out", str(tmp_path / "out"))
    head = next(line for line in done.out.splitlines() if line.lstrip().startswith("candidate"))
    assert head.split()[-3:] == ["SLO", "an", "hour"]


def test_clients_of_a_closed_loop_are_counted_as_such() -> None:
    loop = {"_replace": True, "arrivals": {"closed_loop": {"concurrency": 4}}, "input_tokens": 100, "output_tokens": 10}
    plan = {"_replace": True, "ask": "capacity", "space": {}, "details": False}
    found = plan_scenario(small(workload={**loop, "requests": 60}, plan=plan))
    assert [curve["x"] for curve in found["curves"]] == ["clients"] and found["workload"]["requests_per_s"] is None


def test_what_is_not_drawn_runs_once() -> None:
    """Without chance there is one run of each candidate, and no interval."""
    even = {"_replace": True, "arrivals": {"constant": 8.0}, "input_tokens": 100, "output_tokens": 10, "requests": 60}
    found = plan_scenario(small(workload=even, adapters={"count": 1}))
    assert {each["seeds"] for each in found["candidates"]} == {1}
    assert all(each["metrics"]["ttft_p95_s"]["low"] is None for each in found["candidates"])


def test_what_if_and_answer_agree_on_the_same_fleet() -> None:
    found = plan_scenario(small(plan={"details": True, "space": {"engine.max_loras": [2, 4]}}))
    fewer = found["best"]["replicas"] - 1
    said = {each["label"]: each["verdict"] for each in found["what_if"]}
    key = f"{fewer} replicas instead of {fewer + 1}"
    slots = found["best"]["engine"]["max_loras"]
    (tried,) = [
        each for each in found["candidates"] if each["replicas"] == fewer and each["set"]["engine.max_loras"] == slots
    ]
    assert said[key] == tried["verdict"]
    (curve,) = found["curves"]
    met = [point["x"] for point in curve["points"] if point["verdict"] == "met"]
    assert curve["largest"] == max(met)


@pytest.mark.parametrize(
    "change",
    [
        {"requests": "x"},
        {"values": {"ttft_p95_s": "abc"}},
        {"missed": ["zz"]},
        {"values": {}, "missed": []},
        {"values": None},
    ],
)
def test_a_kept_result_that_does_not_fit_is_made_again(tmp_path: Path, change: dict[str, Any]) -> None:
    out = tmp_path / "plan"
    before = plan_scenario(small(workload={"requests": 60}), out)
    lines = (out / EVALUATIONS).read_text().splitlines()
    (out / EVALUATIONS).write_text("".join(json.dumps(json.loads(line) | change) + "\n" for line in lines))
    assert {**plan_scenario(small(workload={"requests": 60}), out), "cpu_s": 0} == {**before, "cpu_s": 0}
