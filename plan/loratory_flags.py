"""loratory_flags: the ``loratory serve`` command of a planned replica, and what that server does otherwise.

An option is given where it is about LoRA or the sizes of batches, or where the plan differs from the server's default.
"""

from __future__ import annotations

import json

from loratory.experiment.resolve import Built
from loratory.plan.command_text import CommandText, model_argument
from loratory.scenarios.schema import Scenario
from loratory.serving.config import EngineConfig
from loratory.sim.catalogue import resolve_targets

OF_ITS_OWN = ("max_loras", "max_cpu_loras", "max_lora_rank", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
"""Settings of `EngineConfig` that have an option of their own here; with ``num_gpu_blocks``, where the plan sets it."""

NOT_THERE = ("preset", "num_gpu_blocks", "gpu_memory_utilization", "async_scheduling", "tensor_parallel_size", "memory")
"""Those that are given otherwise, or that the server refuses, which a note then says."""

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def loratory_command(scenario: Scenario, built: Built) -> str:
    """The command of one replica."""
    engine, context = built.engine, built.model.context
    command = CommandText("loratory", "serve", checkpoint(scenario, built))
    command.add("--policy", scenario.policies[0])
    if built.adapters:
        command.add("--max-loras", engine.max_loras)
        command.add("--max-cpu-loras", engine.host_slots)
        command.add("--max-lora-rank", engine.max_lora_rank)
        if scenario.memory.slot_modules == "targets":
            command.add("--lora-target-modules", ",".join(resolve_targets(scenario.adapters.target_modules)))
    command.add("--max-num-seqs", engine.max_num_seqs)
    command.add("--max-num-batched-tokens", engine.max_num_batched_tokens)
    if engine.max_model_len is not None and (engine.max_model_len != context.default or context.note):
        command.add("--max-model-len", engine.max_model_len)
    if scenario.engine.num_gpu_blocks is not None:
        command.add("--num-gpu-blocks", scenario.engine.num_gpu_blocks)
    elif built.memory is not None and engine.gpu_memory_utilization != _default("gpu_memory_utilization"):
        command.add("--kv-memory", f"{built.memory.kv_bytes >> 20}MiB")
    if built.dtype in _DTYPES and built.dtype != built.model.dtype:
        command.add("--dtype", _DTYPES[built.dtype])
    if engine.preset != _default("preset"):
        command.add("--engine", f"as={engine.preset}")
    plain = EngineConfig(preset=engine.preset)
    for key in EngineConfig.model_fields:
        value = getattr(engine, key)
        if key not in (*OF_ITS_OWN, *NOT_THERE) and value != getattr(plain, key):
            command.add("--engine", f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    return command.text


def checkpoint(scenario: Scenario, built: Built) -> str:
    """What the server gets as its model: the scenario's checkpoint, or what `model_argument` names."""
    return scenario.executor.checkpoint or model_argument(scenario, built.model)


def loratory_command_notes(scenario: Scenario, built: Built) -> list[str]:
    """What the command cannot say of the plan: one sentence each."""
    engine = built.engine
    lacks = []
    if engine.tensor_parallel_size > 1:
        lacks.append(f"on one GPU, where the plan has {engine.tensor_parallel_size}")
    if engine.async_scheduling:
        lacks.append("and without async_scheduling")
    notes = [f"loratory serve serves one replica{''.join(f', {each}' for each in lacks)}."]
    if built.dtype not in _DTYPES:
        notes.append(f"loratory serve computes in 16 or 32 bit, and the plan in {built.dtype}.")
    if built.kv_cache_dtype != built.model.wide_dtype(built.dtype):
        notes.append(
            f"loratory serve has no option for a KV cache in {built.kv_cache_dtype}: it takes the model's dtype."
        )
    return notes


def _default(key: str) -> object:
    return EngineConfig.model_fields[key].default
