"""RooflineOptions: efficiencies and fixed costs of the roofline, with their defaults."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from loratory.sim.cost.engine_times import EngineName
from loratory.sim.cost.options import TransferOptions


class RooflineOptions(BaseModel):
    """Efficiencies (share of the datasheet number that is reached) and fixed costs; the scenario may set any of them.

    Sources: kernel times of Llama-2-7B's linear layers on A100 and H100, and AIConfigurator's step times for
    Llama-3.1-8B on A100, H100 and H200 (vLLM 0.24), tabulated in docs/fidelity.md; thread blocks of LoRA
    kernels and the host's times from hour-long runs of vLLM 0.8.5 by Agullo et al. (arXiv:2508.08343), with
    ``python -m loratory.reproduce.fit.lora``; the first adapter (+10..15 % of a step) and loads (6.4 to 8.1 ms, nearly
    independent of rank) from the same authors' micro-measurements.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine_times: EngineName | None = Field(
        default=None, description="the engine whose host time and LoRA kernels are priced; by default engine.as"
    )
    dtype: str | None = Field(default=None, description="of weights and arithmetic; by default the model's")
    kv_cache_dtype: str | None = Field(default=None, description="of the KV cache; by default 16 bit as the model")
    target_modules: str | list[str] = Field(default="all-linear", description="linear modules the adapters change")
    memory_efficiency: float = Field(
        default=0.76, gt=0, le=1, description="of memory bandwidth, weights and activations"
    )
    compute_efficiency: float = Field(default=0.74, gt=0, le=1, description="of dense FLOP/s, linear layers")
    prefill_attention_efficiency: float = Field(
        default=0.5, gt=0, le=1, description="of dense FLOP/s, prefill attention"
    )
    decode_attention_efficiency: float = Field(
        default=0.64, gt=0, le=1, description="of memory bandwidth, decode attention"
    )
    link_efficiency: float = Field(default=0.8, gt=0, le=1, description="of host link and peer link bandwidth")
    step_overhead_s: float = Field(
        default=1e-4, ge=0, description="per step: scheduling and sampling not hidden by the GPU"
    )
    layer_overhead_s: float | None = Field(
        default=None, ge=0, description="per layer: small kernels; by default by GPU"
    )
    host_layer_s: float = Field(
        default=0.0, ge=0, description="per layer: host time to launch its kernels; a step takes at least their sum"
    )
    decode_attention_latency_s: float = Field(
        default=5e-6, ge=0, description="per layer: least time of decode attention"
    )
    all_reduce_latency_s: float = Field(default=1e-5, ge=0, description="per all-reduce of tensor parallelism")
    lora_kernel_s: float = Field(default=5e-6, ge=0, description="per LoRA kernel (shrink, expand) of a merged module")
    lora_adapter_layer_s: float | None = Field(
        default=None,
        ge=0,
        description="per layer and distinct adapter; by default 3e-6 where LoRA kernels go by adapter, else 0",
    )
    lora_block_s: float | None = Field(
        default=None, ge=0, description="per thread block of an adapter in the batch, where LoRA kernels span slots"
    )
    lora_idle_block_s: float | None = Field(
        default=None, ge=0, description="per thread block of every slot, where LoRA kernels span slots"
    )
    host_step_s: float | None = Field(default=None, ge=0, description="host time of a step; by default the engine's")
    host_seq_s: float | None = Field(
        default=None, ge=0, description="host time per sequence in a step; by default the engine's"
    )
    host_blocked_s: float | None = Field(
        default=None,
        ge=0,
        description="host time per waiting request passed over for want of a slot; by default the engine's",
    )
    lora_memory_efficiency: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="of memory bandwidth, adapters; by default memory_efficiency, or less for kernels by slot",
    )
    lora_compute_efficiency: float = Field(default=0.15, gt=0, le=1, description="of dense FLOP/s, LoRA kernels")
    load_copy_s: float = Field(
        default=1e-5, ge=0, description="per tensor copied into a slot (A and B of every module)"
    )
    transfers: TransferOptions = Field(default=TransferOptions(), description="remote to disk and disk to host")
