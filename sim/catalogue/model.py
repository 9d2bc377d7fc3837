"""ModelSpec: the shapes of a decoder-only transformer, and the sizes and LoRA shapes that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from loratory.errors import InputError
from loratory.models.context_limit import ContextLimit
from loratory.sim.catalogue.names import unknown_name

DTYPE_BYTES: Mapping[str, int] = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
"""Bytes of one number, by dtype."""

LORA_MODULES: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear modules of a layer that a LoRA adapter can target, in vLLM's order of layers."""

HEAD = "lm_head"
"""The output head, which an adapter can target, too. It is in no layer, and ``all-linear`` leaves it out."""

TARGETS: tuple[str, ...] = (*LORA_MODULES, HEAD)
"""All that a LoRA adapter can target."""

_ROW_PARALLEL = frozenset({"o_proj", "down_proj"})


def dtype_bytes(dtype: str) -> int:
    """Bytes of one number of ``dtype``; an `InputError` for a dtype nobody knows."""
    if dtype not in DTYPE_BYTES:
        raise unknown_name("dtype", dtype, DTYPE_BYTES)
    return DTYPE_BYTES[dtype]


def resolve_targets(targets: str | Iterable[str]) -> tuple[str, ...]:
    """LoRA target modules in the order of `TARGETS`. ``all-linear`` is `LORA_MODULES`, ``q`` is ``q_proj``."""
    if targets == "all-linear":
        return LORA_MODULES
    wanted: set[str] = set()
    for name in [targets] if isinstance(targets, str) else targets:
        full = name if name in TARGETS else f"{name}_proj"
        if full not in TARGETS:
            raise unknown_name("LoRA target module", name, (*TARGETS, "all-linear"))
        wanted.add(full)
    return tuple(module for module in TARGETS if module in wanted)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A Llama-like model: grouped-query attention, gated MLP, RMS norms. Names are those of Hugging Face configs.

    ``context`` is how many tokens a request may have. ``dtype`` is what an engine computes it in by default,
    ``saved_dtype`` what its checkpoint is saved in. ``tp`` arguments are a tensor-parallel degree, and their results
    are per GPU.
    """

    name: str
    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: ContextLimit
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dtype: str = "bf16"
    saved_dtype: str = "bf16"
    source: str = ""

    @property
    def q_size(self) -> int:
        """Width of the query projection and of the attention output."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the key projection, and of the value projection."""
        return self.kv_heads * self.head_dim

    def check_tp(self, tp: int) -> None:
        """Raise `InputError` unless the attention heads and the MLP divide over ``tp`` GPUs."""
        if tp < 1 or self.heads % tp or self.intermediate % tp or (self.kv_heads % tp and tp % self.kv_heads):
            raise InputError(
                f"tensor_parallel_size {tp} does not divide {self.name}: it has {self.heads} attention heads, "
                f"{self.kv_heads} KV heads and an MLP of {self.intermediate}, so use a common divisor"
            )

    def kv_size_per_gpu(self, tp: int = 1) -> int:
        """Key width on one GPU; KV heads are replicated when there are fewer of them than GPUs."""
        return max(1, self.kv_heads // tp) * self.head_dim

    def module_shape(self, module: str) -> tuple[int, int]:
        """(input, output) widths of one of `TARGETS`, over all GPUs."""
        shapes = {
            "q_proj": (self.hidden, self.q_size),
            "k_proj": (self.hidden, self.kv_size),
            "v_proj": (self.hidden, self.kv_size),
            "o_proj": (self.q_size, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
            HEAD: (self.hidden, self.vocab),
        }
        return shapes[module]

    def module_count(self, module: str) -> int:
        """How many of one of `TARGETS` there are."""
        return 1 if module == HEAD else self.layers

    def parameters(self) -> dict[str, int]:
        """Parameter counts by part: embedding, attention, mlp, norms, lm_head (0 when tied to the embedding)."""
        qkv_out = self.q_size + 2 * self.kv_size
        attention = self.hidden * qkv_out + self.q_size * self.hidden
        attention += (qkv_out if self.qkv_bias else 0) + (self.hidden if self.o_bias else 0)
        mlp = 3 * self.hidden * self.intermediate + (2 * self.intermediate + self.hidden if self.mlp_bias else 0)
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return {
            "embedding": self.vocab * self.hidden,
            "attention": self.layers * attention,
            "mlp": self.layers * mlp,
            "norms": self.layers * norms + self.hidden,
            "lm_head": 0 if self.tie_word_embeddings else self.vocab * self.hidden,
        }

    @property
    def parameter_count(self) -> int:
        """All parameters."""
        return sum(self.parameters().values())

    @property
    def linear_parameters(self) -> int:
        """Weights of the layers' linear modules: without embedding, output head, norms and biases."""
        return self.layers * sum(i * o for i, o in map(self.module_shape, LORA_MODULES))

    def linear_flops(self, tokens: int, sampled: int = 0) -> float:
        """FLOPs of the linear layers over ``tokens``, plus the output head over ``sampled`` positions."""
        return 2.0 * self.linear_parameters * tokens + 2.0 * self.hidden * self.vocab * sampled

    def wide_dtype(self, dtype: str | None = None) -> str:
        """dtype of what is not a linear layer's weight where those are in ``dtype``.

        fp8 is for the weights of the layers' linear modules alone: embedding, output head, norms, activations, adapters
        and, unless told otherwise, the KV cache stay in 16 bit (vllm/model_executor/layers/quantization/fp8.py).
        """
        dtype = dtype or self.dtype
        if dtype_bytes(dtype) > 1:
            return dtype
        return self.dtype if dtype_bytes(self.dtype) == 2 else "bf16"

    def weight_bytes(self, dtype: str | None = None, tp: int = 1) -> int:
        """Weight bytes on one GPU: linear layers, embedding and head are split, norms and missing KV heads repeated.

        ``dtype`` is that of the linear layers; `wide_dtype` says what the rest is in.
        """
        self.check_tp(tp)
        dtype = dtype or self.dtype
        parts = self.parameters()
        replicated_kv = self.kv_size_per_gpu(tp) - self.kv_size / tp
        linear = self.linear_parameters / tp + 2 * self.layers * replicated_kv * self.hidden
        biases = parts["attention"] + parts["mlp"] - self.linear_parameters
        rest = (parts["embedding"] + biases + parts["lm_head"]) / tp + parts["norms"]
        rest += 2 * self.layers * replicated_kv * (1 if self.qkv_bias else 0)
        return math.ceil(linear * dtype_bytes(dtype) + rest * dtype_bytes(self.wide_dtype(dtype)))

    def kv_bytes_per_token(self, tp: int = 1, dtype: str | None = None) -> int:
        """Bytes one token's keys and values take on one GPU."""
        return 2 * self.layers * self.kv_size_per_gpu(tp) * dtype_bytes(dtype or self.dtype)

    def adapter_parameters(self, rank: int, targets: str | Iterable[str] = "all-linear") -> int:
        """Parameters of a LoRA adapter of ``rank`` on ``targets``, in every layer where they are of layers."""
        return rank * sum(self.module_count(m) * sum(self.module_shape(m)) for m in resolve_targets(targets))

    def adapter_bytes(self, rank: int, targets: str | Iterable[str] = "all-linear", dtype: str | None = None) -> int:
        """Bytes of a LoRA adapter; 2 * layers * rank * sum(in + out) in a 16-bit dtype, without an output head."""
        return self.adapter_parameters(rank, targets) * dtype_bytes(dtype or self.dtype)

    def lora_shard(self, module: str, tp: int = 1) -> tuple[int, int]:
        """(input, output) widths of a module's LoRA A and B on one GPU, as vLLM shards them.

        Column-parallel modules (q, k, v, gate, up) keep A whole and split B; row-parallel ones (o, down) split A and
        keep B whole (vllm/lora/layers, ``fully_sharded_loras=False``). The output head's are whole on every GPU: they
        are applied to logits that have been gathered (vllm/lora/layers/logits_processor.py).
        """
        width_in, width_out = self.module_shape(module)
        if module in _ROW_PARALLEL:
            return width_in // tp, width_out
        if module == HEAD:
            return width_in, width_out
        return width_in, self.kv_size_per_gpu(tp) if module in ("k_proj", "v_proj") else width_out // tp

    def slot_bytes(
        self, max_rank: int, targets: str | Iterable[str] = "all-linear", tp: int = 1, dtype: str | None = None
    ) -> int:
        """Bytes of one preallocated adapter slot on one GPU, linear modules only; `loratory.sim.cost.memory` adds the
        rest."""
        width = sum(self.module_count(m) * sum(self.lora_shard(m, tp)) for m in resolve_targets(targets))
        return max_rank * width * dtype_bytes(dtype or self.dtype)
