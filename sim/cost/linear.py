"""LinearCost: published or fitted constants, given in the scenario."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from loratory.serving.lora import Adapter
from loratory.serving.plan import BatchShape
from loratory.sim.cost.base import DecodeLine
from loratory.sim.cost.options import TransferOptions, parse
from loratory.sim.cost.transfer import TransferModel


class LinearOptions(BaseModel):
    """The constants, in seconds per unit in the name. S-LoRA's appendix and VTC's profile are of this form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decode_base_s: float = Field(default=0.0, ge=0, description="a step that decodes")
    decode_per_seq_s: float = Field(default=0.0, ge=0, description="per decoding sequence")
    decode_per_kv_token_s: float = Field(default=0.0, ge=0, description="per KV token read by decode attention")
    decode_floor_s: float = Field(default=0.0, ge=0, description="least time of a step that decodes, LoRA not counted")
    decode_gemm_floor_s: float = Field(default=0.0, ge=0, description="least time of base and sequences of a decode")
    prefill_base_s: float = Field(default=0.0, ge=0, description="a step that prefills")
    prefill_per_token_s: float = Field(default=0.0, ge=0, description="per prefill token")
    prefill_attention_s: float = Field(default=0.0, ge=0, description="per (query, key) pair of prefill attention")
    lora_floor_s: float = Field(default=0.0, ge=0, description="least time of a decode step with adapters, all counted")
    lora_step_s: float = Field(default=0.0, ge=0, description="a step with any adapter in it")
    per_adapter_s: float = Field(default=0.0, ge=0, description="per distinct adapter in the step")
    per_rank_s: float = Field(default=0.0, ge=0, description="per unit of the sum of distinct adapters' ranks")
    lora_token_s: float = Field(default=0.0, ge=0, description="per token that has an adapter")
    lora_token_rank_s: float = Field(default=0.0, ge=0, description="per token that has an adapter, times its rank")
    lora_decode_max_rank_s: float = Field(
        default=0.0, ge=0, description="per decoding sequence that has an adapter, times the largest rank of the step"
    )
    slot_token_s: float = Field(default=0.0, ge=0, description="per token of the step and adapter slot of the engine")
    load_base_s: float = Field(default=0.0, ge=0, description="per adapter load, host to GPU")
    load_per_rank_s: float = Field(default=0.0, ge=0, description="per adapter load, times its rank")
    load_per_byte_s: float = Field(default=0.0, ge=0, description="per adapter load, times its bytes")
    transfers: TransferOptions = Field(default=TransferOptions(), description="remote to disk and disk to host")
    source: str = Field(default="constants of the scenario", description="where the constants come from")


class LinearCost:
    """Step time linear in the batch, with a floor for steps that decode.

    decode:  max(floor, base + per_seq * sequences + per_kv_token * KV tokens)
    prefill: base + per_token * tokens + attention * pairs
    LoRA:    step + per_adapter * adapters + per_rank * sum of ranks + token * tokens + token_rank * sum of token ranks
             + decode_max_rank * largest rank * decoding sequences that have an adapter
    slots:   slot_token * max_loras * tokens, in every step

    A mixed step is one launch of both: the larger of the two bases, once, then every other term; the floor bounds
    the sum of decode and prefill parts. LoRA comes on top of the floor, because a floor is fitted without adapters.

    Kernels that pad every adapter to the largest rank of the batch (Punica's BGMV) cost ``decode_max_rank``. A shape
    does not tell which decoding sequences of a mixed step have an adapter: as many as possible are assumed. Kernels
    whose grid spans all of the engine's ``max_loras`` slots (vLLM V1 0.8.5: thread blocks for each slot and block of
    tokens, most of them idle) cost in proportion to them, whatever is in the batch.
    """

    name = "linear"

    def __init__(self, options: LinearOptions, max_loras: int = 0) -> None:
        self.options = options
        self.source = options.source
        self.known_error = f"that of its constants ({options.source}); none is known beyond that"
        self.warnings: list[str] = []
        o = options
        self.below = o.transfers
        self._transfers = TransferModel(self.below, o.load_base_s, o.load_per_byte_s, o.load_per_rank_s)
        self._decode = (o.decode_base_s, o.decode_per_seq_s, o.decode_per_kv_token_s, o.decode_floor_s)
        self._gemm_floor = o.decode_gemm_floor_s
        self._prefill = (o.prefill_base_s, o.prefill_per_token_s, o.prefill_attention_s)
        self._slots_per_token = o.slot_token_s * max_loras
        self._mixed_base = max(o.decode_base_s, o.prefill_base_s)
        self._lora_floor = o.lora_floor_s
        self._lora = (o.lora_step_s, o.per_adapter_s, o.per_rank_s, o.lora_token_s, o.lora_token_rank_s)
        self._padded = o.lora_decode_max_rank_s

    @classmethod
    def from_options(cls, options: Mapping[str, object], max_loras: int = 0) -> LinearCost:
        """From a scenario's ``cost:`` mapping; `InputError` for unknown keys or bad values."""
        return cls(parse(LinearOptions, options, "cost"), max_loras)

    def _lora_seconds(self, shape: BatchShape) -> float:
        if not shape.distinct_adapters and not shape.lora_tokens:
            return 0.0
        step, adapter, rank, token, token_rank = self._lora
        return (
            step
            + adapter * shape.distinct_adapters
            + rank * shape.sum_ranks
            + token * shape.lora_tokens
            + token_rank * shape.lora_token_ranks
            + self._padded * shape.max_rank * min(shape.decode_seqs, shape.lora_tokens)
        )

    def _line(self, shape: BatchShape) -> tuple[float, float]:
        """(intercept, floor) of a step with this shape, KV tokens aside."""
        base, per_seq, _, floor = self._decode
        if shape.prefill_tokens:
            prefill_base, per_token, per_pair = self._prefill
            intercept = per_token * shape.prefill_tokens + per_pair * shape.prefill_attention
            if shape.decode_seqs:
                intercept = max(self._gemm_floor, intercept + self._mixed_base + per_seq * shape.decode_seqs)
            else:
                intercept += prefill_base
                floor = 0.0
        else:
            intercept = max(self._gemm_floor, base + per_seq * shape.decode_seqs)
        if self._slots_per_token:
            slots = self._slots_per_token * shape.tokens
            intercept, floor = intercept + slots, floor + slots
        if shape.distinct_adapters or shape.lora_tokens:
            lora = self._lora_seconds(shape)
            floor += lora
            if floor < self._lora_floor and shape.decode_seqs:
                floor = self._lora_floor
            return intercept + lora, floor
        return intercept, floor

    def step_seconds(self, shape: BatchShape) -> float:
        """See `CostModel.step_seconds`."""
        if not shape.decode_seqs and not shape.prefill_tokens:
            return 0.0
        intercept, floor = self._line(shape)
        seconds = intercept + self._decode[2] * shape.kv_tokens
        return seconds if seconds > floor else floor

    def decode_line(self, shape: BatchShape) -> DecodeLine | None:
        """See `CostModel.decode_line`."""
        if shape.prefill_tokens or not shape.decode_seqs:
            return None
        intercept, floor = self._line(shape)
        return DecodeLine(intercept, self._decode[2], floor)

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        """See `CostModel.load_seconds`; host to GPU is load_base + load_per_rank * rank + load_per_byte * bytes."""
        return self._transfers.seconds(adapter, tier)

    def explain(self, shape: BatchShape) -> dict[str, float]:
        """See `CostModel.explain`."""
        total = self.step_seconds(shape)
        if total == 0.0:
            return {}
        base = self._mixed_base if shape.decode_seqs and shape.prefill_tokens else 0.0
        if not base:
            base = self._decode[0] if shape.decode_seqs else self._prefill[0]
        parts = {
            "base": base,
            "decode_sequences": self._decode[1] * shape.decode_seqs,
            "decode_attention": self._decode[2] * shape.kv_tokens,
            "prefill_tokens": self._prefill[1] * shape.prefill_tokens,
            "prefill_attention": self._prefill[2] * shape.prefill_attention,
            "lora": self._lora_seconds(shape),
            "lora_slots": self._slots_per_token * shape.tokens,
        }
        parts["floor"] = max(0.0, total - sum(parts.values()))
        return parts
