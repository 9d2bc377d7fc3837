"""loratory_flags: the server reads from the planned command what the plan has; and no server's command drops a setting
without a word."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from typer.main import get_command

from loratory.cli.main import app
from loratory.cli.serve import engine_settings
from loratory.experiment.resolve import build
from loratory.plan.flags import flags
from loratory.plan.loratory_flags import NOT_THERE
from loratory.scenarios.load import load_scenario
from loratory.serving.config import EngineConfig

PLAIN = ["policies=[fifo]", "cost.dtype=bf16"]

CHANGED: dict[str, list[str]] = {
    "preset": ["engine.as=vllm-0.8.5"],
    "max_num_batched_tokens": ["engine.max_num_batched_tokens=4096"],
    "max_num_seqs": ["engine.max_num_seqs=64"],
    "block_size": ["engine.block_size=32"],
    "num_gpu_blocks": ["engine.num_gpu_blocks=20000"],
    "null_block": ["engine.num_gpu_blocks=20000", "engine.null_block=false"],
    "max_model_len": ["engine.max_model_len=16384"],
    "gpu_memory_utilization": ["engine.gpu_memory_utilization=0.8"],
    "enable_chunked_prefill": ["engine.enable_chunked_prefill=false", "engine.max_model_len=8192"],
    "long_prefill_token_threshold": ["engine.long_prefill_token_threshold=512"],
    "long_prefill_threshold_alone": [
        *("engine.long_prefill_token_threshold=512", "engine.long_prefill_threshold_alone=true")
    ],
    "scheduler_reserve_full_isl": ["engine.scheduler_reserve_full_isl=false"],
    "watermark": ["engine.watermark=0.01"],
    "async_scheduling": ["engine.async_scheduling=false"],
    "tensor_parallel_size": ["engine.tensor_parallel_size=2"],
    "max_loras": ["engine.max_loras=5"],
    "max_lora_rank": ["engine.max_lora_rank=64"],
    "max_cpu_loras": ["engine.max_cpu_loras=77"],
    "adapter_loading": ["engine.adapter_loading=async"],
    "memory": ["engine.memory=unified", "policies=[slora]"],
    "batching": ["engine.batching=separate"],
    "eviction": ["engine.eviction=lfu"],
}
"""A value of each setting of the engine that is not its default."""

OTHERS: dict[str, list[str]] = {
    "weights": ["cost.dtype=fp16"],
    "8 bit": ["cost.dtype=fp8"],
    "KV cache": ["memory.kv_cache_dtype=fp8"],
    "modules": ["memory.slot_modules=targets", "adapters.target_modules=[q_proj, v_proj]"],
    "policy": ["policies=['fair_share:by=tenant']"],
}
"""What else of a plan's space a server is told."""


def made(settings: list[str]) -> dict[str, Any]:
    scenario = load_scenario("quickstart", [*PLAIN, *settings])
    return flags(scenario, build(scenario))


def read(command: str) -> dict[str, Any]:
    """The options of a command, as the command line reads them."""
    words = shlex.split(command)
    assert words[:2] == ["loratory", "serve"]
    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    found: dict[str, Any] = serve.make_context("serve", words[2:]).params
    return found


def test_every_setting_of_the_engine_is_looked_at() -> None:
    assert set(CHANGED) == set(EngineConfig.model_fields)


@pytest.mark.parametrize("settings", CHANGED.values(), ids=CHANGED)
def test_the_server_reads_the_settings_of_the_plan(settings: list[str]) -> None:
    given = read(made(settings)["loratory"])
    named = {key: given[key] for key in EngineConfig.model_fields if key in given}
    told = EngineConfig(**engine_settings(named, given["engine"]))
    planned = build(load_scenario("quickstart", [*PLAIN, *settings])).engine
    for key in set(EngineConfig.model_fields) - {*NOT_THERE, "max_model_len"}:
        assert getattr(told, key) == getattr(planned, key), key
    asked = load_scenario("quickstart", [*PLAIN, *settings]).engine
    assert told.preset == planned.preset
    assert (told.num_gpu_blocks, told.max_model_len) == (asked.num_gpu_blocks, asked.max_model_len)


@pytest.mark.parametrize("settings", (CHANGED | OTHERS).values(), ids=CHANGED | OTHERS)
def test_no_command_drops_a_setting_without_a_word(settings: list[str]) -> None:
    """Each of the three commands changes with it, or a note does that names the server or all."""
    plain, changed = made([]), made(settings)
    new = [note for note in changed["notes"] if note not in plain["notes"]]
    for server, name in (("vllm", "vLLM"), ("sglang", "SGLang"), ("loratory", "oratory")):
        told = [note for note in new if name in note or note.startswith("The plan")]
        assert changed[server] != plain[server] or told, server


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        (CHANGED["max_model_len"], "--max-model-len 16384"),
        (CHANGED["num_gpu_blocks"], "--num-gpu-blocks 20000"),
        (CHANGED["block_size"], "--engine block_size=32"),
        (CHANGED["eviction"], "--engine eviction=lfu"),
        (CHANGED["enable_chunked_prefill"], "--engine enable_chunked_prefill=false"),
        (CHANGED["preset"], "--engine as=vllm-0.8.5"),
        (CHANGED["gpu_memory_utilization"], "--kv-memory "),
        (OTHERS["weights"], "--dtype float16"),
        (OTHERS["modules"], "--lora-target-modules q_proj,v_proj"),
        (OTHERS["policy"], "--policy fair_share:by=tenant"),
    ],
)
def test_an_option_of_serve_that_a_plan_sets_comes_out(settings: list[str], option: str) -> None:
    assert option in made(settings)["loratory"] and option not in made([])["loratory"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (CHANGED["tensor_parallel_size"], "on one GPU, where the plan has 2"),
        (["engine.async_scheduling=true"], "without async_scheduling"),
        (OTHERS["8 bit"], "loratory serve computes in 16 or 32 bit, and the plan in fp8"),
        (OTHERS["KV cache"], "loratory serve has no option for a KV cache in fp8"),
        (CHANGED["memory"], "loratory serve have no unified memory"),
        (CHANGED["scheduler_reserve_full_isl"], "SGLang has no counterpart of scheduler_reserve_full_isl false"),
    ],
)
def test_what_no_option_says_is_in_a_note(settings: list[str], words: str) -> None:
    assert any(words in note for note in made(settings)["notes"]), made(settings)["notes"]


def test_sglangs_pages_are_the_plans_blocks_where_it_sets_them() -> None:
    assert "--page-size 32" in made(CHANGED["block_size"])["sglang"] and "--page-size" not in made([])["sglang"]
