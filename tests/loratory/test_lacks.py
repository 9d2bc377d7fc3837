"""Notes on what a run leaves out: what a policy decides by and nobody has, and slots that cost no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loratory.experiment.notes.mismatches import lacking, unread, untimed
from loratory.experiment.notes.seeds import disagreements
from loratory.experiment.policy_spec import policy_factory, policy_names
from loratory.experiment.resolve import build
from loratory.experiment.run import run_scenario
from loratory.scenarios.build import build_workload
from loratory.scenarios.load import load_scenario, load_text
from loratory.serving.workload import Workload

SLOTS = Path(__file__).parents[1] / "cases" / "slots-cost-no-time" / "scenario.yaml"


def _workload(**sections: str) -> Workload:
    adapters = sections.pop("adapters", "{count: 3, ranks: 16}")
    work = sections.pop("workload", "")
    text = (
        "name: t\nmodel: llama-3.1-8b\ngpu: h100-80gb\nengine: {num_gpu_blocks: 1000, max_loras: 4}\n"
        f"adapters: {adapters}\n"
        f"workload: {{arrivals: {{poisson: 5}}, duration_s: 9, input_tokens: 9, output_tokens: 9{work}}}\n"
    )
    text += "".join(f"{key}: {value}\n" for key, value in sections.items())
    scenario = load_text(text)
    return build_workload(scenario, 0, build(scenario).adapters)


@pytest.mark.parametrize(
    ("spec", "sections", "says"),
    [
        ("fair_share:predict=request", {}, "requests carry no predicted_tokens"),
        ("fair_share:predict=request,reserve=true", {}, "requests carry no predicted_tokens"),
        ("deadline", {}, "no request has a deadline"),
        ("priority", {}, "all requests have the same priority"),
        ("deficit", {"tenants": "{map: single}"}, "all requests are of one tenant"),
        ("affine_deficit:by=adapter", {"adapters": "{count: 0}"}, "no request has an adapter"),
        ("affinity", {"adapters": "{count: 0}"}, "no request has an adapter"),
    ],
)
def test_a_policy_that_cannot_do_what_its_name_says_gets_a_note(spec: str, sections: Any, says: str) -> None:
    (note,) = lacking(policy_factory(spec), _workload(**sections))
    assert note.startswith(f"{spec}: {says}")


@pytest.mark.parametrize(
    ("spec", "sections"),
    [
        ("fair_share:predict=request", {"workload": ", predicted_tokens: exact"}),
        ("fair_share:predict=mean", {}),
        ("deadline", {"workload": ", deadline_s: 5"}),
        ("deadline:slack_s=3", {}),
        ("priority", {"tenants": "{map: {groups: 2}, priorities: {tenant-1: 3}}"}),
        ("deficit", {}),
        ("fifo", {"adapters": "{count: 0}"}),
    ],
)
def test_a_policy_that_has_what_it_decides_by_gets_none(spec: str, sections: Any) -> None:
    assert lacking(policy_factory(spec), _workload(**sections)) == ()


def _decided_by(*specs: str) -> list[tuple[str, ...] | None]:
    return [policy_factory(spec).decides_by for spec in specs]


def test_what_no_policy_uses_is_said_once_and_not_where_one_does() -> None:
    work = _workload(
        workload=", predicted_tokens: exact",
        tenants="{map: {groups: 2}, weights: {tenant-1: 3}, priorities: {tenant-0: 1}}",
    )
    assert [note.split(",")[0] for note in unread(_decided_by("fifo", "affinity"), work)] == [
        "tenants have weights",
        "requests have priorities",
        "requests carry predicted_tokens",
    ]
    assert unread(_decided_by("fifo", "priority", "fair_share:predict=request"), work) == ()


def test_every_policy_of_the_package_says_what_it_decides_by() -> None:
    assert [name for name in policy_names() if policy_factory(name).decides_by is None] == []


LINEAR = "{kind: linear, decode_base_s: 0.01, decode_per_seq_s: 0, decode_per_kv_token_s: 0, prefill_base_s: 0, "
LINEAR += "prefill_per_token_s: 0.0001"


@pytest.mark.parametrize(
    ("cost", "adapters", "says"),
    [
        ("{kind: roofline}", 4, None),
        ("{kind: roofline, engine_times: none}", 4, "no time for engine.max_loras or engine.max_lora_rank"),
        ("{kind: profile, profile: m-cpu}", 4, "no time for engine.max_loras or engine.max_lora_rank"),
        (LINEAR + "}", 4, "no time for engine.max_loras or engine.max_lora_rank"),
        (LINEAR + ", slot_token_s: 0.00001}", 4, "no time for engine.max_lora_rank:"),
        ("{kind: roofline}", 0, None),
        (LINEAR + "}", 0, None),
    ],
)
def test_slots_that_cost_no_time_are_told_of(cost: str, adapters: int, says: str | None) -> None:
    from loratory.sim.cost import profile_names

    cost = cost.replace("m-cpu", profile_names()[0])
    scenario = load_scenario(SLOTS, [f"cost={cost}", f"adapters={{count: {adapters}, ranks: 16}}"])
    found = untimed(scenario, adapters)
    assert len(found) == (says is not None) and all(str(says) in note for note in found)


def test_a_run_carries_its_notes() -> None:
    changes = ["workload.requests=5", "cost={kind: roofline, engine_times: none}"]
    scenario = load_scenario(SLOTS, changes, ["priority"])
    (ran,) = run_scenario(scenario)["runs"]
    notes = ran["warnings"]
    assert any("no time for engine.max_loras" in note for note in notes)
    assert any(note.startswith("priority: all requests have the same priority") for note in notes)


def test_seeds_that_disagree_are_told_of() -> None:
    def told(submitted: int, *completed: int) -> dict[str, str]:
        return disagreements(
            [{"policy": "fifo", "requests": {"submitted": submitted, "completed": each}} for each in completed]
        )

    assert told(217_440, 90_500, 121_400)["fifo"].startswith("seeds disagree: they complete 90,500 to 121,400 requests")
    assert not told(217_440, 100_000, 101_000) and not told(217_440, 100_000) and not told(10, 0, 0) and not told(0, 0)
    assert not told(50, 25, 30, 36), "so few requests differ by as much by chance"


def test_a_run_says_that_its_seeds_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loratory.experiment.notes.seeds.APART", -1.0)
    monkeypatch.setattr("loratory.experiment.notes.seeds.CHANCE", -1.0)
    runs = run_scenario(load_scenario(SLOTS, ["workload.requests=5", "seeds=[0, 1]"]))["runs"]
    assert all(any(note.startswith("seeds disagree") for note in run["warnings"]) for run in runs)
