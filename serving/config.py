"""EngineConfig: the settings of one engine, under vLLM's names."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loratory.errors import InputError


class EngineConfig(BaseModel):
    """Settings of one engine (one model replica). Names and defaults are vLLM V1's where it has the setting.

    The defaults of ``max_num_batched_tokens`` and ``max_num_seqs`` are those of vLLM's API server on GPUs below the
    H100 class (vllm/engine/arg_utils.py); larger GPUs usually run 8192 and 1024.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_num_batched_tokens: int = Field(2048, ge=1, description="most tokens one step computes")
    max_num_seqs: int = Field(256, ge=1, description="most requests that run at once")
    block_size: int = Field(16, ge=1, description="tokens in one KV block")
    num_gpu_blocks: int | None = Field(None, ge=1, description="number of KV blocks; by default from the memory model")
    max_model_len: int | None = Field(
        None, ge=2, description="longest prompt plus output, tokens; by default the model's"
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="share of GPU memory the engine may use")
    enable_chunked_prefill: bool = Field(True, description="split prompts over steps to fill the token budget")
    long_prefill_token_threshold: int = Field(0, ge=0, description="largest prefill chunk, tokens; 0 is no limit")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share one replica")
    max_loras: int = Field(1, ge=1, description="adapters in one batch, and GPU slots")
    max_lora_rank: int = Field(16, ge=1, description="largest adapter rank; every slot is this large")
    max_cpu_loras: int | None = Field(None, ge=1, description="adapters in host memory; by default max_loras")
    adapter_loading: Literal["sync", "async"] = Field(
        "sync", description="sync: the step waits for a load (vLLM); async: loads overlap with compute"
    )
    memory: Literal["slots", "unified"] = Field(
        "slots", description="slots: preallocated adapter slots (vLLM); unified: adapters and KV share a pool (S-LoRA)"
    )
    batching: Literal["chunked", "separate"] = Field(
        "chunked", description="chunked: prefill and decode share a step (vLLM V1); separate: prefill has its own"
    )
    eviction: Literal["lru", "lfu", "fifo", "cost_aware"] = Field(
        "lru", description="which idle adapter is evicted first"
    )

    @model_validator(mode="after")
    def _consistent(self) -> EngineConfig:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens:,}, below max_num_seqs "
                f"({self.max_num_seqs:,}): every running request needs a token in each step, so raise it or lower "
                "max_num_seqs"
            )
        if self.max_cpu_loras is not None and self.max_cpu_loras < self.max_loras:
            raise ValueError(
                f"max_cpu_loras is {self.max_cpu_loras:,}, below max_loras ({self.max_loras:,}): the host cache holds "
                "every adapter that is on the GPU, so raise it"
            )
        return self

    @property
    def host_slots(self) -> int:
        """Adapters the host cache holds: ``max_cpu_loras``, or ``max_loras`` where that is not set."""
        return self.max_loras if self.max_cpu_loras is None else self.max_cpu_loras

    def require_blocks(self) -> int:
        """`num_gpu_blocks`, or an `InputError` when neither the user nor a memory model has set it."""
        if self.num_gpu_blocks is None:
            raise InputError("engine.num_gpu_blocks is not set: give it, or let a memory model size the KV pool")
        return self.num_gpu_blocks
