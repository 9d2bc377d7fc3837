"""vllm_flags: the ``vllm serve`` command of a planned replica, under the names of vLLM 0.32.

An option is given where it is about LoRA, where vLLM's default depends on the GPU, or where the plan differs from the
default (vllm/config and vllm/engine/arg_utils.py of vLLM 0.32).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loratory.experiment.resolve import Built
from loratory.plan.command_text import CommandText, model_argument
from loratory.scenarios.schema import Scenario
from loratory.serving.config import EngineConfig
from loratory.serving.vllm_limits import LORA_RANKS, vllm_notes
from loratory.sim.catalogue import resolve_targets

VLLM_VERSION = "0.32"

_MEMORY_UTILIZATION = 0.92
_BLOCK_SIZE = 16
_DTYPES: Mapping[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def vllm_command(scenario: Scenario, built: Built, policy: Mapping[str, Any] | None) -> str:
    """The command of one replica. ``policy``: the settings of the policy ``priority``, None under any other."""
    engine = built.engine
    command = CommandText("vllm", "serve", model_argument(scenario, built.model))
    if built.adapters:
        command.add("--enable-lora")
        command.add("--max-loras", engine.max_loras)
        command.add("--max-cpu-loras", engine.host_slots)
        command.add("--max-lora-rank", vllm_rank(engine))
        if scenario.memory.slot_modules == "targets":
            command.add("--lora-target-modules", *resolve_targets(scenario.adapters.target_modules))
    command.add("--max-num-seqs", engine.max_num_seqs)
    command.add("--max-num-batched-tokens", engine.max_num_batched_tokens)
    if engine.tensor_parallel_size > 1:
        command.add("--tensor-parallel-size", engine.tensor_parallel_size)
    _add_memory(command, scenario, built)
    _add_scheduler(command, engine)
    if policy is not None:
        command.add("--scheduling-policy", "priority")
    return command.text


def _add_memory(command: CommandText, scenario: Scenario, built: Built) -> None:
    engine, context = built.engine, built.model.context
    if engine.gpu_memory_utilization != _MEMORY_UTILIZATION:
        command.add("--gpu-memory-utilization", engine.gpu_memory_utilization)
    if engine.max_model_len is not None and (engine.max_model_len != context.default or context.note):
        command.add("--max-model-len", engine.max_model_len)
    if built.dtype == "fp8" and built.model.saved_dtype != "fp8":
        command.add("--quantization", "fp8")
    elif built.dtype in _DTYPES and built.dtype != built.model.dtype:
        command.add("--dtype", _DTYPES[built.dtype])
    if built.kv_cache_dtype != built.model.wide_dtype(built.dtype):
        command.add("--kv-cache-dtype", {**_DTYPES, "fp8": "fp8"}[built.kv_cache_dtype])
    if engine.block_size != _BLOCK_SIZE:
        command.add("--block-size", engine.block_size)
    if scenario.engine.num_gpu_blocks is not None:
        # Of vLLM's blocks, one is the null block, whether or not the plan counts it.
        command.add("--num-gpu-blocks-override", scenario.engine.num_gpu_blocks + (not engine.null_block))


def _add_scheduler(command: CommandText, engine: EngineConfig) -> None:
    if not engine.enable_chunked_prefill:
        command.add("--no-enable-chunked-prefill")
    if engine.long_prefill_token_threshold:
        command.add("--long-prefill-token-threshold", engine.long_prefill_token_threshold)
    if not engine.scheduler_reserve_full_isl:
        command.add("--no-scheduler-reserve-full-isl")
    if engine.watermark:
        command.add("--watermark", engine.watermark)
    if not engine.async_scheduling:
        command.add("--no-async-scheduling")


def vllm_rank(engine: EngineConfig) -> int:
    """The smallest of the ranks that vLLM takes which holds ``max_lora_rank``, or its largest."""
    return next((rank for rank in LORA_RANKS if rank >= engine.max_lora_rank), LORA_RANKS[-1])


def vllm_command_notes(built: Built) -> list[str]:
    """What the command cannot say of the plan, or says otherwise: one sentence each."""
    engine, rank = built.engine, vllm_rank(built.engine)
    notes = []
    if built.adapters and rank > engine.max_lora_rank:
        notes.append(
            f"vLLM takes {', '.join(map(str, LORA_RANKS))} as max_lora_rank: its command has {rank}, the next above "
            f"{engine.max_lora_rank}. Its slots take more memory than planned, so plan again with "
            f"engine.max_lora_rank {rank}."
        )
    elif built.adapters and rank < engine.max_lora_rank:
        notes.append(
            f"vLLM takes no max_lora_rank above {rank}: adapters of a higher rank, up to {engine.max_lora_rank} in the "
            "plan, do not load there."
        )
    others = [note for note in vllm_notes(engine, adapters=False) if note]
    notes += [f"{note}." for note in others]
    if engine.long_prefill_threshold_alone and engine.long_prefill_token_threshold:
        notes.append(
            f"vLLM {VLLM_VERSION} does not hold a lone request to long_prefill_token_threshold, and the plan does."
        )
    return notes
