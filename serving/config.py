"""EngineConfig: the settings of one engine, under vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loratory.errors import InputError
from loratory.serving.engine_presets import DEFAULT_PRESET, ENGINE_PRESETS, EnginePreset, PresetName


class EngineConfig(BaseModel):
    """Settings of one engine (one model replica). Names and defaults are vLLM V1's where it has the setting.

    ``preset``, which is ``as`` in a scenario, names the engine that is modelled: its defaults hold for every setting
    that is not given (`loratory.serving.engine_presets`).
    The defaults of ``max_num_batched_tokens`` and ``max_num_seqs`` are those of vLLM's API server on GPUs below the
    H100 class (vllm/engine/arg_utils.py); larger GPUs usually run 8192 and 1024.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    preset: PresetName = Field(
        DEFAULT_PRESET, alias="as", description="the engine that is modelled; its settings hold where none is given"
    )
    max_num_batched_tokens: int = Field(2048, ge=1, description="most tokens one step computes")
    max_num_seqs: int = Field(256, ge=1, description="most requests that run at once")
    block_size: int = Field(16, ge=1, description="tokens in one KV block")
    num_gpu_blocks: int | None = Field(None, ge=1, description="number of KV blocks; by default from the memory model")
    null_block: bool = Field(True, description="one of num_gpu_blocks is vLLM's null block, which holds no tokens")
    max_model_len: int | None = Field(
        None, ge=2, description="longest prompt plus output, tokens; by default the model's"
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="share of GPU memory the engine may use")
    enable_chunked_prefill: bool = Field(True, description="split prompts over steps to fill the token budget")
    long_prefill_token_threshold: int = Field(0, ge=0, description="largest prefill chunk, tokens; 0 is no limit")
    long_prefill_threshold_alone: bool = Field(
        False, description="that limit also holds for a request that is alone in the engine"
    )
    scheduler_reserve_full_isl: bool = Field(
        True, description="admit a request only if KV blocks for its whole context are free, not only for its chunk"
    )
    watermark: float = Field(
        0.0, ge=0, lt=1, description="share of num_gpu_blocks that admissions leave free while requests run"
    )
    async_scheduling: bool | None = Field(
        None, description="plan a step while the one before runs; by default as the preset on a simulated GPU"
    )
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

    @model_validator(mode="before")
    @classmethod
    def _as_the_preset(cls, given: Any) -> Any:
        """Fill in the settings that the preset fixes."""
        if not isinstance(given, Mapping):
            return given
        if "as" in given and "preset" in given:
            raise ValueError("as and preset are the same setting: give one of them")
        name = given.get("as", given.get("preset", DEFAULT_PRESET))
        preset = ENGINE_PRESETS.get(name) if isinstance(name, str) else None
        return given if preset is None else {**preset.settings, **given}

    @model_validator(mode="after")
    def _consistent(self) -> EngineConfig:
        if self.async_scheduling and self.batching == "separate":
            raise ValueError(
                "async_scheduling is true, but batching is separate: only vLLM plans ahead, so remove one of them"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens:,}, below max_num_seqs "
                f"({self.max_num_seqs:,}): every running request needs a token in each step, so raise it or lower "
                "max_num_seqs"
            )
        if self.num_gpu_blocks == 1 and self.null_block:
            raise ValueError(
                "num_gpu_blocks is 1, and that is vLLM's null block, which holds no tokens: give 2 or more"
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

    @property
    def modelled(self) -> EnginePreset:
        """The engine that is modelled."""
        return ENGINE_PRESETS[self.preset]

    @property
    def plans_ahead(self) -> bool:
        """Whether a step is planned while the one before runs; where the settings do not say, as the modelled engine
        has it on a GPU."""
        if self.async_scheduling is not None:
            return self.async_scheduling
        return self.modelled.async_scheduling and self.batching == "chunked"

    def require_blocks(self) -> int:
        """The KV blocks that hold tokens: `num_gpu_blocks`, less the null block.

        Raises `InputError` when neither the user nor a memory model has set `num_gpu_blocks`.
        """
        if self.num_gpu_blocks is None:
            raise InputError("engine.num_gpu_blocks is not set: give it, or let a memory model size the KV pool")
        return self.num_gpu_blocks - self.null_block

    @property
    def watermark_blocks(self) -> int:
        """KV blocks that an admission leaves free while requests run, as vLLM rounds them."""
        return int(self.watermark * (self.num_gpu_blocks or 0))
