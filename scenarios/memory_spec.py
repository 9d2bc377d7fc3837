"""MemorySpec: what the memory model assumes beyond the engine's settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from loratory.scenarios.schema_types import Index, Section


class MemorySpec(Section):
    """What takes memory on a GPU, beyond the engine's settings. An omitted key has the memory model's default."""

    dtype: Literal["fp32", "fp16", "bf16", "fp8"] | None = Field(
        None,
        description="dtype of the weights, for cost.kind linear or profile, whose step times hold for one dtype; "
        "by default the model's. With roofline and kernels set cost.dtype",
    )
    kv_cache_dtype: Literal["fp16", "bf16", "fp8"] | None = Field(
        None,
        description="dtype of the KV cache, for memory and for attention by roofline and kernels; by default 16 bit",
    )
    overhead_bytes: Index | None = Field(
        None, description="CUDA context and libraries, outside PyTorch; by default 1,020 MiB"
    )
    cuda_graph_bytes: Index | None = Field(
        None, description="captured CUDA graphs, where the engine counts them; by default 0, as in vLLM 0.8.5"
    )
    slot_modules: Literal["all", "targets"] | None = Field(
        None, description="linear modules that have slots: all (default, vLLM), or those adapters.target_modules names"
    )
    embedding_slots: bool | None = Field(
        None, description="slots for embedding and output head; by default for Llama and Mistral, as in vLLM 0.8.5"
    )
    lora_extra_vocab: Index | None = Field(
        None, description="vocabulary rows an adapter slot adds; by default 256, 0 from vLLM 0.12 on"
    )

    def slot_keys(self) -> list[str]:
        """The keys given that are about adapter slots."""
        keys = ("slot_modules", "embedding_slots", "lora_extra_vocab")
        return [key for key in keys if getattr(self, key) is not None]
