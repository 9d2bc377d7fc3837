"""KernelsCost: step seconds from kernel times that AIConfigurator measured, with LoRA and host time on top."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from loratory.models.linear_layers import FUSED
from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter
from loratory.serving.plan import BatchShape
from loratory.sim.catalogue import GPU, ModelSpec, dtype_bytes
from loratory.sim.cost.base import DecodeLine
from loratory.sim.cost.engine_times import EngineName, HostTime, host_is_hidden, times_of
from loratory.sim.cost.kernel_fits import Curve, GemmTable, decode_attention, heads_like, prefill_attention, total
from loratory.sim.cost.kernel_tables import KernelTables
from loratory.sim.cost.lora_on_top import LoraOnTop
from loratory.sim.cost.options import TransferOptions, parse

_ACTIVATION_BYTES = 2
_LOOSE = 0.03
"""Mean error of decode attention, as a share of a layer's time, above which a run has a note."""


class KernelsOptions(BaseModel):
    """Which tables, and what comes on top of them. Those of LoRA and loads mean what they mean in `RooflineOptions`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str = Field(default="vllm", description="whose kernels: vllm, sglang or trtllm")
    version: str | None = Field(default=None, description="of the engine; by default the newest with tables")
    engine_times: EngineName | None = Field(
        default=None, description="the engine whose host time and LoRA kernels are priced; by default engine.as"
    )
    dtype: str | None = Field(default=None, description="of weights and arithmetic; by default the model's")
    kv_cache_dtype: str | None = Field(default=None, description="of the KV cache; by default 16 bit as the model")
    target_modules: str | list[str] = Field(default="all-linear", description="linear modules the adapters change")
    step_overhead_s: float = Field(default=0.0, ge=0, description="per step: host time that the GPU does not hide")
    host_layer_s: float = Field(
        default=0.0, ge=0, description="per layer: host time to launch its kernels; a step takes at least their sum"
    )
    link_efficiency: float = Field(default=0.8, gt=0, le=1, description="of host link bandwidth, adapter loads")
    lora_kernel_s: float | None = Field(default=None, ge=0, description="per LoRA kernel of a merged module")
    lora_adapter_layer_s: float | None = Field(default=None, ge=0, description="per layer and distinct adapter")
    lora_compute_efficiency: float | None = Field(default=None, gt=0, le=1, description="of dense FLOP/s, LoRA kernels")
    load_copy_s: float | None = Field(default=None, ge=0, description="per tensor copied into a slot")
    transfers: TransferOptions = Field(default=TransferOptions(), description="remote to disk and disk to host")


_OF_LORA = tuple(
    name
    for name in KernelsOptions.model_fields
    if name in ("engine_times", "dtype", "kv_cache_dtype", "target_modules", "link_efficiency", "transfers")
    or name.startswith(("lora_", "load_"))
)
"""The options that `LoraOnTop` takes."""


class KernelsCost:
    """A step is the sum of its kernels: GEMM and attention as measured, small kernels by the bytes that they move.

    GEMM, all-reduce and the output head are curves of the step's tokens or sampled positions, attention the fitted
    forms of `PrefillAttention` and `DecodeAttention`. All of them never fall, so neither does their sum.
    """

    name = "kernels"

    def __init__(
        self,
        model: ModelSpec,
        gpu: GPU,
        *,
        tensor_parallel_size: int = 1,
        options: KernelsOptions | None = None,
        engine: EngineConfig | None = None,
    ) -> None:
        o = self.options = options or KernelsOptions()
        tp, shape = tensor_parallel_size if engine is None else engine.tensor_parallel_size, model.shape
        model.check_tp(tp)
        layers, dtype = shape.layers, o.dtype or model.dtype
        dtype_bytes(dtype)
        wide = model.wide_dtype(dtype)
        tables = KernelTables(gpu, o.engine, o.version)
        self.source = f"{tables.source}; {model.name} ({model.source}); LoRA and loads as roofline"
        self.warnings: list[str] = []
        self._notes: dict[str, int] = {}

        def measured(in_dtype: str) -> GemmTable:
            return GemmTable(
                tables.gemm(in_dtype), dtype_bytes(in_dtype), tables.peak_bytes_per_s, gpu.flops_for(in_dtype)
            )

        gemm = measured(dtype)
        head = gemm if wide == dtype else measured(wide)
        layer_gemms = []
        for group in FUSED.values():
            shards = [model.lora_shard(module, tp) for module in group]  # split as the base weights are
            layer_gemms.append((1.0, gemm.curve(sum(out for _, out in shards), shards[0][0])))
        layer = total(layer_gemms)
        self._gemm = total([(float(layers), layer)])
        self._head = head.curve(-(-shape.vocab // tp), shape.hidden)
        self._all_reduce = Curve([1.0], [0.0])
        if tp > 1:
            rows = tables.all_reduce(tp).sort_values("size")
            self._all_reduce = Curve.of(rows["size"].to_numpy() / shape.hidden, (2 * layers + 1) * rows["s"].to_numpy())

        heads, kv_heads = shape.heads // tp, max(1, shape.kv_heads // tp)
        cache = o.kv_cache_dtype or wide
        context, note = heads_like(tables.attention("context", shape.head_dim, cache), heads, kv_heads)
        generation, other = heads_like(tables.attention("generation", shape.head_dim, cache), heads, kv_heads)
        self.warnings += [f"kernels: {kind} {each}" for kind, each in (("prefill", note), ("decode", other)) if each]
        read_s = model.kv_bytes_per_token(tp, cache) / layers / tables.peak_bytes_per_s
        prefill, decode = prefill_attention(context, layer.at), decode_attention(generation, layer.at, read_s)
        if decode.error > _LOOSE:
            self.warnings.append(
                f"kernels: measured decode attention is not quite of the fitted form: {decode.error:.1%} of a layer's "
                "time off on average"
            )
        self.known_error = _known_error(gpu, tables, {dtype, cache}, prefill.error, decode.error)

        # Small kernels, as AIConfigurator counts them: a latency each, and the bytes of activations in and out. Two
        # norms with their residual sums and an activation a layer, one embedding; for prompts, positions and KV writes.
        move, mlp, q = tables.memory, shape.intermediate / tp, heads * shape.head_dim
        kv = kv_heads * shape.head_dim
        self._small_step_s = (3 * layers + 1) * move.latency_s
        moved = layers * (2 * 4 * shape.hidden + 3 * mlp) + shape.hidden
        self._small_token_s = moved * _ACTIVATION_BYTES / move.bytes_per_s
        extras = 2 * move.seconds(2 * q + 2 * kv) + 2 * move.seconds(2 * kv)
        if shape.qk_norm:
            extras += 4 * (move.seconds(2 * q) + move.seconds(2 * kv))

        self._overhead_s = o.step_overhead_s
        times = times_of(o.engine_times, engine)
        if engine is not None and o.engine_times is None and o.engine != "vllm":
            self.warnings.append(
                f"kernels: the kernels of the base model are {o.engine}'s, and host time and LoRA kernels those of "
                f"{times.title} (engine.as): set cost.engine_times to say whose they should be"
            )
        self._host = HostTime(times, host_is_hidden(times, engine), (None, None, None), layers * o.host_layer_s)
        self._host_seq_s, self._blocked_s = self._host.seq_s, self._host.blocked_s
        self._fixed_s = self._small_step_s + self._overhead_s + self._host.step_s
        self._prefill = (
            layers * (prefill.step_s + 1.1 * extras),
            layers * prefill.seq_s,
            layers * prefill.token_s,
            layers * prefill.pair_s,
        )
        self._decode, self._layers, self._kv_token_s = decode, layers, layers * decode.kv_token_s
        self._measured = {
            "tokens in a step": self._gemm.knots[-1],
            "decoding sequences in a step": decode.floor.knots[-1],
            "KV tokens that a step reads": float(decode.most_kv),
            "tokens before each prompt token, on average": prefill.most_length / 2,
        }
        self._most = dict(self._measured)
        """The largest of each so far, at least the measured one; beyond that, a place in `warnings` says so."""
        self._places: dict[str, int] = {}
        self._most_kv = float(decode.most_kv)
        self._most_context = prefill.most_length / 2
        self._tokens: dict[int, float] = {}
        self._sampled: dict[int, float] = {}
        self._decodes: dict[int, tuple[float, float]] = {}
        given = {name: getattr(o, name) for name in _OF_LORA}
        self._lora = LoraOnTop(
            model, gpu, tp, engine, {name: value for name, value in given.items() if value is not None}
        )
        self.below = self._lora.below

    @classmethod
    def from_options(
        cls, model: ModelSpec, gpu: GPU, engine: EngineConfig, options: Mapping[str, object]
    ) -> KernelsCost:
        """From a scenario's ``cost:`` mapping; `InputError` for unknown keys, bad values, and what has no tables."""
        return cls(model, gpu, options=parse(KernelsOptions, options, "cost"), engine=engine)

    def linear_seconds(self, tokens: int) -> float:
        """Seconds of all layers' linear modules over ``tokens``, without output head, attention and overheads."""
        return self._gemm.at(tokens)

    def _token_seconds(self, tokens: int) -> float:
        """GEMM, all-reduces and small kernels of ``tokens``, kept: a run asks for the same few again and again."""
        self._see("tokens in a step", tokens)
        seconds = self._gemm.at(tokens) + self._all_reduce.at(tokens) + self._small_token_s * tokens
        self._tokens[tokens] = seconds
        return seconds

    def _head_seconds(self, sampled: int) -> float:
        seconds = self._sampled[sampled] = self._head.at(sampled) if sampled else 0.0
        return seconds

    def _decode_seconds(self, decodes: int) -> tuple[float, float]:
        """(start, floor) of decode attention over ``decodes`` sequences; see `DecodeAttention`."""
        self._see("decoding sequences in a step", decodes)
        decode = self._decode
        both = self._layers * decode.start.at(decodes), self._layers * decode.floor.at(decodes)
        self._decodes[decodes] = both
        return both

    def _see(self, what: str, value: float) -> None:
        """Note where a step is beyond what was measured; the note gives the largest excess so far."""
        if value <= self._most[what]:
            return
        self._most[what] = value
        place = self._places.setdefault(what, len(self.warnings))
        self.warnings[place : place + 1] = [
            f"kernels: {what} reached {value:,.0f}, and up to {self._measured[what]:,.0f} were measured: times beyond "
            "are extrapolated"
        ]

    def _base(self, shape: BatchShape) -> float:
        """Seconds of everything but decode attention."""
        prefill, pairs, prefill_seqs, decodes, _, adapters, _, _, lora_tokens, _, blocked = shape
        by_tokens = self._tokens.get(prefill + decodes)
        head = self._sampled.get(decodes + prefill_seqs)
        seconds = (
            self._fixed_s
            + (self._token_seconds(prefill + decodes) if by_tokens is None else by_tokens)
            + (self._head_seconds(decodes + prefill_seqs) if head is None else head)
            + self._host_seq_s * prefill_seqs
            + self._blocked_s * blocked
        )
        if prefill:
            step, seq, token, pair = self._prefill
            seconds += step + seq * prefill_seqs + token * prefill + pair * pairs
            if pairs > self._most_context * prefill:
                self._most_context = pairs / prefill
                self._see("tokens before each prompt token, on average", pairs / prefill)
        if adapters or lora_tokens:
            seconds += self._lora.seconds(shape)
        return seconds

    def step_seconds(self, shape: BatchShape) -> float:
        """See `CostModel.step_seconds`."""
        decodes, host = shape.decode_seqs, self._host.least(shape.decode_seqs + shape.prefill_seqs, shape.blocked_seqs)
        if decodes:
            base, attention = self._base(shape), self._decodes.get(decodes)
            start, floor = self._decode_seconds(decodes) if attention is None else attention
            by_host = self._host_seq_s * decodes
            least = base + (floor if floor > by_host else by_host)
            seconds = base + start + self._kv_token_s * shape.kv_tokens
            if shape.kv_tokens > self._most_kv:
                self._most_kv = shape.kv_tokens
                self._see("KV tokens that a step reads", shape.kv_tokens)
            seconds = seconds if seconds > least else least
        elif shape.prefill_tokens:
            seconds = self._base(shape)
        else:
            return 0.0
        return seconds if seconds > host else host

    def decode_line(self, shape: BatchShape) -> DecodeLine | None:
        """See `CostModel.decode_line`; the floor is that of decode attention or of the host."""
        decodes = shape.decode_seqs
        if shape.prefill_tokens or not decodes:
            return None
        base, attention, host = (
            self._base(shape),
            self._decodes.get(decodes),
            self._host.least(decodes, shape.blocked_seqs),
        )
        start, floor = self._decode_seconds(decodes) if attention is None else attention
        by_host = self._host_seq_s * decodes
        least = base + (floor if floor > by_host else by_host)
        if shape.kv_tokens > self._most_kv:
            self._most_kv = shape.kv_tokens
            self._see("KV tokens that a step reads", shape.kv_tokens)
        return DecodeLine(base + start, self._kv_token_s, least if least > host else host)

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        """See `CostModel.load_seconds`; host to GPU as `RooflineCost.load_seconds`."""
        return self._lora.load_seconds(adapter, tier)

    def explain(self, shape: BatchShape) -> dict[str, float]:
        """See `CostModel.explain`."""
        tokens, decodes = shape.tokens, shape.decode_seqs
        if not tokens:
            return {}
        start, floor = self._decode_seconds(decodes) if decodes else (0.0, 0.0)
        step, seq, token, pair = self._prefill if shape.prefill_tokens else (0.0, 0.0, 0.0, 0.0)
        prompts = seq * shape.prefill_seqs + token * shape.prefill_tokens + pair * shape.prefill_attention
        attention = max(start + self._kv_token_s * shape.kv_tokens, floor) if decodes else 0.0
        parts = {
            "linear_layers": self._gemm.at(tokens),
            "output_head": self._head_seconds(decodes + shape.prefill_seqs),
            "small_kernels": self._small_step_s + self._small_token_s * tokens,
            "prefill_attention": step + prompts,
            "lora": self._lora.seconds(shape),
            "all_reduce": self._all_reduce.at(tokens),
            "overhead": self._overhead_s,
        }
        others = sum(parts.values())
        parts["decode_attention"] = attention
        if not self._host.any:
            return parts
        return parts | {"host": self._host.part(shape, attention, others)}


COMPARED: tuple[str, ...] = ("a100-80gb", "h100-80gb", "h200")
"""GPUs whose steps, with vLLM's tables, are compared with AIConfigurator's own sums; see docs/cost-models.md."""


def _known_error(gpu: GPU, tables: KernelTables, dtypes: set[str], prefill: float, decode: float) -> str:
    """What steps were compared with; elsewhere, how far the fitted attention is from the tables."""
    if gpu.name in COMPARED and tables.engine == "vllm" and dtypes <= {"fp16", "bf16"}:
        return (
            "steps of Llama-3.1-8B without adapters within 5 % of AIConfigurator 0.12's, which sums the same kernels "
            "(8 % at 4,096 tokens a sequence); adapters, loads and whole runs are not compared on a GPU with this cost "
            "model"
        )
    return (
        f"not known: steps on {gpu.name} with {tables.engine}'s kernels in {' and '.join(sorted(dtypes))} are compared "
        f"with nothing; the fits of attention miss the measured kernels by {prefill:.1%} (prefill) and {decode:.1%} "
        "(decode) of a layer's time on average"
    )
