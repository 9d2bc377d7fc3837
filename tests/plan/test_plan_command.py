"""``loratory plan`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Command, command_line
from small_plan import text

from loratory.errors import InputError


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    found = command_line(capsys, monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    return found


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(text(workload={"requests": 60}, plan={"space": {"engine.max_loras": [2, 4]}}))
    return path


def test_the_verdict_comes_first_and_lines_fit(scenario: Path, tmp_path: Path, plan: Command) -> None:
    done = plan("plan", str(scenario), "--out", str(tmp_path / "plan"), "--jobs", "1")
    assert done.code == 0 and done.err == ""
    lines, out = done.out.splitlines(), done.out
    assert lines[0].startswith("2 x h100-80gb, max_loras 4, fifo: TTFT p95 ") or lines[0].startswith("1 x h100-80gb")
    commands = ("vllm: ", "sglang: ", "loratory: ", "report: ")
    assert all(len(line) <= 80 for line in lines if not line.startswith(commands)), out
    assert {line.partition(":")[0] for line in lines if line.startswith(commands)} >= {"vllm", "sglang", "loratory"}


def test_json_is_what_the_file_holds(scenario: Path, tmp_path: Path, plan: Command) -> None:
    folder = tmp_path / "plan"
    done = plan("plan", str(scenario), "--out", str(folder), "--jobs", "1", "--json")
    found = json.loads(done.out)
    assert done.code == 0 and found == json.loads((folder / "plan.json").read_text())
    keys = {"question", "answer", "verdict", "feasible", "binding", "best", "flags", "candidates", "discarded"}
    assert keys | {"seeds", "cpu_s"} <= set(found)
    assert set(found["best"]) >= {"replicas", "gpu", "engine", "policy", "router", "price_per_hour", "metrics"}


def test_a_slo_that_cannot_be_met_is_code_3_where_it_is_required(scenario: Path, tmp_path: Path, plan: Command) -> None:
    words = ("plan", str(scenario), "--out", str(tmp_path / "plan"), "--jobs", "1", "--set", "slo.ttft_p95_s=0.001")
    done = plan(*words)
    assert done.code == 0 and done.out.startswith("no candidate meets the SLO: TTFT p95 cannot be")
    assert not (tmp_path / "plan" / "best.yaml").exists()
    assert plan(*words, "--require-slo").code == 3


@pytest.mark.parametrize(
    "words, why",
    [
        (("--set", "plan.ask=flee"), "fleet"),
        (("--set", "plan.space={engine.max_loras: [2, 2]}"), "repeats"),
        (("--set", "plan.spaces={}"), "space"),
        (("--set", "plan.seeds=5"), "such as {first: ..., most: ...}, not 5"),
        (("--set", "cluster.autoscale=5"), "such as {most: ..., target: ...}, not 5"),
        (("--set", "plan.space={placement: [[greedy]]}"), "not a name: give NAME, or {name: NAME, homes: 2}"),
        (("--set", "plan.space={placement: [{homes: 2}]}"), "not a name: give NAME, or {name: NAME, homes: 2}"),
        (("--set", "plan.space={router: [5]}"), "has 5, which is not a name: give NAME, NAME:PARAMETER=VALUE or"),
        (("--set", "plan.prices={h100: -1}"), "above 0"),
        (("--set", "slo={}"), "needs an SLO"),
        (("--ray", "auto", "--jobs", "2"), "--jobs"),
        (("--out", "/proc/plan"), "/proc/plan"),
    ],
)
def test_a_mistake_is_one_sentence(
    scenario: Path, tmp_path: Path, plan: Command, words: tuple[str, ...], why: str
) -> None:
    out = () if "--out" in words else ("--out", str(tmp_path / "plan"))
    done = plan("plan", str(scenario), *out, *words)
    assert done.code == InputError.exit_code and why in done.err and len(done.err.strip().splitlines()) == 1, done
    assert not (tmp_path / "plan" / "plan.json").exists()


def test_each_question_has_a_folder_of_its_own(
    scenario: Path, tmp_path: Path, plan: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan("plan", str(scenario), "--jobs", "1")
    words = ("--set", "plan.ask=settings", "--set", "plan.replicas=null")
    assert plan("plan", str(scenario), "--jobs", "1", *words).code == 0
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"small-plan", "small-plan-settings"}


def test_a_capacity_with_details_lists_each_combination_once(scenario: Path, tmp_path: Path, plan: Command) -> None:
    words = ("--set", "plan.ask=capacity", "--set", "plan.replicas=null", "--set", "plan.details=true")
    done = plan("plan", str(scenario), "--jobs", "1", "--out", str(tmp_path / "plan"), *words)
    rows = [line for line in done.out.splitlines() if line.startswith(" 1 x h100-80gb, max_loras")]
    assert len(rows) == 2 and {row.split(",")[1] for row in rows} == {" max_loras 2", " max_loras 4"}


@pytest.mark.parametrize(("columns", "left_out"), [("80", 0), ("40", 2)])
def test_targets_are_in_the_table_as_far_as_it_has_room_and_the_rest_is_named(
    columns: str, left_out: int, tmp_path: Path, plan: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of candidates are folded before a target is left out."""
    monkeypatch.setenv("COLUMNS", columns)
    path = tmp_path / "small.yaml"
    slo = {"_replace": True, "ttft_p95_s": 2.0, "tpot_p95_s": 1.0}
    chosen = {"space": {"engine.max_loras": [2, 4], "engine.max_num_seqs": [8]}, "prices": {"h100-80gb": 3.0}}
    path.write_text(text(workload={"requests": 40}, plan=chosen, slo=slo))
    done = plan("plan", str(path), "--out", str(tmp_path / "plan"), "--jobs", "1")
    (head,) = (line for line in done.out.splitlines() if line.startswith(" candidate"))
    names = ["ttft_p95_s", "tpot_p95_s"]
    shown, printed = "ttft_p95_s tpot_p95_s SLO an hour" if not left_out else "SLO", " ".join(done.out.split())
    assert " ".join(head.split()) == f"candidate {shown}"
    said = "more columns in plan.html: "
    assert (said in printed) is bool(left_out)
    assert not left_out or f"{said}{', '.join(names)}, an hour " in printed


def test_placements_say_what_no_value_means(plan: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    listed = plan("placements").out
    assert "homes: no limit, every_s: once" in listed and "None" not in listed
    one = plan("placements", "min_cost_flow").out
    assert "no limit" in one and "``" not in one and "``" not in plan("placements", "greedy").out
    (homes, every_s) = plan("placements", "greedy", "--json").json["parameters"]
    assert homes["default"] is every_s["default"] is None and "without" not in homes
