"""RooflineCost: step seconds from a model's shapes, a GPU's datasheet and stated efficiencies."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from pydantic import BaseModel, ConfigDict, Field

from loratory.models.linear_layers import FUSED, HEAD
from loratory.serving.lora import Adapter
from loratory.serving.plan import BatchShape
from loratory.sim.catalogue import GPU, ModelSpec, dtype_bytes, resolve_targets
from loratory.sim.cost.base import DecodeLine
from loratory.sim.cost.options import TransferOptions, parse
from loratory.sim.cost.transfer import TransferModel

CALIBRATED_GPUS: tuple[str, ...] = ("a100-40gb", "a100-80gb", "h100-64gb", "h100-80gb", "h200")
"""GPUs (by family) whose efficiencies were compared with published kernel times; see docs/cost-models.md."""

_LAYER_OVERHEAD_S = {"a10g": 60e-6, "a100-40gb": 60e-6, "a100-80gb": 60e-6}
_LAYER_OVERHEAD_DEFAULT_S = 8e-6


class RooflineOptions(BaseModel):
    """Efficiencies (share of the datasheet number that is reached) and fixed costs; the scenario may set any of them.

    Sources: kernel times of Llama-2-7B's linear layers on A100 and H100, and AIConfigurator's step times for
    Llama-3.1-8B on A100, H100 and H200 (vLLM 0.24), tabulated in docs/fidelity.md; the LoRA terms are from
    micro-measurements by Agullo et al. (arXiv:2508.08343): the first adapter +10..15 % of a step, each further one
    about +1 %; a load of 6.4 to 8.1 ms, nearly independent of rank.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    lora_adapter_layer_s: float = Field(default=3e-6, ge=0, description="per layer and distinct adapter in the batch")
    lora_compute_efficiency: float = Field(default=0.15, gt=0, le=1, description="of dense FLOP/s, LoRA kernels")
    load_copy_s: float = Field(
        default=1e-5, ge=0, description="per tensor copied into a slot (A and B of every module)"
    )
    transfers: TransferOptions = Field(default=TransferOptions(), description="remote to disk and disk to host")


class RooflineCost:
    """A step is the sum of its kernels; a kernel takes the root of the sum of squares of memory time and compute time.

    That is a smooth maximum: at the ridge point of a real GEMM neither resource is fully busy (measured at 512 tokens,
    docs/cost-models.md), and far from it the larger one alone counts. Parts: the four merged GEMMs of a layer, the
    output head over sampled positions only, element-wise kernels, prefill attention by FLOPs, decode attention by KV
    bytes with a latency floor, LoRA by bytes, FLOPs and launches, all-reduces, and fixed overheads.
    """

    name = "roofline"

    def __init__(
        self, model: ModelSpec, gpu: GPU, *, tensor_parallel_size: int = 1, options: RooflineOptions | None = None
    ) -> None:
        o = self.options = options or RooflineOptions()
        tp = tensor_parallel_size
        model.check_tp(tp)
        dtype = o.dtype or model.dtype
        wide = model.wide_dtype(dtype)
        weight_size, size = dtype_bytes(dtype), dtype_bytes(wide)
        per_byte = 1.0 / (gpu.memory_bytes_per_s * o.memory_efficiency)
        per_linear_flop = 1.0 / (gpu.flops_for(dtype) * o.compute_efficiency)
        peak = gpu.flops_for(wide)
        per_flop = 1.0 / (peak * o.compute_efficiency)
        shape = model.shape
        layers, hidden, vocab = shape.layers, shape.hidden, shape.vocab
        targets = resolve_targets(o.target_modules)
        self.source = f"roofline of {model.name} ({model.source}) on {gpu.name} ({gpu.source})"
        self.known_error = _known_error(gpu.name, {dtype, o.kv_cache_dtype or wide} - {"fp16", "bf16"})
        self.warnings: list[str] = []
        if gpu.name not in CALIBRATED_GPUS:
            self.warnings.append(
                f"roofline: efficiencies were compared with measurements on A100, H100 and H200 only; on {gpu.name} "
                "they are assumed, so profile the GPU or set cost.memory_efficiency and cost.compute_efficiency"
            )

        gemms = []
        for group in FUSED.values():
            shards = [_shard(model, module, tp) for module in group]
            weights = sum(i * o_ for i, o_ in shards)
            in_out = shards[0][0] + sum(o_ for _, o_ in shards)
            gemms.append(
                (
                    layers * weights * weight_size * per_byte,
                    layers * in_out * size * per_byte,
                    layers * 2.0 * weights * per_linear_flop,
                )
            )
        self._gemms = tuple(gemms)
        self._linear: dict[int, float] = {}
        """`linear_seconds` by tokens: a run asks for the same few batch sizes again and again."""
        self._heads: dict[int, float] = {}
        """Seconds of the output head by sampled positions, for the same reason."""
        head = hidden * vocab / tp
        head_io = (hidden + vocab / tp) * size * per_byte
        self._head = (head * size * per_byte, head_io, 2.0 * head * per_flop)

        q, kv, mlp = shape.q_width / tp, model.kv_width_per_gpu(tp), shape.intermediate / tp
        elementwise = layers * (8 * hidden + 2 * q + 4 * kv + 3 * mlp) * size * per_byte
        ring = 2.0 * (tp - 1) / tp / (gpu.peer_link_bytes_per_s * o.link_efficiency)
        self._elementwise_s = elementwise
        self._all_reduce_token_s = 2 * layers * hidden * size * ring
        self._all_reduce_step_s = 2 * layers * o.all_reduce_latency_s if tp > 1 else 0.0
        layer_overhead = _LAYER_OVERHEAD_S.get(gpu.name, _LAYER_OVERHEAD_DEFAULT_S)
        self._overhead_s = o.step_overhead_s + layers * (
            layer_overhead if o.layer_overhead_s is None else o.layer_overhead_s
        )
        self._host_s = layers * o.host_layer_s
        self._fixed_s = self._overhead_s + self._all_reduce_step_s
        self._token_s = self._elementwise_s + self._all_reduce_token_s

        self._pair_s = layers * 4.0 * q / (peak * o.prefill_attention_efficiency)
        kv_bandwidth = gpu.memory_bytes_per_s * o.decode_attention_efficiency
        self._kv_token_s = model.kv_bytes_per_token(tp, o.kv_cache_dtype or wide) / kv_bandwidth
        self._attention_floor_s = layers * o.decode_attention_latency_s

        # The output head's matrices are read like a layer's, and meet the sampled positions alone.
        in_layers = [module for module in targets if module != HEAD]
        shards = [model.lora_shard(module, tp) for module in in_layers]
        width = sum(i + o_ for i, o_ in shards)
        head_width = sum(model.lora_shard(HEAD, tp)) if HEAD in targets else 0
        groups = [[m for m in group if m in targets] for group in FUSED.values()]
        launches = 2 * (layers * sum(1 for group in groups if group) + (HEAD in targets))
        read = sum(model.lora_shard(group[0], tp)[0] for group in groups if group)
        written = sum(o_ for _, o_ in shards)
        self._lora_step_s = launches * o.lora_kernel_s
        self._lora_adapter_s = layers * o.lora_adapter_layer_s
        self._lora_rank_s = (layers * width + head_width) * size * per_byte
        self._lora_token_s = layers * (read + 2 * written) * size * per_byte
        self._lora_token_rank_s = layers * 2.0 * width / (peak * o.lora_compute_efficiency)
        self._lora_head_s = (hidden + 2 * vocab) * size * per_byte if head_width else 0.0
        self._lora_head_rank_s = 2.0 * head_width / (peak * o.lora_compute_efficiency)

        whole = layers * sum(sum(model.shape.widths(module)) for module in in_layers) + head_width
        self.below = o.transfers
        self._transfers = TransferModel(
            self.below,
            host_fixed_s=2 * (len(in_layers) * layers + (HEAD in targets)) * o.load_copy_s,
            host_per_byte_s=((layers * width + head_width) / whole if whole else 1.0)
            / (gpu.host_link_bytes_per_s * o.link_efficiency),
        )

    @classmethod
    def from_options(
        cls, model: ModelSpec, gpu: GPU, tensor_parallel_size: int, options: Mapping[str, object]
    ) -> RooflineCost:
        """From a scenario's ``cost:`` mapping; `InputError` for unknown keys or bad values."""
        parsed = parse(RooflineOptions, options, "cost")
        return cls(model, gpu, tensor_parallel_size=tensor_parallel_size, options=parsed)

    def linear_seconds(self, tokens: int) -> float:
        """Seconds of all layers' linear modules over ``tokens``, without output head, attention and overheads."""
        known = self._linear.get(tokens)
        if known is not None:
            return known
        total = 0.0
        for weights, in_out, flops in self._gemms:
            memory = weights + in_out * tokens
            compute = flops * tokens
            total += sqrt(memory * memory + compute * compute)
        self._linear[tokens] = total
        return total

    def _head_seconds(self, sampled: int) -> float:
        memory = self._head[0] + self._head[1] * sampled
        compute = self._head[2] * sampled
        seconds = self._heads[sampled] = sqrt(memory * memory + compute * compute)
        return seconds

    def _lora_seconds(self, adapters: int, ranks: int, tokens: int, token_ranks: int, sampled: int) -> float:
        head = 0.0
        if self._lora_head_s and tokens:
            # A batch does not tell which sampled positions have an adapter: as many as possible are assumed.
            share = min(1.0, sampled / tokens)
            head = share * (self._lora_head_s * tokens + self._lora_head_rank_s * token_ranks)
        return head + (
            self._lora_step_s
            + self._lora_adapter_s * adapters
            + self._lora_rank_s * ranks
            + self._lora_token_s * tokens
            + self._lora_token_rank_s * token_ranks
        )

    def _base(self, shape: BatchShape) -> float:
        """Seconds of everything but decode attention."""
        prefill, attention, prefill_seqs, decodes, _, adapters, ranks, _, lora_tokens, lora_token_ranks = shape
        tokens = prefill + decodes
        linear = self._linear.get(tokens)
        head = self._heads.get(decodes + prefill_seqs)
        total = (
            self._fixed_s
            + self._token_s * tokens
            + (self.linear_seconds(tokens) if linear is None else linear)
            + (self._head_seconds(decodes + prefill_seqs) if head is None else head)
            + self._pair_s * attention
        )
        if adapters or lora_tokens:
            total += self._lora_seconds(adapters, ranks, lora_tokens, lora_token_ranks, decodes + prefill_seqs)
        return total

    def step_seconds(self, shape: BatchShape) -> float:
        """See `CostModel.step_seconds`."""
        seconds, host = self._base(shape), self._host_s
        if shape.decode_seqs:
            attention, floor = self._kv_token_s * shape.kv_tokens, self._attention_floor_s
            seconds += attention if attention > floor else floor
        elif not shape.prefill_tokens:
            return 0.0
        return seconds if seconds > host else host

    def decode_line(self, shape: BatchShape) -> DecodeLine | None:
        """See `CostModel.decode_line`; the floor is that of decode attention or of the host."""
        if shape.prefill_tokens or not shape.decode_seqs:
            return None
        base = self._base(shape)
        floor, host = base + self._attention_floor_s, self._host_s
        return DecodeLine(base, self._kv_token_s, floor if floor > host else host)

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        """See `CostModel.load_seconds`; host to GPU is one copy per tensor of the slot plus bytes over the link."""
        return self._transfers.seconds(adapter, tier)

    def explain(self, shape: BatchShape) -> dict[str, float]:
        """See `CostModel.explain`."""
        tokens = shape.tokens
        if not tokens:
            return {}
        attention = self._kv_token_s * shape.kv_tokens
        lora = (shape.distinct_adapters, shape.sum_ranks, shape.lora_tokens, shape.lora_token_ranks)
        sampled = shape.decode_seqs + shape.prefill_seqs
        parts = {
            "linear_layers": self.linear_seconds(tokens),
            "output_head": self._head_seconds(sampled),
            "elementwise": self._elementwise_s * tokens,
            "prefill_attention": self._pair_s * shape.prefill_attention if shape.prefill_tokens else 0.0,
            "decode_attention": max(attention, self._attention_floor_s) if shape.decode_seqs else 0.0,
            "lora": self._lora_seconds(*lora, sampled) if lora[0] or lora[2] else 0.0,
            "all_reduce": self._all_reduce_step_s + self._all_reduce_token_s * tokens,
            "overhead": self._overhead_s,
        }
        return parts | {"host": max(0.0, self._host_s - sum(parts.values()))} if self._host_s else parts


def _known_error(gpu: str, other_dtypes: set[str]) -> str:
    """What docs/fidelity.md ("Roofline") shows, for a GPU by name and dtypes that are not of 16 bit."""
    if other_dtypes:
        return f"not known: in {' and '.join(sorted(other_dtypes))} step times are compared with no measurement"
    if gpu not in CALIBRATED_GPUS:
        return f"not known: on {gpu} the efficiencies are assumptions, compared with no measurement"
    return (
        "steps of Llama-2-7B and Llama-3.1-8B without adapters within 10 % of published ones on A100, H100 and H200; "
        "adapters, loads and whole runs are not compared on a GPU with this cost model"
    )


def _shard(model: ModelSpec, module: str, tp: int) -> tuple[float, float]:
    """(input, output) widths of a base weight on one GPU."""
    width_in, width_out = model.shape.widths(module)
    if module in ("o_proj", "down_proj"):
        return width_in / tp, float(width_out)
    return float(width_in), float(model.kv_width_per_gpu(tp)) if module in ("k_proj", "v_proj") else width_out / tp
