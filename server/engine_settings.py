"""Engine settings: the EngineConfig of a server, with KV blocks for the memory that there is."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from loratory.errors import InputError
from loratory.executor.device_memory import available_bytes
from loratory.executor.lora.shapes import LoRAShapes
from loratory.executor.model import Model
from loratory.models.linear_layers import LINEAR_MODULES, TARGETS
from loratory.server.settings import ServerSettings
from loratory.serving.config import EngineConfig
from loratory.user_files import size_bytes

LOG = logging.getLogger("loratory.server")

MAX_LORAS = 8
"""Adapter slots where none are asked for. vLLM's default is 1, with which a batch holds one adapter."""

CPU_SHARE, GPU_SHARE = 0.25, 0.9
"""Share of the free memory that KV blocks get where they are not given: other programs need a CPU's memory."""


def target_modules(settings: ServerSettings) -> tuple[str, ...]:
    """The modules that adapter slots have room for. Raises `InputError` for one that no model has."""
    names = tuple(dict.fromkeys(settings.target_modules)) or LINEAR_MODULES
    if unknown := [name for name in names if name not in TARGETS]:
        raise InputError(f"--lora-target-modules has {unknown[0]!r}: use some of {', '.join(TARGETS)}")
    return names


def engine_config(settings: ServerSettings, model: Model, targets: Iterable[str]) -> EngineConfig:
    """The configuration of the engine. Where ``num_gpu_blocks`` is not given, the log says how it was chosen.

    Raises `InputError` for settings that exclude each other, and where the memory does not hold one sequence.
    """
    given: dict[str, Any] = {"max_loras": MAX_LORAS, "async_scheduling": False} | dict(settings.engine)
    if "max_num_seqs" in given and "max_num_batched_tokens" not in given:
        given["max_num_batched_tokens"] = max(2048, given["max_num_seqs"])
    try:
        config = EngineConfig(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")) from None
    longest = min(config.max_model_len or model.config.max_positions, model.config.max_positions)
    if config.max_model_len is not None and config.max_model_len > longest:
        raise InputError(f"--max-model-len is {config.max_model_len}, but the model has {longest} positions: lower it")
    _check_memory(config, model, targets)
    if config.num_gpu_blocks is None:
        blocks = _affordable_blocks(settings, config, model, targets, longest)
        config = config.model_copy(update={"num_gpu_blocks": blocks})
        _check_memory(config, model, targets)
    room = config.require_blocks() * config.block_size
    if config.max_model_len is None:
        if room < longest:
            LOG.info("max_model_len is %d, which is what the KV cache holds; the model could do %d", room, longest)
        config = config.model_copy(update={"max_model_len": min(longest, room)})
    elif config.max_model_len > room:
        raise InputError(
            f"--max-model-len is {config.max_model_len}, but the KV cache holds {room} tokens: lower it, or give more "
            "KV blocks (--num-gpu-blocks, --kv-memory)"
        )
    return config


def _affordable_blocks(
    settings: ServerSettings, config: EngineConfig, model: Model, targets: Iterable[str], longest: int
) -> int:
    """KV blocks in the memory that is asked for, or a share of what is free, but no more than can be used."""
    block_bytes = _block_bytes(config, model)
    shared = config.null_block + 1  # one more than tokens need is for padded rows
    useful = -(-longest // config.block_size) * config.max_num_seqs
    if settings.kv_memory is not None:
        budget, why = size_bytes(settings.kv_memory, "--kv-memory"), "as --kv-memory says"
    else:
        free = available_bytes(model.device)
        if free is None:
            raise InputError("the free memory of this machine is not known: give --kv-memory or --num-gpu-blocks")
        share = GPU_SHARE if model.device.type == "cuda" else CPU_SHARE
        left = free - _slot_bytes(config, model, targets) - _step_bytes(config, model)
        budget = int(left * share)
        why = f"{share:.0%} of the {left / 1e9:.1f} GB that are free beside adapter slots and steps"
    blocks = budget // block_bytes - shared
    if blocks < -(-min(longest, 64) // config.block_size):
        raise InputError(
            f"the memory for KV blocks is {max(budget, 0) / 1e9:.2f} GB ({why}), which does not hold one sequence: "
            "give more with --kv-memory"
        )
    if blocks >= useful:
        blocks, why = useful, f"all that {config.max_num_seqs} sequences of {longest} tokens can fill"
    held, size = blocks * config.block_size, (blocks + shared) * block_bytes / 1e9
    LOG.info(
        "KV cache: %s blocks of %d tokens (%s tokens, %.2f GB), %s", f"{blocks:,}", config.block_size, f"{held:,}",
        size, why,
    )  # fmt: skip
    return int(blocks) + config.null_block


def _check_memory(config: EngineConfig, model: Model, targets: Iterable[str]) -> None:
    """Raises `InputError`, which names the option to lower, where slots, a step or the blocks asked for do not fit."""
    free = available_bytes(model.device)
    if free is None:
        return
    slots, step = _slot_bytes(config, model, targets), _step_bytes(config, model)
    if slots > free:
        raise InputError(
            f"{config.max_loras:,} adapter slots of rank {config.max_lora_rank:,} need {slots / 1e9:,.1f} GB, and "
            f"{free / 1e9:,.1f} GB are free: lower --max-loras or --max-lora-rank"
        )
    if slots + step > free:
        raise InputError(
            f"a step of {config.max_num_batched_tokens:,} tokens and {config.max_num_seqs:,} sequences needs about "
            f"{step / 1e9:,.1f} GB, and {(free - slots) / 1e9:,.1f} GB are free beside the adapter slots: lower "
            "--max-num-batched-tokens or --max-num-seqs"
        )
    blocks = 0 if config.num_gpu_blocks is None else config.num_gpu_blocks * _block_bytes(config, model)
    if slots + step + blocks > free:
        raise InputError(
            f"{config.num_gpu_blocks:,} KV blocks need {blocks / 1e9:,.1f} GB, and {(free - slots - step) / 1e9:,.1f} "
            "GB are free beside adapter slots and steps: lower --num-gpu-blocks or --kv-memory"
        )


def _block_bytes(config: EngineConfig, model: Model) -> int:
    """Keys and values of one block."""
    return 2 * model.shape.layers * model.shape.kv_width * model.dtype.itemsize * config.block_size


def _slot_bytes(config: EngineConfig, model: Model, targets: Iterable[str]) -> int:
    """Adapter slots, each as large as the largest rank."""
    numbers = LoRAShapes(model.shape, tuple(targets)).numbers_per_rank
    return numbers * config.max_lora_rank * config.max_loras * model.dtype.itemsize


def _step_bytes(config: EngineConfig, model: Model) -> int:
    """About what a step needs beside the weights: activations of all its tokens, logits of all its sequences."""
    shape, tokens = model.shape, config.max_num_batched_tokens
    activations = tokens * (3 * shape.intermediate + 4 * shape.hidden + 2 * shape.q_width) * model.dtype.itemsize
    return activations + config.max_num_seqs * shape.vocab * 8
