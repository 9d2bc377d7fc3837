"""ModelSpec: a base model as the simulator knows it, and the bytes of weights, KV cache and adapters on one GPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from loratory.errors import InputError
from loratory.models.context_limit import ContextLimit
from loratory.models.linear_layers import HEAD, LINEAR_MODULES, TARGETS
from loratory.models.shape import ModelShape
from loratory.sim.catalogue.names import unknown_name

DTYPE_BYTES: Mapping[str, int] = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
"""Bytes of one number, by dtype."""

_ROW_PARALLEL = frozenset({"o_proj", "down_proj"})


def dtype_bytes(dtype: str) -> int:
    """Bytes of one number of ``dtype``; an `InputError` for an unknown dtype."""
    if dtype not in DTYPE_BYTES:
        raise unknown_name("dtype", dtype, DTYPE_BYTES)
    return DTYPE_BYTES[dtype]


def resolve_targets(targets: str | Iterable[str]) -> tuple[str, ...]:
    """LoRA target modules in the order of `TARGETS`. ``all-linear`` is `LINEAR_MODULES`, ``q`` is ``q_proj``."""
    if targets == "all-linear":
        return LINEAR_MODULES
    wanted: set[str] = set()
    for name in [targets] if isinstance(targets, str) else targets:
        full = name if name in TARGETS else f"{name}_proj"
        if full not in TARGETS:
            raise unknown_name("LoRA target module", name, (*TARGETS, "all-linear"))
        wanted.add(full)
    return tuple(module for module in TARGETS if module in wanted)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A base model: its shape, and in which dtypes it is saved and computed.

    ``context`` is how many tokens a request may have. ``dtype`` is what an engine computes it in by default,
    ``saved_dtype`` what its checkpoint is saved in. ``tp`` arguments are a tensor-parallel degree, and their results
    are per GPU.
    """

    name: str
    shape: ModelShape
    context: ContextLimit
    dtype: str = "bf16"
    saved_dtype: str = "bf16"
    source: str = ""

    def check_tp(self, tp: int) -> None:
        """Raise `InputError` unless the attention heads and the MLP divide over ``tp`` GPUs."""
        heads, kv_heads, mlp = self.shape.heads, self.shape.kv_heads, self.shape.intermediate
        if tp < 1 or heads % tp or mlp % tp or (kv_heads % tp and tp % kv_heads):
            raise InputError(
                f"tensor_parallel_size {tp} does not divide {self.name}: it has {heads} attention heads, "
                f"{kv_heads} KV heads and an MLP of {mlp}, so use a common divisor"
            )

    def kv_width_per_gpu(self, tp: int = 1) -> int:
        """Key width on one GPU; KV heads are replicated when there are fewer of them than GPUs."""
        return max(1, self.shape.kv_heads // tp) * self.shape.head_dim

    def wide_dtype(self, dtype: str | None = None) -> str:
        """dtype of what is not a linear layer's weight where those are in ``dtype``.

        fp8 is for the weights of the layers' linear modules alone: embedding, output head, norms, activations, adapters
        and, by default, the KV cache stay in 16 bit (vllm/model_executor/layers/quantization/fp8.py).
        """
        dtype = dtype or self.dtype
        if dtype_bytes(dtype) > 1:
            return dtype
        return self.dtype if dtype_bytes(self.dtype) == 2 else "bf16"

    def weight_bytes(self, dtype: str | None = None, tp: int = 1) -> int:
        """Weight bytes on one GPU: linear layers, embedding and head are split, norms and missing KV heads repeated.

        ``dtype`` is that of the linear layers; the rest is in `wide_dtype`.
        """
        self.check_tp(tp)
        dtype, shape = dtype or self.dtype, self.shape
        parts = shape.parameters()
        replicated_kv = self.kv_width_per_gpu(tp) - shape.kv_width / tp
        linear = shape.linear_parameters / tp + 2 * shape.layers * replicated_kv * shape.hidden
        biases = parts["attention"] + parts["mlp"] - shape.linear_parameters
        rest = (parts["embedding"] + biases + parts["lm_head"]) / tp + parts["norms"]
        rest += 2 * shape.layers * replicated_kv * (1 if shape.qkv_bias else 0)
        return math.ceil(linear * dtype_bytes(dtype) + rest * dtype_bytes(self.wide_dtype(dtype)))

    def kv_bytes_per_token(self, tp: int = 1, dtype: str | None = None) -> int:
        """Bytes one token's keys and values take on one GPU."""
        return 2 * self.shape.layers * self.kv_width_per_gpu(tp) * dtype_bytes(dtype or self.dtype)

    def adapter_parameters(self, rank: int, targets: str | Iterable[str] = "all-linear") -> int:
        """Parameters of a LoRA adapter of ``rank`` on ``targets``, in every layer where they are of layers."""
        return rank * sum(self.shape.count(m) * sum(self.shape.widths(m)) for m in resolve_targets(targets))

    def adapter_bytes(self, rank: int, targets: str | Iterable[str] = "all-linear", dtype: str | None = None) -> int:
        """Bytes of a LoRA adapter; 2 * layers * rank * sum(in + out) in a 16-bit dtype, without an output head."""
        return self.adapter_parameters(rank, targets) * dtype_bytes(dtype or self.dtype)

    def lora_shard(self, module: str, tp: int = 1) -> tuple[int, int]:
        """(input, output) widths of a module's LoRA A and B on one GPU, as vLLM shards them.

        Column-parallel modules (q, k, v, gate, up) keep A whole and split B; row-parallel ones (o, down) split A and
        keep B whole (vllm/lora/layers, ``fully_sharded_loras=False``). The output head's are whole on every GPU: they
        are applied to logits that have been gathered (vllm/lora/layers/logits_processor.py).
        """
        width_in, width_out = self.shape.widths(module)
        if module in _ROW_PARALLEL:
            return width_in // tp, width_out
        if module == HEAD:
            return width_in, width_out
        return width_in, self.kv_width_per_gpu(tp) if module in ("k_proj", "v_proj") else width_out // tp

    def slot_bytes(
        self, max_rank: int, targets: str | Iterable[str] = "all-linear", tp: int = 1, dtype: str | None = None
    ) -> int:
        """Bytes of one preallocated adapter slot on one GPU, linear modules only; `loratory.sim.cost.memory` adds the
        rest."""
        width = sum(self.shape.count(m) * sum(self.lora_shard(m, tp)) for m in resolve_targets(targets))
        return max_rank * width * dtype_bytes(dtype or self.dtype)
