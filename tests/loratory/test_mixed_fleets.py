"""Fleets whose replicas differ: each kind is priced and measured as itself, and the plan counts all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loratory.errors import InputError
from loratory.experiment.resolve import build
from loratory.experiment.run import run_scenario
from loratory.experiment.sweep import read_sweep, run_sweep
from loratory.plan.candidate import Candidate
from loratory.plan.flags import flags
from loratory.plan.run import plan_scenario
from loratory.scenarios.load import load_text

BASE = """
name: fleet
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 4, max_cpu_loras: 16, max_num_seqs: 32}
adapters: {count: 12, ranks: 16, popularity: {zipf: 1.0}}
workload:
  {arrivals: {poisson: 30}, input_tokens: {uniform: [50, 400]}, output_tokens: {uniform: [10, 80]}, duration_s: 10}
cluster: {router: lora_affinity, replicas: 3}
"""
MIXED = "cluster.replicas=[{count: 2}, {gpu: a100-80gb, engine: {max_loras: 2, max_num_seqs: 8}}]"


def run(*overrides: str) -> dict[str, Any]:
    return run_scenario(load_text(BASE, "fleet.yaml", None, overrides), decisions=False)


def test_each_kind_is_built_as_a_scenario_of_its_own() -> None:
    scenario = load_text(BASE, "fleet.yaml", None, [MIXED])
    built = build(scenario)
    alone = load_text(
        BASE, "fleet.yaml", None, ["cluster.replicas=1", "gpu=a100-80gb", "engine.max_loras=2", "engine.max_num_seqs=8"]
    )
    slow = build(alone)
    assert [(kind.label, kind.count) for kind in built.kinds] == [
        ("h100-80gb", 2),
        ("a100-80gb, max_loras 2, max_num_seqs 8", 1),
    ]
    assert built.kinds[1].engine == slow.engine and built.kinds[1].cost.source == slow.cost.source
    assert built.gpus == 3 and scenario.hardware == [("h100-80gb", 2, 1), ("a100-80gb", 1, 1)]


def test_a_list_of_one_kind_is_the_number() -> None:
    plain, listed = run(), run("cluster.replicas=[{count: 3}]")
    assert plain["runs"] == listed["runs"]
    split = run("cluster.replicas=[{count: 2}, {count: 1}]")["runs"][0]
    for key in ("ttft_s", "e2e_s", "throughput", "adapters", "usage", "waiting"):
        assert split[key] == plain["runs"][0][key]


def test_every_replica_is_reported_by_its_kind() -> None:
    (found,) = run(MIXED)["runs"]
    rows = found["per_replica"]
    assert [row["kind"] for row in rows] == ["h100-80gb"] * 2 + ["a100-80gb, max_loras 2, max_num_seqs 8"]
    for key, total in (("completed", found["requests"]["completed"]), ("loads", found["adapters"]["loads"])):
        assert sum(row[key] for row in rows) == total
    assert sum(row["requests"] for row in rows) == found["requests"]["submitted"]
    assert rows[2]["tpot_p99_s"] > rows[0]["tpot_p99_s"] and rows[2]["resident"] <= 2
    assert found["gpus"] == 3 and found["usage"]["slots"]["limit"] is None
    limits = {kind: used["limit"] for kind, used in found["usage"]["slots"]["kinds"].items()}
    assert limits == {"h100-80gb": 4, "a100-80gb, max_loras 2, max_num_seqs 8": 2}
    assert sum(found["waiting"]["kinds"].values()) == pytest.approx(1.0 if found["waiting"]["request_s"] else 0.0)
    assert 0 < found["throughput"]["ceiling_share"] < 1


def test_one_replica_has_no_rows() -> None:
    assert "per_replica" not in run("cluster={replicas: 1}")["runs"][0]


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("cluster.replicas=[]", "cluster.replicas"),
        ("cluster.replicas=[{gpu: h900}]", "cluster.replicas.0: gpu: unknown gpu 'h900'"),
        ("cluster.replicas=[{count: 0}]", "cluster.replicas.0.count"),
        ("cluster.replicas=[{cuont: 2}]", "cuont"),
        ("cluster.replicas=[{engine: {max_lorsa: 2}}]", "engine.max_lorsa"),
        ("cluster.replicas=[{engine: {max_loras: true}}]", "should be a number, not true"),
        ("cluster.replicas=[{engine: {max_lora_rank: 8}}]", "16, but engine.max_lora_rank is 8"),
        ("cluster.replicas=[{engine: {as: vllm-0.32}}]", "a fleet runs one engine"),
        ("cluster.replicas=[{tensor_parallel_size: 2, engine: {tensor_parallel_size: 4}}]", "keep one"),
        ("cluster.replicas=[{gpu: a100-80gb, engine: {gpu_memory_utilization: 0.05}}]", "cluster.replicas.0"),
        ("cluster.replicas=two", "cluster.replicas"),
    ],
)
def test_a_wrong_kind_is_refused_by_its_key(override: str, text: str) -> None:
    with pytest.raises(InputError) as error:
        build(load_text(BASE, "fleet.yaml", None, [override]))
    assert text in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_measured_cost_is_of_one_gpu() -> None:
    linear = (
        "cost={kind: linear, decode_base_s: 0.01, decode_per_seq_s: 0.001, decode_per_kv_token_s: 0.000001, "
        "prefill_base_s: 0.01, prefill_per_token_s: 0.0001}"
    )
    with pytest.raises(InputError, match=r"cluster.replicas are of other GPUs than the linear cost describes"):
        load_text(BASE, "fleet.yaml", None, [linear, MIXED])


def test_what_knows_the_future_needs_one_kind() -> None:
    with pytest.raises(InputError, match="--regret needs replicas of one kind"):
        run_scenario(load_text(BASE, "fleet.yaml", None, [MIXED]), regret=True)


def test_a_plan_of_a_mixed_fleet_counts_and_prices_every_kind() -> None:
    scenario = load_text(BASE, "fleet.yaml", None, [MIXED])
    candidate = Candidate((), scenario, "fifo")
    assert candidate.replicas == candidate.gpus == 3
    assert candidate.label == "2 x h100-80gb + 1 x a100-80gb (max_loras 2, max_num_seqs 8)"
    assert candidate.price_per_hour({"h100-80gb": 3.0, "a100-80gb": 2.0}) == 8.0
    assert candidate.price_per_hour({"h100-80gb": 3.0}) is None
    commands = flags(scenario, build(scenario))
    assert commands["vllm"].startswith("# 2 x h100-80gb\n") and commands["vllm"].count("vllm serve") == 2
    assert "--max-loras 2" in commands["vllm"].partition("# 1 x a100-80gb")[2]


def test_the_cheapest_fleet_may_have_two_gpu_types(tmp_path: Path) -> None:
    """One H100 is too little and two are dear; one and an A100 beside it do."""
    text = BASE.replace("poisson: 30", "poisson: 45").replace("replicas: 3", "replicas: 1")
    space = "{gpu: [h100-80gb, a100-80gb], engine.max_loras: [4], policy: [fifo], router: [least_loaded]}"
    plan = (
        f"plan={{space: {space}, prices: {{h100-80gb: 4.0, a100-80gb: 1.5}}, replicas: {{most: 3}}, details: false, "
        "seeds: {first: 1, most: 1}, mixed: true}"
    )
    found = {}
    for slo in ("slo={tpot_p99_s: 0.2, ttft_p50_s: 0.2}", "slo={e2e_p50_s: 0.8, ttft_p99_s: 0.5}"):
        scenario = load_text(text, "fleet.yaml", None, [plan, slo])
        answer = plan_scenario(scenario, tmp_path / str(len(found)))
        found[slo] = answer
        tried = {each["label"].partition(",")[0] for each in answer["candidates"]}
        assert any(" + " in label for label in tried) or answer["best"]["price_per_hour"] <= 5.5
        if answer["feasible"]:
            prices = [c["price_per_hour"] for c in answer["candidates"] if c["verdict"] == "met"]
            assert answer["best"]["price_per_hour"] == min(prices)


def test_the_setup_tells_of_every_kind() -> None:
    told = run(MIXED)["setup"]
    assert told["known error"].endswith("not measured: adapters under vLLM 0.32, adapters on a100-80gb")
    assert "on h100-80gb (" in told["cost model"] and "on a100-80gb (" in told["cost model"]
    assert "max_loras 4" in told["engine"]
    assert told["engine"].endswith(" blocks (a100-80gb, max_loras 2, max_num_seqs 8)")


def test_a_warning_of_any_kinds_cost_model_is_said() -> None:
    found = run("cluster.replicas=[{count: 2}, {gpu: l40s}]")
    assert sum("on l40s they are assumed" in text for text in found["runs"][0]["warnings"]) == 1


def test_a_sweep_over_gpus_names_what_was_not_measured_of_any(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(BASE, encoding="utf-8")
    swept = read_sweep(str(path), ["gpu=h100-80gb,a100-80gb", "cluster.replicas=1", "workload.duration_s=1"])
    told = run_sweep(swept, tmp_path / "out", decisions=False)["setup"]["known error"]
    assert told.endswith("not measured: adapters under vLLM 0.32, adapters on a100-80gb")
