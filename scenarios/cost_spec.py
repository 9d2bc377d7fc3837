"""CostSpec: which cost model predicts step times; TiersSpec: how long an adapter takes between storage tiers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from loratory.scenarios.noise_spec import NOISE, NoiseSpec, UnmeasuredNoise
from loratory.scenarios.schema_types import Count, Name, NameOrFile, NotNegative, Positive, Section

_EngineTimes = Literal["vllm-0.32", "vllm-0.8.5", "lightllm", "none"]
_Efficiency = Annotated[float, Field(gt=0, le=1)]


class RooflineCostSpec(Section):
    """From the model's shape and the GPU's datasheet. An omitted key has the cost model's default."""

    kind: Literal["roofline"] = Field("roofline", description="from model shape and GPU datasheet")
    engine_times: _EngineTimes | None = Field(
        None,
        description="whose host time and LoRA kernels are priced; by default those of engine.as. none: no host time, "
        "and kernels that read each adapter of the batch once",
    )
    dtype: Literal["fp32", "fp16", "bf16", "fp8"] | None = Field(
        None,
        description="dtype of weights and arithmetic, for time and memory; by default the model's. "
        "fp8: the layers' linear weights, with 16 bit for everything else",
    )
    memory_efficiency: _Efficiency | None = Field(
        None, description="share of memory bandwidth, weights and activations"
    )
    compute_efficiency: _Efficiency | None = Field(None, description="share of dense FLOP/s, linear layers")
    prefill_attention_efficiency: _Efficiency | None = Field(
        None, description="share of dense FLOP/s, prefill attention"
    )
    decode_attention_efficiency: _Efficiency | None = Field(
        None, description="share of memory bandwidth, decode attention"
    )
    link_efficiency: _Efficiency | None = Field(None, description="share of host link and peer link bandwidth")
    step_overhead_s: NotNegative | None = Field(None, description="per step: time that the GPU does not hide")
    layer_overhead_s: NotNegative | None = Field(None, description="per layer: small kernels")
    host_layer_s: NotNegative | None = Field(
        None, description="per layer: host time to launch its kernels; a step takes at least their sum"
    )
    decode_attention_latency_s: NotNegative | None = Field(
        None, description="per layer: least time of decode attention"
    )
    all_reduce_latency_s: NotNegative | None = Field(None, description="per all-reduce of tensor parallelism")
    lora_kernel_s: NotNegative | None = Field(None, description="per LoRA kernel of a merged module")
    lora_adapter_layer_s: NotNegative | None = Field(None, description="per layer and distinct adapter in the batch")
    lora_block_s: NotNegative | None = Field(
        None, description="per thread block of an adapter in the batch, where LoRA kernels span all slots"
    )
    lora_idle_block_s: NotNegative | None = Field(
        None, description="per thread block of every slot, where LoRA kernels span all slots"
    )
    host_step_s: NotNegative | None = Field(None, description="host time of a step; by default the engine's")
    host_seq_s: NotNegative | None = Field(
        None, description="host time per sequence in a step; by default the engine's"
    )
    host_blocked_s: NotNegative | None = Field(
        None, description="host time per waiting request passed over for want of a slot; by default the engine's"
    )
    lora_memory_efficiency: _Efficiency | None = Field(
        None, description="share of memory bandwidth, weights of adapters"
    )
    lora_compute_efficiency: _Efficiency | None = Field(None, description="share of dense FLOP/s, LoRA kernels")
    load_copy_s: NotNegative | None = Field(None, description="per tensor copied into a slot")
    noise: UnmeasuredNoise = Field(None, description=NOISE)


def _version_text(value: object) -> object:
    """YAML reads 0.24 as a number and 0.24.0 as text: both are versions."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


class KernelsCostSpec(Section):
    """From kernel times that AIConfigurator measured. An omitted key has the cost model's default."""

    kind: Literal["kernels"] = Field(description="measured kernel times; needs loratory[kernels]")
    engine: Literal["vllm", "sglang", "trtllm"] | None = Field(
        None, description="whose kernels were measured: vLLM's (default), SGLang's or TensorRT-LLM's"
    )
    version: Annotated[Name, BeforeValidator(_version_text)] | None = Field(
        None, description="version of that engine; by default the newest that has tables for the GPU"
    )
    engine_times: _EngineTimes | None = Field(
        None,
        description="whose host time and LoRA kernels come on top, as with roofline; by default those of engine.as",
    )
    dtype: Literal["fp16", "bf16", "fp8"] | None = Field(
        None, description="as with roofline; by default the model's. 16-bit dtypes take the tables of bf16"
    )
    step_overhead_s: NotNegative | None = Field(
        None, description="per step: host time that the GPU does not hide; 0 by default, as tables hold none"
    )
    host_layer_s: NotNegative | None = Field(
        None, description="per layer: host time to launch its kernels; a step takes at least their sum"
    )
    link_efficiency: _Efficiency | None = Field(None, description="share of host link bandwidth, adapter loads")
    lora_kernel_s: NotNegative | None = Field(None, description="per LoRA kernel of a merged module")
    lora_adapter_layer_s: NotNegative | None = Field(None, description="per layer and distinct adapter in the batch")
    lora_compute_efficiency: _Efficiency | None = Field(None, description="share of dense FLOP/s, LoRA kernels")
    load_copy_s: NotNegative | None = Field(None, description="per tensor copied into a slot")
    noise: UnmeasuredNoise = Field(None, description=NOISE)


class LinearCostSpec(Section):
    """Published or fitted constants; every one in seconds.

    decode step = max(decode_floor_s, decode_base_s + decode_per_seq_s * sequences + decode_per_kv_token_s * KV tokens)
    """

    kind: Literal["linear"] = Field(description="published or fitted constants")
    decode_base_s: NotNegative = Field(description="per decode step, whatever its batch")
    decode_per_seq_s: NotNegative = Field(description="per decoding sequence")
    decode_per_kv_token_s: NotNegative = Field(description="per KV token read")
    decode_floor_s: NotNegative = Field(0.0, description="least duration of a decode step")
    decode_gemm_floor_s: NotNegative = Field(
        0.0, description="least duration of the base and sequences of a decode step; KV tokens are added to it"
    )
    prefill_base_s: NotNegative = Field(description="per step with prefill, whatever its batch")
    prefill_per_token_s: NotNegative = Field(description="per prompt token")
    prefill_attention_s: NotNegative = Field(
        0.0, description="per pair of a prompt token and a token that it attends to"
    )
    lora_floor_s: NotNegative = Field(
        0.0, description="least duration of a decode step with adapters, everything counted"
    )
    lora_step_s: NotNegative = Field(0.0, description="per step with any adapter in it")
    per_adapter_s: NotNegative = Field(0.0, description="per distinct adapter in a step")
    per_rank_s: NotNegative = Field(
        0.0, description="per step, times the sum of the ranks of the distinct adapters in a step"
    )
    lora_token_s: NotNegative = Field(0.0, description="per token computed with an adapter")
    lora_token_rank_s: NotNegative = Field(
        0.0, description="per token computed with an adapter, times the adapter's rank"
    )
    lora_decode_max_rank_s: NotNegative = Field(
        0.0,
        description="per decoding request with an adapter, times the largest rank in the step: kernels that pad to it",
    )
    slot_token_s: NotNegative = Field(
        0.0, description="per token in a step, times engine.max_loras: kernels that span all slots"
    )
    load_base_s: NotNegative = Field(0.0, description="per load of an adapter from host memory to the GPU")
    load_per_rank_s: NotNegative = Field(0.0, description="per load, times the adapter's rank")
    load_per_byte_s: NotNegative = Field(0.0, description="per load, times the adapter's size in bytes")
    source: Name | None = Field(None, description="where the constants come from, for the report")
    noise: UnmeasuredNoise = Field(None, description=NOISE)


class ProfileCostSpec(Section):
    """Fitted to what `loratory profile` measured on real hardware."""

    kind: Literal["profile"] = Field(description="a measured profile")
    profile: NameOrFile = Field(description="a profile's name, or its file")
    scale: Positive = Field(1.0, description="multiplies every step time")
    noise: NoiseSpec | None = Field(None, description=NOISE)


OF_A_MODEL: tuple[type[Section], ...] = (RooflineCostSpec, KernelsCostSpec)
"""Cost models that compute a model's steps from its shape and dtype; the others hold for the model measured."""


def cost_dtype(cost: Section) -> str | None:
    """``cost.dtype``: that of the weights, for time and memory alike; None where it is not given, or not a key."""
    dtype: str | None = getattr(cost, "dtype", None)
    return dtype


def _roofline_by_default(value: Any) -> Any:
    """Without a kind, and with keys of roofline only, it is roofline, as without any cost."""
    if isinstance(value, dict) and "kind" not in value and set(value) <= set(RooflineCostSpec.model_fields):
        return {"kind": "roofline", **value}
    return value


CostSpec = Annotated[
    RooflineCostSpec | KernelsCostSpec | LinearCostSpec | ProfileCostSpec,
    Field(discriminator="kind"),
    BeforeValidator(_roofline_by_default),
]


class TiersSpec(Section):
    """The storage below the GPU. A transfer takes its latency plus the adapter's bytes over the bandwidth.

    The defaults assume a local NVMe drive and an object store behind a 10 Gbit/s network: set the values of yours.
    """

    host_bandwidth_bytes_s: Positive | None = Field(
        None, description="host memory to GPU, bytes/s; by default the cost model's"
    )
    host_latency_s: NotNegative | None = Field(None, description="added to every host-to-GPU load, s; by default 0")
    disk_bandwidth_bytes_s: Positive | None = Field(
        None, description="disk to host memory, bytes/s; by default as a profile measured it, else 3.0e9"
    )
    disk_latency_s: NotNegative | None = Field(
        None, description="time to open and parse the files, s; by default as a profile measured it, else 0.01"
    )
    disk_first_read_s: NotNegative = Field(
        0.0,
        description="added to a replica's first read of each adapter that starts on disk, s: the disk is cold then, "
        "and later reads come from the operating system's cache",
    )
    remote_bandwidth_bytes_s: Positive = Field(1.25e9, description="remote storage to disk, bytes/s")
    remote_latency_s: NotNegative = Field(0.2, description="time before the first byte of a download, s")
    remote_concurrency: Count = Field(
        15,
        description="adapters fetched at once, with overlapping latencies and shared bandwidth; 1: one by one",
    )
