"""The ceiling bounds what runs reach, and what is advised helps when it is done."""

from __future__ import annotations

from typing import Any

import pytest

from loratory.experiment.notes.decode_ceiling import ceiling
from loratory.experiment.resolve import build
from loratory.experiment.run import run_scenario
from loratory.scenarios.build import build_workload
from loratory.scenarios.load import load_text
from loratory.scenarios.schema import Scenario

BASE = """\
name: advice
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 4, max_cpu_loras: 32, max_num_seqs: 32, max_num_batched_tokens: 2048}
adapters: {count: 16, ranks: 16, popularity: uniform, initial_tier: host}
workload:
  arrivals: {closed_loop: {concurrency: 48}}
  input_tokens: {fixed: 200}
  output_tokens: {fixed: 100}
  requests: 400
"""


def _scenario(*changes: str) -> Scenario:
    return load_text(BASE, overrides=changes)


def _run(*changes: str) -> dict[str, Any]:
    (run,) = run_scenario(_scenario(*changes))["runs"]
    return run


@pytest.mark.parametrize("batching", ["chunked", "separate"])
def test_a_full_batch_comes_close_to_the_ceiling_and_none_above(batching: str) -> None:
    """Enough slots, more clients than seats: what is missing are the start, the end and the loads."""
    run = _run("adapters.count=4", f"engine.batching={batching}", "workload.requests=1500")
    assert 0.9 < run["throughput"]["ceiling_share"] < 1.01
    assert run["bottleneck"] == "compute"


def test_the_ceiling_is_one_gpu_s() -> None:
    """Two GPUs a replica give less than twice one, so a GPU of two gives less than one alone."""
    one, two = (_scenario(f"engine.tensor_parallel_size={size}") for size in (1, 2))
    values = []
    for scenario in (one, two):
        built = build(scenario)
        values.append(ceiling(built, build_workload(scenario, 0, built.adapters)))
    assert 0 < values[1] < values[0]


def test_asking_for_the_ceiling_leaves_no_warning_of_the_cost_model() -> None:
    scenario = load_text(
        BASE,
        overrides=[
            *("workload.requests=3", "workload.arrivals={poisson: 1}"),
            *("cost={kind: profile, profile: loratory-cpu-56m}", "engine.max_num_seqs=128"),
        ],
    )
    (run,) = run_scenario(scenario)["runs"]
    assert not [warning for warning in run["warnings"] if "decode_seqs" in warning]


def test_more_slots_are_advised_where_slots_are_short_and_help() -> None:
    before = _run()
    assert before["bottleneck"] == "slots"
    (advice,) = before["advice"]
    assert advice.startswith("Try engine.max_loras 8: it fits, and leaves ")
    after = _run("engine.max_loras=8")
    assert after["waiting"]["share"] < before["waiting"]["share"]
    assert after["throughput"]["output_tokens_per_s"] > before["throughput"]["output_tokens_per_s"]


def test_no_advice_that_cannot_work() -> None:
    """As many slots as adapters: more do nothing. Where slots of rank 256 do not fit, a smaller rank goes with them."""
    assert "max_loras" not in " ".join(_run("adapters.count=4")["advice"])
    tight = (
        "engine.max_lora_rank=256",
        "engine.max_loras=12",
        "engine.max_model_len=4096",
        "gpu=a100-40gb",
        "adapters.count=32",
    )
    advice = " ".join(_run(*tight)["advice"])
    assert "engine.max_lora_rank 16 with engine.max_loras 24" in advice
    changed = _run("engine.max_lora_rank=16", "engine.max_loras=24", *tight[2:])
    assert changed["waiting"]["share"] < _run(*tight)["waiting"]["share"]


def test_a_load_beyond_the_ceiling_asks_for_replicas() -> None:
    load = ("workload.arrivals={poisson: 60}", "engine.max_loras=16", "workload.requests=1200")
    (first, *_) = _run(*load)["advice"]
    assert first.startswith("Try cluster.replicas ") and "cannot keep up" in first
    count = int(first.split()[2].rstrip(":"))
    after = _run(*load, f"cluster.replicas={count}")
    assert after["gpus"] == count and after["waiting"]["share"] < 0.5


def test_unused_slots_are_named() -> None:
    advice = _run("engine.max_loras=16", "adapters.count=4")["advice"]
    assert any("12 of the 16 slots were never used: engine.max_loras 4 would do" in text for text in advice)


def test_a_cost_model_without_time_has_no_ceiling() -> None:
    zero = "{kind: linear, decode_base_s: 0, decode_per_seq_s: 0, decode_per_kv_token_s: 0, prefill_base_s: 0"
    run = _run(f"cost={zero}, prefill_per_token_s: 0}}", "workload.arrivals={poisson: 5}", "workload.requests=20")
    assert run["throughput"]["ceiling_share"] is None and run["advice"] == []


@pytest.mark.parametrize("requests", [1, 2, 40])
def test_a_burst_has_no_rate_to_size_replicas_by(requests: int) -> None:
    """All within a few milliseconds: how many replicas a lasting load of that rate would need says nothing."""
    load = ("workload.arrivals={constant: 10000}", f"workload.requests={requests}", "engine.max_num_seqs=4")
    assert not [text for text in _run(*load, "adapters.count=2")["advice"] if "Try cluster.replicas" in text]


def test_first_loads_are_no_reason_for_a_larger_host_cache() -> None:
    """Every adapter is loaded from remote storage once: what helps is not to wait for it."""
    cold = ("adapters.initial_tier=remote", "adapters.count=900", "workload.arrivals={poisson: 5}")
    run = _run(*cold, "engine.max_loras=16", "engine.adapter_loading=sync")
    assert run["bottleneck"] == "loads"
    assert run["advice"][0].startswith("Try engine.adapter_loading async")


def test_no_advice_on_a_load_that_no_setting_serves() -> None:
    """Every prompt is above max_model_len: more replicas would reject as many."""
    run = _run("workload.input_tokens=100000", "engine.max_model_len=4096")
    assert run["requests"]["rejected"] == run["requests"]["submitted"] and run["advice"] == []


FLEET = (
    "cluster={replicas: 4, router: lora_affinity}",
    "engine={max_loras: 16, max_cpu_loras: 128, max_lora_rank: 64}",
    "adapters={count: 300, ranks: 64, popularity: {zipf: 1.0}}",
    "workload.arrivals={poisson: 15}",
    "workload.requests=1200",
)


def test_fewer_replicas_are_advised_only_where_their_slots_suffice_and_the_slo_holds() -> None:
    """One replica could compute the load, but its 16 slots could not hold the adapters in use at once."""
    slo = "slo={ttft_p99_s: 2.0, tpot_p99_s: 0.05}"
    (advice,) = _run(*FLEET, slo)["advice"]
    count = int(advice.removeprefix("Try cluster.replicas ").partition(":")[0])
    after = _run(*FLEET, slo, f"cluster.replicas={count}")
    assert after["slo"]["met"] and after["bottleneck"] == "none"
    assert _run(*FLEET, slo, "cluster.replicas=1")["slo"]["met"] is False
    tight = _run(*FLEET, slo)["slo"]["values"]["tpot_p99_s"] * 1.02
    assert _run(*FLEET, f"slo={{tpot_p99_s: {tight}}}")["advice"] == []
    target = f"{{metric: tpot, mark: p99, at_most_s: {tight}, over_tenants: p99}}"
    assert _run(*FLEET, f"slo.targets=[{target}]")["advice"] == []
    loose = "{metric: tpot, mark: p99, at_most_s: 9, over_tenants: p99}"
    assert _run(*FLEET, f"slo.targets=[{loose}]")["advice"] != []


@pytest.mark.parametrize(("held", "was"), [(3, "1 of the 4 slots was"), (2, "2 of the 4 slots were")])
def test_unused_slots_in_a_sentence(held: int, was: str) -> None:
    advice = _run(f"adapters.count={held}", "workload.requests=200")["advice"]
    assert any(f"{was} never used" in text for text in advice)


def test_more_replicas_are_advised_once() -> None:
    """The load is beyond the ceiling and slots are the first limit, of which no more fit."""
    load = ("workload.arrivals={poisson: 60}", "workload.requests=1200", "adapters={count: 200, ranks: 128}")
    run = _run(*load, "engine={max_loras: 55, max_cpu_loras: 200, max_lora_rank: 128}", "adapters.initial_tier=host")
    assert run["bottleneck"] == "slots"
    assert [text.partition(":")[0] for text in run["advice"]] == ["Try cluster.replicas 3"]


def test_a_pool_that_is_too_small_for_requests_is_left_out_before_replicas_are_added() -> None:
    """More replicas of a pool that no long prompt fits would reject the same requests."""
    load = ("workload.arrivals={poisson: 60}", "workload.input_tokens={uniform: [100, 2000]}", "workload.requests=200")
    run = _run(*load, "engine.num_gpu_blocks=50")
    assert 0 < run["requests"]["rejected"] < 200
    assert run["advice"][0].startswith("Try to leave out engine.num_gpu_blocks: it gives ")
    assert not _run(*load)["requests"]["rejected"], "and that serves them"
    every = _run("workload.requests=20", "engine.num_gpu_blocks=3")
    assert every["requests"]["rejected"] == 20 and len(every["advice"]) == 1
    short = _run(*load, "engine.num_gpu_blocks=200")
    assert not short["requests"]["rejected"] and short["advice"][0].startswith("Try cluster.replicas")
