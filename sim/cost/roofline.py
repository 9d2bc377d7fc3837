"""RooflineCost: step seconds from a model's shapes, a GPU's datasheet and stated efficiencies."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from loratory.models.linear_layers import FUSED
from loratory.serving.compiling import mypyc_attr
from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter
from loratory.serving.plan import BatchShape
from loratory.sim.catalogue import GPU, ModelSpec, dtype_bytes
from loratory.sim.cost.base import DecodeLine
from loratory.sim.cost.engine_times import HostTime, engine_name, host_is_hidden, times_of
from loratory.sim.cost.known_errors import known_error
from loratory.sim.cost.lora_kernels import LoraKernels
from loratory.sim.cost.options import parse
from loratory.sim.cost.roofline_options import RooflineOptions
from loratory.sim.cost.transfer import TransferModel

CALIBRATED_GPUS: tuple[str, ...] = ("a100-40gb", "a100-80gb", "h100-64gb", "h100-80gb", "h200")
"""GPUs (by family) whose efficiencies were compared with published kernel times; see docs/cost-models.md."""

_LAYER_OVERHEAD_S = {"a10g": 60e-6, "a100-40gb": 60e-6, "a100-80gb": 60e-6}
_LAYER_OVERHEAD_DEFAULT_S = 8e-6


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class RooflineCost:
    """A step is the sum of its kernels; a kernel takes the root of the sum of squares of memory time and compute time.

    That is a smooth maximum: at the ridge point of a real GEMM neither resource is fully busy (measured at 512 tokens,
    docs/cost-models.md), and far from it the larger one alone counts. Parts: the four merged GEMMs of a layer, the
    output head over sampled positions only, element-wise kernels, prefill attention by FLOPs, decode attention by KV
    bytes with a latency floor, LoRA (`LoraKernels`), all-reduces, fixed overheads, and the time of the engine's host
    (`EngineTimes`): on top of the GPU's, or hidden behind it where the engine plans ahead.

    ``engine``: its preset, slots, ``max_lora_rank`` and tensor parallel size; without one the model is priced alone on
    ``tensor_parallel_size`` GPUs, by an engine without host time and with LoRA kernels that go by adapter.
    """

    name = "roofline"

    def __init__(
        self,
        model: ModelSpec,
        gpu: GPU,
        *,
        tensor_parallel_size: int = 1,
        options: RooflineOptions | None = None,
        engine: EngineConfig | None = None,
    ) -> None:
        o = self.options = options or RooflineOptions()
        tp = tensor_parallel_size if engine is None else engine.tensor_parallel_size
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
        times = self.times = times_of(o.engine_times, engine)
        self.source = f"roofline of {model.name} ({model.source}) on {gpu.name} ({gpu.source})"
        other = sorted({dtype, o.kv_cache_dtype or wide} - {"fp16", "bf16"})
        ahead = None if engine is None else engine.plans_ahead
        self.known_error = known_error(gpu.name, engine_name(o.engine_times, engine), other, ahead)
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
        self._fixed_s = self._overhead_s + self._all_reduce_step_s
        self._token_s = self._elementwise_s + self._all_reduce_token_s

        self._pair_s = layers * 4.0 * q / (peak * o.prefill_attention_efficiency)
        kv_bandwidth = gpu.memory_bytes_per_s * o.decode_attention_efficiency
        self._kv_token_s = model.kv_bytes_per_token(tp, o.kv_cache_dtype or wide) / kv_bandwidth
        self._attention_floor_s = layers * o.decode_attention_latency_s

        parallel = host_is_hidden(times, engine)
        self._host = HostTime(times, parallel, (o.host_step_s, o.host_seq_s, o.host_blocked_s), layers * o.host_layer_s)
        self._host_seq_s, self._blocked_s = self._host.seq_s, self._host.blocked_s
        self._fixed_s += self._host.step_s
        slots = engine.max_loras if engine is not None and times.slot_kernels and engine.memory == "slots" else None
        lora = LoraKernels(model, gpu, tp, wide, o, slots, 0 if engine is None else engine.max_lora_rank)
        self.lora_seconds = lora.seconds
        """What the adapters of a `BatchShape` add."""

        whole = layers * sum(sum(model.shape.widths(m)) for m in lora.in_layers) + lora.head_width
        self.below = o.transfers
        self._transfers = TransferModel(
            self.below,
            host_fixed_s=2 * (len(lora.in_layers) * layers + bool(lora.head_width)) * o.load_copy_s,
            host_per_byte_s=(lora.width / whole if whole else 1.0) / (gpu.host_link_bytes_per_s * o.link_efficiency),
        )

    @classmethod
    def from_options(
        cls, model: ModelSpec, gpu: GPU, engine: EngineConfig | None, options: Mapping[str, object]
    ) -> RooflineCost:
        """From a scenario's ``cost:`` mapping; `InputError` for unknown keys or bad values."""
        return cls(model, gpu, options=parse(RooflineOptions, options, "cost"), engine=engine)

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

    def _base(self, shape: BatchShape) -> float:
        """Seconds of everything but decode attention."""
        prefill, attention, prefill_seqs, decodes, _, adapters, _, _, lora_tokens, _, blocked = shape
        tokens = prefill + decodes
        linear = self._linear.get(tokens)
        head = self._heads.get(decodes + prefill_seqs)
        total = (
            self._fixed_s
            + self._token_s * tokens
            + (self.linear_seconds(tokens) if linear is None else linear)
            + (self._head_seconds(decodes + prefill_seqs) if head is None else head)
            + self._pair_s * attention
            + self._host_seq_s * prefill_seqs
            + self._blocked_s * blocked
        )
        if adapters or lora_tokens:
            total += self.lora_seconds(shape)
        return total

    def _decode_floor(self, decodes: int) -> float:
        """Least seconds of the attention of so many decoding sequences and of the host's work for them."""
        host, latency = self._host_seq_s * decodes, self._attention_floor_s
        return host if host > latency else latency

    def step_seconds(self, shape: BatchShape) -> float:
        """See `CostModel.step_seconds`."""
        decodes = shape.decode_seqs
        seconds, host = self._base(shape), self._host.least(decodes + shape.prefill_seqs, shape.blocked_seqs)
        if decodes:
            attention, floor = self._kv_token_s * shape.kv_tokens, self._decode_floor(decodes)
            seconds += attention if attention > floor else floor
        elif not shape.prefill_tokens:
            return 0.0
        return seconds if seconds > host else host

    def decode_line(self, shape: BatchShape) -> DecodeLine | None:
        """See `CostModel.decode_line`; the floor is that of decode attention or of the host."""
        if shape.prefill_tokens or not shape.decode_seqs:
            return None
        base, decodes = self._base(shape), shape.decode_seqs
        floor, host = base + self._decode_floor(decodes), self._host.least(decodes, shape.blocked_seqs)
        return DecodeLine(base, self._kv_token_s, floor if floor > host else host)

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        """See `CostModel.load_seconds`; host to GPU is one copy per tensor of the slot plus bytes over the link."""
        return self._transfers.seconds(adapter, tier)

    def explain(self, shape: BatchShape) -> dict[str, float]:
        """See `CostModel.explain`."""
        tokens = shape.tokens
        if not tokens:
            return {}
        decodes, prefills = shape.decode_seqs, shape.prefill_seqs
        attention = max(self._kv_token_s * shape.kv_tokens, self._attention_floor_s) if decodes else 0.0
        parts = {
            "linear_layers": self.linear_seconds(tokens),
            "output_head": self._head_seconds(decodes + prefills),
            "elementwise": self._elementwise_s * tokens,
            "prefill_attention": self._pair_s * shape.prefill_attention if shape.prefill_tokens else 0.0,
            "lora": self.lora_seconds(shape),
            "all_reduce": self._all_reduce_step_s + self._all_reduce_token_s * tokens,
            "overhead": self._overhead_s,
        }
        others = sum(parts.values())
        parts["decode_attention"] = attention
        return parts | {"host": self._host.part(shape, attention, others)} if self._host.any else parts


def _shard(model: ModelSpec, module: str, tp: int) -> tuple[float, float]:
    """(input, output) widths of a base weight on one GPU."""
    width_in, width_out = model.shape.widths(module)
    if module in ("o_proj", "down_proj"):
        return width_in / tp, float(width_out)
    return float(width_in), float(model.kv_width_per_gpu(tp)) if module in ("k_proj", "v_proj") else width_out / tp
