"""sglang_flags: the ``sglang.launch_server`` command of a planned replica, under the names of SGLang 0.5.

SGLang's scheduler is another than the one that is planned: what has no counterpart there is said in a note
(sglang/srt/arg_groups/fields/{lora,schedule,model}.py and lora_hook.py of SGLang 0.5.23).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loratory.experiment.resolve import Built
from loratory.plan.command_text import CommandText, model_argument
from loratory.scenarios.schema import Scenario
from loratory.sim.catalogue import resolve_targets

SGLANG_VERSION = "0.5.23"

_BLOCK_SIZE = 16
"""The plan's default. SGLang's pages hold one token by default, and it takes others where a plan asks for them."""

_DTYPES: Mapping[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_KV_DTYPES: Mapping[str, str] = {"bf16": "bfloat16", "fp8": "fp8_e4m3"}


def sglang_command(scenario: Scenario, built: Built, policy: str, settings: Mapping[str, Any]) -> str:
    """The command of one replica. ``policy``: the name of the policy, of which ``settings`` are the parameters."""
    engine = built.engine
    command = CommandText("python", "-m", "sglang.launch_server")
    command.add("--model-path", model_argument(scenario, built.model))
    if built.adapters:
        command.add("--enable-lora")
        command.add("--max-loras-per-batch", _slots(scenario, built))
        command.add("--max-loaded-loras", max(engine.host_slots, _slots(scenario, built)))
        command.add("--max-lora-rank", engine.max_lora_rank)
        command.add("--lora-target-modules", *resolve_targets(scenario.adapters.target_modules))
        if engine.eviction == "fifo":
            command.add("--lora-eviction-policy", "fifo")
        if _overlaps(scenario, built):
            command.add("--enable-lora-overlap-loading")
        if policy == "drain":
            command.add("--lora-drain-wait-threshold", float(settings["threshold_s"]))
    command.add("--max-running-requests", engine.max_num_seqs)
    _add_prefill(command, built)
    if engine.tensor_parallel_size > 1:
        command.add("--tp-size", engine.tensor_parallel_size)
    _add_memory(command, scenario, built)
    if not engine.async_scheduling:
        command.add("--disable-overlap-schedule")
    if policy == "priority":
        command.add("--enable-priority-scheduling")
        command.add("--schedule-low-priority-values-first")
        command.add("--disable-priority-preemption")
    return command.text


def _add_prefill(command: CommandText, built: Built) -> None:
    engine = built.engine
    if not engine.enable_chunked_prefill:
        command.add("--chunked-prefill-size", -1)
        command.add("--max-prefill-tokens", engine.max_num_batched_tokens)
    else:
        command.add("--chunked-prefill-size", engine.max_num_batched_tokens)
        if engine.batching == "chunked":
            command.add("--enable-mixed-chunk")


def _add_memory(command: CommandText, scenario: Scenario, built: Built) -> None:
    engine, context = built.engine, built.model.context
    if built.memory is not None:
        # "model weights + KV cache pool" of the GPU's memory, where adapter slots are taken from that share as well.
        static = built.memory.weights_bytes + built.memory.lora_bytes + built.memory.kv_bytes
        command.add("--mem-fraction-static", int(1000 * static / built.memory.total_bytes) / 1000)
    else:
        command.add("--max-total-tokens", engine.require_blocks() * engine.block_size)
    if engine.block_size != _BLOCK_SIZE:
        command.add("--page-size", engine.block_size)
    if engine.max_model_len is not None and (engine.max_model_len != context.default or context.note):
        command.add("--context-length", engine.max_model_len)
    if built.dtype == "fp8" and built.model.saved_dtype != "fp8":
        command.add("--quantization", "fp8")
    elif built.dtype in _DTYPES and built.dtype != built.model.dtype:
        command.add("--dtype", _DTYPES[built.dtype])
    if built.kv_cache_dtype != built.model.wide_dtype(built.dtype) and built.kv_cache_dtype in _KV_DTYPES:
        command.add("--kv-cache-dtype", _KV_DTYPES[built.kv_cache_dtype])


def _base_requests(scenario: Scenario) -> bool:
    """Whether some requests are for the base model, which takes a place in SGLang's batch like an adapter."""
    streams = scenario.workload.streams or ()
    return scenario.adapters.base_share > 0 or any(stream.base_share for stream in streams)


def _slots(scenario: Scenario, built: Built) -> int:
    return built.engine.max_loras + _base_requests(scenario)


def _overlaps(scenario: Scenario, built: Built) -> bool:
    """Whether SGLang can load adapters beside compute: it refuses to with more than twice as many in host memory."""
    return built.engine.adapter_loading == "async" and built.engine.host_slots <= 2 * _slots(scenario, built)


def sglang_command_notes(scenario: Scenario, built: Built) -> list[str]:
    """What the command cannot say of the plan, or says otherwise: one sentence each."""
    engine, notes = built.engine, []
    if built.adapters and _base_requests(scenario):
        notes.append(
            f"SGLang counts the base model as one of max-loras-per-batch: its command has {_slots(scenario, built)} "
            f"for {engine.max_loras} adapters and the base model."
        )
    if engine.adapter_loading == "async" and not _overlaps(scenario, built):
        notes.append(
            f"SGLang overlaps adapter loads with compute only up to {2 * _slots(scenario, built)} adapters in host "
            f"memory, twice its max-loras-per-batch, and the plan has {engine.host_slots}: its command loads them one "
            "step at a time, or set engine.max_cpu_loras lower."
        )
    missing = [
        name
        for name, given in (
            ("long_prefill_token_threshold", engine.long_prefill_token_threshold),
            ("watermark", engine.watermark),
            (
                "scheduler_reserve_full_isl false",
                not engine.scheduler_reserve_full_isl and engine.batching == "chunked",
            ),
        )
        if given
    ]
    if missing:
        notes.append(f"SGLang has no counterpart of {' and '.join(missing)}.")
    if built.kv_cache_dtype != built.model.wide_dtype(built.dtype) and built.kv_cache_dtype not in _KV_DTYPES:
        notes.append(f"SGLang has no option for a KV cache in {built.kv_cache_dtype}: it takes that of the model.")
    notes.append(
        "SGLang admits and batches by rules of its own, so the plan's figures hold for it less closely than for vLLM: "
        "measure before you rely on them."
    )
    return notes
