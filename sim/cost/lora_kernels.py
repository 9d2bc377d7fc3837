"""LoraKernels: what the adapters of a step add to its kernels, as a sum of terms in the fields of `BatchShape`."""

from __future__ import annotations

from math import ceil
from typing import Protocol

from loratory.errors import InputError
from loratory.models.linear_layers import FUSED, HEAD
from loratory.serving.compiling import mypyc_attr
from loratory.serving.plan import BatchShape
from loratory.sim.catalogue import GPU, ModelSpec, dtype_bytes, resolve_targets

EXPAND_TOKENS, EXPAND_COLUMNS = 64, 128
"""Tokens and output columns of a thread block of vLLM's expand kernel (vllm/lora/ops/triton_ops, 0.8.5)."""

BLOCK_S, IDLE_BLOCK_S = 29.2e-9, 0.724e-9
"""Seconds of a thread block on an H100, all multiprocessors together: python -m loratory.reproduce.fit.lora."""

SLOT_MEMORY_EFFICIENCY = 0.346
"""Share of the memory bandwidth at which kernels that span slots read adapters: from the same fit."""

ADAPTER_LAYER_S = 3e-6
"""Seconds of a layer and adapter where kernels go by adapter."""

_REFERENCE_MULTIPROCESSORS = 132
"""Those of an H100, on which the times of thread blocks were fitted; other GPUs' are scaled by their number."""


class LoraOptions(Protocol):
    """The options of `RooflineOptions` that are read here."""

    @property
    def target_modules(self) -> str | list[str]: ...
    @property
    def memory_efficiency(self) -> float: ...
    @property
    def lora_memory_efficiency(self) -> float | None: ...
    @property
    def lora_kernel_s(self) -> float: ...
    @property
    def lora_adapter_layer_s(self) -> float | None: ...
    @property
    def lora_block_s(self) -> float | None: ...
    @property
    def lora_idle_block_s(self) -> float | None: ...
    @property
    def lora_compute_efficiency(self) -> float: ...


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class LoraKernels:
    """Seconds that adapters add to a step.

    Every step with an adapter launches a shrink and an expand for each merged module of each layer. What they take:

    * by adapter (``slots`` None): the weights of each adapter of the batch are read once, at its own rank;
    * by slots (``slots`` of rank ``max_rank``): as vLLM's kernels, whose grid spans all slots. Weights are read and
      multiplied at ``max_rank``, whatever the adapters' ranks. Each adapter of the batch has the expand's thread blocks
      of all its output columns, ``lora_block_s`` each. Every slot, also an idle one, has them again for every 64 tokens
      of the step, whichever adapter those want: they start and find nothing to do, ``lora_idle_block_s`` each. The
      shrink's blocks show in no measurement beyond the bytes that they read.

    ``tp``: tensor parallel size; adapters are split as vLLM splits them.
    """

    def __init__(
        self, model: ModelSpec, gpu: GPU, tp: int, wide: str, o: LoraOptions, slots: int | None, max_rank: int
    ) -> None:
        size = dtype_bytes(wide)
        per_byte = 1.0 / (gpu.memory_bytes_per_s * o.memory_efficiency)
        per_flop = 1.0 / (gpu.flops_for(wide) * o.lora_compute_efficiency)
        layers, hidden, vocab = model.shape.layers, model.shape.hidden, model.shape.vocab
        targets = resolve_targets(o.target_modules)
        # The output head's matrices are read like a layer's, and meet the sampled positions alone.
        in_layers = [module for module in targets if module != HEAD]
        shards = {module: model.lora_shard(module, tp) for module in in_layers}
        width = sum(i + o_ for i, o_ in shards.values())
        head_width = sum(model.lora_shard(HEAD, tp)) if HEAD in targets else 0
        groups = [[m for m in group if m in targets] for group in FUSED.values()]
        groups = [group for group in groups if group]
        read = sum(shards[group[0]][0] for group in groups)
        written = sum(o_ for _, o_ in shards.values())
        self.width, self.head_width, self.in_layers = layers * width + head_width, head_width, in_layers
        self.step_s = 2 * (layers * len(groups) + (HEAD in targets)) * o.lora_kernel_s
        self.token_s = layers * (read + 2 * written) * size * per_byte
        self.head_s = (hidden + 2 * vocab) * size * per_byte if head_width else 0.0
        efficiency = o.memory_efficiency if slots is None else SLOT_MEMORY_EFFICIENCY
        efficiency = o.lora_memory_efficiency or efficiency
        rank_s = self.width * size / (gpu.memory_bytes_per_s * efficiency)
        token_rank_s = layers * 2.0 * width * per_flop
        head_rank_s = 2.0 * head_width * per_flop
        if slots is None:
            if o.lora_block_s is not None or o.lora_idle_block_s is not None:
                key = "lora_idle_block_s" if o.lora_block_s is None else "lora_block_s"
                raise InputError(
                    f"cost.{key} has no effect, as no LoRA kernels span slots here: remove it, or set cost.engine_times"
                )
            self.adapter_s = layers * (ADAPTER_LAYER_S if o.lora_adapter_layer_s is None else o.lora_adapter_layer_s)
            self.rank_s, self.token_rank_s, self.head_rank_s = rank_s, token_rank_s, head_rank_s
            self.any_token_s = 0.0
            return
        # A padded adapter has max_rank whatever its own rank, so nothing is left that depends on ranks.
        self.rank_s = self.token_rank_s = self.head_rank_s = 0.0
        self.token_s += max_rank * token_rank_s
        self.head_s += max_rank * head_rank_s
        scale = _REFERENCE_MULTIPROCESSORS / gpu.multiprocessors
        # All parts of a merged module have as many blocks as the widest of them.
        expands = layers * sum(len(group) * ceil(max(shards[m][1] for m in group) / EXPAND_COLUMNS) for group in groups)
        block_s = scale * (BLOCK_S if o.lora_block_s is None else o.lora_block_s)
        idle_s = scale * (IDLE_BLOCK_S if o.lora_idle_block_s is None else o.lora_idle_block_s)
        self.adapter_s = max_rank * rank_s + expands * block_s + layers * (o.lora_adapter_layer_s or 0.0)
        self.any_token_s = slots * expands / EXPAND_TOKENS * idle_s

    def seconds(self, shape: BatchShape) -> float:
        """Seconds that the adapters of a step add: 0 without any; never falls in any field."""
        prefill, _, prefill_seqs, decodes, _, adapters, ranks, _, tokens, token_ranks, _ = shape
        if not adapters and not tokens:
            return 0.0
        head = 0.0
        if self.head_s and tokens:
            # A batch does not tell which sampled positions have an adapter: as many as possible are assumed.
            share = min(1.0, (decodes + prefill_seqs) / tokens)
            head = share * (self.head_s * tokens + self.head_rank_s * token_ranks)
        return head + (
            self.step_s
            + self.adapter_s * adapters
            + self.rank_s * ranks
            + self.token_s * tokens
            + self.token_rank_s * token_ranks
            + self.any_token_s * (prefill + decodes)
        )
