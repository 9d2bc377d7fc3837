"""kv_blocks: how many KV blocks fit a GPU beside model and adapter slots, itemised, or which setting to lower.

It follows vLLM V1's start-up (0.8.5; vllm/v1/worker/gpu_worker.py, ``determine_available_memory``): what the engine may
use, less the weights, the preallocated adapter slots, the peak of a profiling step and what lies outside PyTorch, is
the KV cache; and one request of ``max_model_len`` must fit in it (``check_enough_kv_cache_memory``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from loratory.errors import InputError
from loratory.models.linear_layers import FUSED, HEAD, LINEAR_MODULES
from loratory.serving.config import EngineConfig
from loratory.serving.vllm_limits import LORA_RANKS
from loratory.sim.catalogue import GPU, ModelSpec, dtype_bytes, gpu_names, resolve_targets
from loratory.sim.catalogue import gpu as catalogue_gpu
from loratory.sim.cost.allocator import CachingAllocator

_MIB = 1 << 20
_GIB = 1 << 30
_FP32 = 4
_SAMPLER_COPIES = 3
_EMBEDDING_LORA_FAMILIES = frozenset({"llama", "mistral"})


class MemoryOptions(BaseModel):
    """What the memory model assumes of the engine beyond `EngineConfig`.

    The default overhead makes the start-up logs of Agullo et al. (vLLM 0.8.5, H100) come out. vLLM allocates slots for
    every linear module whatever the adapters target; an engine that knows the targets needs only those. Captured CUDA
    graphs live in the share of memory left unused in vLLM 0.8.5; newer versions count them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    overhead_bytes: int = Field(default=1020 * _MIB, ge=0, description="CUDA context and libraries, outside PyTorch")
    lora_extra_vocab: int = Field(
        default=256, ge=0, description="vLLM's lora_extra_vocab_size: vocabulary rows a slot adds; 0 from vLLM 0.12 on"
    )
    embedding_slots: bool | None = Field(
        default=None, description="slots for embedding and output head; by default for Llama and Mistral, as in vLLM"
    )
    slot_modules: Literal["all", "targets"] = Field(default="all", description="linear modules that have slots")
    cuda_graph_bytes: int = Field(default=0, ge=0, description="memory of captured graphs, where the engine counts it")
    dtype: str | None = Field(default=None, description="of weights; by default the model's; fp8 as `ModelSpec` says")
    kv_cache_dtype: str | None = Field(default=None, description="of the KV cache; by default 16 bit as the model")


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where one GPU's memory goes, in bytes, and the KV pool that is left.

    ``lora_bytes`` are the slots as the allocator reserves them plus the vocabulary rows they add; 0 when unified, where
    adapters share the KV pool and `adapter_tokens` is how much of it one takes.
    """

    total_bytes: int
    usable_bytes: int
    weights_bytes: int
    lora_bytes: int
    activation_bytes: int
    overhead_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int
    block_size: int
    num_gpu_blocks: int
    slots: int
    max_model_len: int

    @property
    def kv_tokens(self) -> int:
        """Tokens the KV cache holds: vLLM's "GPU KV cache size"."""
        return self.num_gpu_blocks * self.block_size

    def items(self) -> dict[str, int]:
        """Bytes by part; they sum to ``total_bytes``."""
        return {
            "weights": self.weights_bytes,
            "lora_slots": self.lora_bytes,
            "activations": self.activation_bytes,
            "overhead": self.overhead_bytes,
            "kv_cache": self.kv_bytes,
            "not_used": self.total_bytes - self.usable_bytes,
        }


def adapter_tokens(adapter_bytes: int, kv_bytes_per_token: int) -> int:
    """KV cells an adapter takes from a unified pool (S-LoRA, MLSys 2024, section 5): its bytes in tokens, rounded up.

    >>> adapter_tokens(33_554_432, 524_288)     # Llama-2-7B, rank 16 on q, k, v, o: 4 * rank
    64
    """
    return -(-adapter_bytes // kv_bytes_per_token)


def kv_blocks(
    model: ModelSpec,
    gpu: GPU,
    engine: EngineConfig,
    target_modules: str | Iterable[str] = "all-linear",
    options: MemoryOptions | None = None,
    acceptable: Callable[[EngineConfig], bool] = lambda engine: True,
) -> MemoryPlan:
    """The memory plan of one GPU of a replica. ``target_modules`` empty means an engine without LoRA.

    Raises `InputError` when weights, slots and activations leave no KV cache, or less than one request of
    ``max_model_len`` needs; the sentence names the settings to change and their values. It offers only engines for
    which ``acceptable`` is true, for example no rank below that of the adapters.
    """
    question = _Question(model, gpu, engine, resolve_targets(target_modules), options or MemoryOptions())
    plan = question.plan()
    if not _fits(plan):
        raise InputError(_out_of_memory(plan, question, acceptable))
    return plan


def oversized(
    model: ModelSpec,
    gpu: GPU,
    engine: EngineConfig,
    target_modules: str | Iterable[str] = "all-linear",
    options: MemoryOptions | None = None,
) -> str | None:
    """One sentence about a given ``num_gpu_blocks`` that exceeds the GPU's memory; None where it fits.

    The parameters are those of `kv_blocks`. Raises `InputError` if ``tensor_parallel_size`` does not divide the model.
    """
    plan = _Question(model, gpu, engine, resolve_targets(target_modules), options or MemoryOptions()).plan()
    engine.require_blocks()
    given = engine.num_gpu_blocks or 0
    blocks = given * plan.block_size * plan.kv_bytes_per_token
    if blocks <= plan.kv_bytes:
        return None
    return (
        f"num_gpu_blocks {given} is given and overrides the memory model, which has no room for it: with weights, "
        f"{plan.slots} adapter slots and activations it needs {_gib(blocks - plan.kv_bytes + plan.usable_bytes)} GiB, "
        f"and {gpu.name} has {_gib(plan.usable_bytes)} GiB usable"
    )


@dataclass(frozen=True, slots=True)
class _Question:
    """What a memory plan is made for."""

    model: ModelSpec
    gpu: GPU
    engine: EngineConfig
    targets: tuple[str, ...]
    opts: MemoryOptions

    def plan(self) -> MemoryPlan:
        """The plan, whether or not it fits."""
        model, gpu, engine, opts = self.model, self.gpu, self.engine, self.opts
        tp = engine.tensor_parallel_size
        model.check_tp(tp)
        dtype = opts.dtype or model.dtype
        usable = int(gpu.memory_bytes * engine.gpu_memory_utilization)
        weights = _weights_bytes(model, tp, dtype)
        slots = engine.max_loras if self.targets and engine.memory == "slots" else 0
        wide = model.wide_dtype(dtype)
        lora = _lora_bytes(model, slots, engine.max_lora_rank, self.targets, tp, wide, opts)
        activations = _activation_bytes(model, engine, slots, wide, opts)
        overhead = opts.overhead_bytes + opts.cuda_graph_bytes
        per_token = model.kv_bytes_per_token(tp, opts.kv_cache_dtype or wide)
        available = usable - weights - lora - activations - overhead
        return MemoryPlan(
            total_bytes=gpu.memory_bytes,
            usable_bytes=usable,
            weights_bytes=weights,
            lora_bytes=lora,
            activation_bytes=activations,
            overhead_bytes=overhead,
            kv_bytes=available,
            kv_bytes_per_token=per_token,
            block_size=engine.block_size,
            num_gpu_blocks=max(0, available // (per_token * engine.block_size)),
            slots=slots,
            max_model_len=engine.max_model_len or model.context.default,
        )


def _fits(plan: MemoryPlan) -> bool:
    """Whether one request of the longest length fits in the KV cache, as vLLM demands."""
    return plan.num_gpu_blocks > 0 and plan.kv_bytes >= plan.max_model_len * plan.kv_bytes_per_token


def _weights_bytes(model: ModelSpec, tp: int, dtype: str) -> int:
    """Weights on one GPU with the rotary cache (every position x head_dim, shared by all layers)."""
    cache = model.context.most * model.shape.head_dim * dtype_bytes(model.wide_dtype(dtype))
    return model.weight_bytes(dtype, tp) + cache


@functools.lru_cache(maxsize=256)
def _lora_bytes(
    model: ModelSpec, slots: int, rank: int, targets: tuple[str, ...], tp: int, dtype: str, opts: MemoryOptions
) -> int:
    """Bytes the allocator reserves for ``slots`` stacked adapters of ``rank`` on one GPU, in vLLM's order of creation.

    Each merged module gets an A of (slots, rank, in) and a B of (slots, out, rank) for every part of it; embedding and
    output head likewise, with ``lora_extra_vocab`` rows a slot, which the embedding weight holds once more. An output
    head that adapters target has its slots in every family.
    """
    if slots == 0:
        return 0
    size = dtype_bytes(dtype)
    pool = CachingAllocator()
    with_embedding = opts.embedding_slots
    if with_embedding is None:
        with_embedding = model.shape.family in _EMBEDDING_LORA_FAMILIES
    extra = opts.lora_extra_vocab if with_embedding else 0
    rows = model.shape.vocab + extra
    if with_embedding:
        for width in (rows * rank, model.shape.hidden * rank, extra * model.shape.hidden):
            pool.allocate(slots * width * size)
    wanted = LINEAR_MODULES if opts.slot_modules == "all" else targets
    for _ in range(model.shape.layers):
        for group in FUSED.values():
            shards = [model.lora_shard(module, tp) for module in group if module in wanted]
            for width_in, _ in shards:
                pool.allocate(slots * rank * width_in * size)
            for _, width_out in shards:
                pool.allocate(slots * rank * width_out * size)
    if with_embedding or HEAD in targets:
        padded = -(-rows // 256) * 256
        for width in (rank * model.shape.hidden, rank * padded, extra * model.shape.hidden):
            pool.allocate(slots * width * size)
    added_rows = extra * (slots / tp + (0 if model.shape.tied else 1 / tp))
    return pool.reserved + math.ceil(added_rows * model.shape.hidden * size)


def _activation_bytes(model: ModelSpec, engine: EngineConfig, slots: int, dtype: str, opts: MemoryOptions) -> int:
    """Peak of vLLM's profiling step on one GPU: the widest layer, the adapters' logits, or the sampler.

    The sampler runs over min(max_num_seqs, max_num_batched_tokens) rows: the logits in the model's dtype and three
    float32 copies (converted, softmax, top-k renormalised; FlashInfer's sampler), all of vocabulary width.
    """
    size = dtype_bytes(dtype)
    tp = engine.tensor_parallel_size
    tokens = engine.max_num_batched_tokens
    rows = min(engine.max_num_seqs, tokens)
    residual = 2 * tokens * model.shape.hidden * size
    mlp = 3 * tokens * model.shape.intermediate // tp * size
    attention = tokens * (2 * model.shape.q_width + 2 * model.shape.kv_width) // tp * size
    layer = residual + max(mlp, attention)
    logits = rows * model.shape.vocab * size
    lora_logits = 2 * (slots + 1) * opts.lora_extra_vocab * rows * size if slots else 0
    sampler = logits + _SAMPLER_COPIES * rows * model.shape.vocab * _FP32
    return max(layer, tokens * model.shape.hidden * size + max(sampler, 2 * logits + lora_logits))


_REMEDIES = 3
"""Settings that the sentence offers where a model does not fit; it has no room for all of them."""


def _out_of_memory(plan: MemoryPlan, question: _Question, acceptable: Callable[[EngineConfig], bool]) -> str:
    """One sentence: what does not fit, and each setting whose change alone would make room, with its value."""
    engine = question.engine

    def fits(**change: int | float) -> bool:
        try:
            changed = EngineConfig.model_validate(engine.model_dump() | change)
            return _fits(replace(question, engine=changed).plan()) and acceptable(changed)
        except (InputError, ValueError):
            return False

    remedies = []
    candidates: list[tuple[str, int | float, Iterable[int | float]]] = [
        ("gpu_memory_utilization", engine.gpu_memory_utilization, [u / 100 for u in range(1, 96)]),
        ("max_model_len", plan.max_model_len, [max(0, plan.kv_bytes) // plan.kv_bytes_per_token]),
        ("tensor_parallel_size", engine.tensor_parallel_size, [engine.tensor_parallel_size * n for n in (2, 4, 8)]),
    ]
    fills_a_request = plan.kv_bytes >= plan.max_model_len * plan.kv_bytes_per_token
    if fills_a_request:  # so it is one block that is too large
        candidates.insert(0, ("block_size", plan.block_size, [2**n for n in range(12, -1, -1)]))
    if plan.slots:
        candidates.insert(0, ("max_lora_rank", engine.max_lora_rank, LORA_RANKS[::-1]))
        missing = plan.max_model_len * plan.kv_bytes_per_token - plan.kv_bytes
        fewer = max(1, plan.slots - -(-missing * plan.slots // plan.lora_bytes))
        candidates.insert(0, ("max_loras", plan.slots, range(fewer, max(0, fewer - 64), -1)))
    for name, now, values in candidates:
        raises = name in ("gpu_memory_utilization", "tensor_parallel_size")
        usable = (v for v in values if (v > now if raises else 0 < v < now))
        value = next((v for v in usable if fits(**{name: v})), None)
        if value is not None:
            remedies.append(f"{'raise' if raises else 'lower'} {name} to {_number(value)}")
    parts = [f"weights ({_gib(plan.weights_bytes)} GiB)"]
    if plan.slots:
        parts.append(f"{plan.slots} slots of rank {engine.max_lora_rank} ({_gib(plan.lora_bytes)})")
    parts.append(f"activations and overhead ({_gib(plan.activation_bytes + plan.overhead_bytes)})")
    left = f"leave {_gib(plan.kv_bytes)} of" if plan.kv_bytes > 0 else f"take {_gib(-plan.kv_bytes)} more than"
    one, tokens = (
        ("block of block_size", plan.block_size)
        if fills_a_request
        else ("request of max_model_len", plan.max_model_len)
    )
    cache = _gib(tokens * plan.kv_bytes_per_token)
    return (
        f"{question.model.name} does not fit {question.gpu.name}: {', '.join(parts)} {left} the "
        f"{_gib(plan.usable_bytes)} usable; "
        f"a {one} {tokens} needs {cache}: "
        f"{' or '.join(remedies[:_REMEDIES]) or _larger(question, acceptable)}"
    )


def _larger(question: _Question, acceptable: Callable[[EngineConfig], bool]) -> str:
    """A GPU of the catalogue, or several of one, with enough memory; for where no single setting helps."""
    engine, memory_bytes = question.engine, question.gpu.memory_bytes
    dtype = question.opts.dtype or question.model.dtype
    cards = sorted((catalogue_gpu(name) for name in gpu_names()), key=lambda card: card.memory_bytes)
    for factor in (1, 2, 4, 8):
        changed = engine.model_copy(update={"tensor_parallel_size": engine.tensor_parallel_size * factor})
        for card in cards:
            if card.memory_bytes <= memory_bytes or dtype not in card.flops:
                continue
            try:
                fits = _fits(replace(question, gpu=card, engine=changed).plan()) and acceptable(changed)
            except InputError:
                break
            if fits:
                also = f" with tensor_parallel_size {changed.tensor_parallel_size}" if factor > 1 else ""
                return f"use a larger GPU, such as {card.name}{also}"
    return "no single setting makes room, nor does another GPU of the catalogue: use a smaller model"


def _number(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _gib(count: float) -> str:
    return f"{count / _GIB:.2f}"
