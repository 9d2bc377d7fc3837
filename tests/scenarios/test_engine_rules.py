"""The library shows the rules of vLLM 0.32: each changes what the comment of its scenario says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loratory import run_scenario
from loratory.errors import InputError
from loratory.scenarios.load import load_scenario


def figures(folder: Path, name: str, *changes: str) -> dict[str, Any]:
    summary = run_scenario(load_scenario(name, list(changes), policies=["fifo"]), folder / str(len(changes)))
    run: dict[str, Any] = summary["runs"][0]
    return run


def test_long_prompts_preempt_each_other_without_the_gate(tmp_path: Path) -> None:
    rule = figures(tmp_path, "rag-long-prompts")
    without = figures(tmp_path, "rag-long-prompts", "engine.scheduler_reserve_full_isl=false")
    assert preemptions(rule) < 10 < 500 < preemptions(without)
    assert 10 * rule["ttft_s"]["p50"] < without["ttft_s"]["p50"]


def test_a_watermark_leaves_room_for_what_runs(tmp_path: Path) -> None:
    without = figures(tmp_path, "agents-kv-full")
    rule = figures(tmp_path, "agents-kv-full", "engine.watermark=0.05")
    assert preemptions(rule) == 0 < preemptions(without)


def test_a_lone_request_is_not_limited(tmp_path: Path) -> None:
    rule = figures(tmp_path, "lone-long-prompt")
    without = figures(tmp_path, "lone-long-prompt", "engine.long_prefill_threshold_alone=true")
    assert without["ttft_s"]["p50"] == pytest.approx(1.1 * rule["ttft_s"]["p50"], rel=0.05)


def test_async_scheduling_costs_a_few_steps_where_requests_wait(tmp_path: Path) -> None:
    """Without the host's time, which it hides; with it, it is worth more than these steps."""
    host = ("cost.host_step_s=0", "cost.host_seq_s=0", "cost.host_blocked_s=0")
    ahead = figures(tmp_path, "quickstart", *host)
    between = figures(tmp_path, "quickstart", *host, "engine.async_scheduling=false")
    step = ahead["tpot_s"]["mean"]
    assert 0 < ahead["ttft_s"]["mean"] - between["ttft_s"]["mean"] < 8 * step
    hidden = figures(tmp_path, "quickstart")
    added = figures(tmp_path, "quickstart", "engine.async_scheduling=false")
    assert hidden["ttft_s"]["mean"] < added["ttft_s"]["mean"] and hidden["e2e_s"]["mean"] < added["e2e_s"]["mean"]


def preemptions(run: dict[str, Any]) -> int:
    found: int = run["engine"]["preemptions"]
    return found


UNREAD = {
    ("engine.long_prefill_threshold_alone=true",): "needs engine.long_prefill_token_threshold above 0",
    ("engine.as=vllm-0.8.5", "engine.long_prefill_threshold_alone=false"): "needs engine.long_prefill_token_threshold",
    ("adapters.initial_tier=host", "engine.max_cpu_loras=200", "tiers.disk_first_read_s=1"): "initial_tier is host",
    ("adapters.initial_tier=remote", "tiers.disk_first_read_s=1"): "initial_tier is remote",
    (
        "cost.all_reduce_latency_s=1",
    ): r"cost\.all_reduce_latency_s is not used, because engine\.tensor_parallel_size is 1",
    **{
        ("adapters={count: 0}", f"{key}={value}"): f"{key} is not used, because adapters.count is 0: remove it"
        for key, value in {
            "tiers.disk_first_read_s": "1",
            "cost.load_copy_s": "1",
            "cost.lora_idle_block_s": "0.000001",
            "cost.lora_memory_efficiency": "0.5",
        }.items()
    },
    ("adapters={count: 0}", "cost={kind: kernels, lora_kernel_s: 1}"): "lora_kernel_s is not used, because adapters",
}


@pytest.mark.parametrize("changes", UNREAD)
def test_a_key_without_an_effect_is_refused(changes: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=UNREAD[changes]):
        load_scenario("quickstart", changes)
    load_scenario("quickstart", ["engine.as=vllm-0.8.5", "tiers.disk_first_read_s=1", "cost.load_copy_s=1"])
    load_scenario("quickstart", ["engine.tensor_parallel_size=2", "cost.all_reduce_latency_s=1"])


def test_a_watermark_that_holds_requests_back_is_named(tmp_path: Path) -> None:
    run = figures(tmp_path, "quickstart", "workload.duration_s=20", "seeds=[0]", "engine.watermark=0.999")
    assert run["bottleneck"] == "kv_blocks" and run["advice"][0].startswith("Try engine.watermark 0: it now keeps 27,")
