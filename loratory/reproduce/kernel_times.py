"""Kernel times: published times of linear layers, decode steps and prefills, and the predictions of a cost model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loratory.serving.plan import BatchShape
from loratory.sim.catalogue import gpu, model
from loratory.sim.cost import RooflineCost, RooflineOptions

PROMPT_TOKENS, OUTPUT_TOKENS = 1024, 256
"""Tokens of AIConfigurator's runs."""

TimeKind = Literal["linear", "decode", "prefill"]


@dataclass(frozen=True, slots=True)
class PublishedTime:
    """One published time: ``size`` is tokens of a linear layer, sequences of a decode step or a prefill."""

    kind: TimeKind
    gpu: str
    size: int
    measured_s: float

    def predicted_s(self, options: RooflineOptions | None = None) -> float:
        """Seconds by the roofline; a decode step is at the run's mean context."""
        if self.kind == "linear":
            return RooflineCost(model("llama-2-7b"), gpu(self.gpu), options=options).linear_seconds(self.size)
        return RooflineCost(model("llama-3.1-8b"), gpu(self.gpu), options=options).step_seconds(self.shape)

    @property
    def shape(self) -> BatchShape:
        """The batch of a decode step or a prefill."""
        n = self.size
        if self.kind == "decode":
            return BatchShape(decode_seqs=n, kv_tokens=n * (PROMPT_TOKENS + OUTPUT_TOKENS // 2))
        pairs = n * PROMPT_TOKENS * (PROMPT_TOKENS + 1) / 2
        return BatchShape(prefill_tokens=n * PROMPT_TOKENS, prefill_seqs=n, prefill_attention=pairs)


_LINEAR_MS = {
    "a100-80gb": {1: 8.5, 64: 8.9, 512: 30.5, 4096: 238.0},
    "h100-80gb": {1: 5.0, 64: 5.2, 512: 10.5, 4096: 70.8},
}
"""Measured kernel times of all linear layers of Llama-2-7B in fp16, by tokens."""

_DECODE_MS = {
    "h200": {1: 4.87, 8: 5.10, 32: 6.42, 64: 7.77},
    "h100-80gb": {1: 6.19, 32: 8.46},
    "a100-80gb": {1: 11.9, 32: 16.0},
}
"""AIConfigurator 0.12, Llama-3.1-8B, vLLM 0.24, 1024 in / 256 out: time per output token by batch size."""

_PREFILL_MS = {"h200": {1: 21.2, 8: 176.0, 32: 701.0, 64: 1410.0}}
"""The same runs: prefill of the whole batch."""


def figures() -> tuple[PublishedTime, ...]:
    """Every published time, in the order of docs/fidelity.md."""
    tables: tuple[tuple[TimeKind, dict[str, dict[int, float]]], ...] = (
        ("linear", _LINEAR_MS),
        ("decode", _DECODE_MS),
        ("prefill", _PREFILL_MS),
    )
    return tuple(
        PublishedTime(kind, card, size, ms / 1e3)
        for kind, table in tables
        for card, sizes in table.items()
        for size, ms in sizes.items()
    )
