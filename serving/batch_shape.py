"""BatchShape, what a cost model may know of a step; CostView, what a policy may ask of a cost model."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from loratory.serving.lora import Adapter


class BatchShape(NamedTuple):
    """All a cost model may know of a step. It names no requests or adapters, so equal shapes cost equal."""

    prefill_tokens: int = 0
    """Prompt tokens that the step computes."""
    prefill_attention: float = 0.0
    """(query token, key token) pairs of the prefill chunks, causal mask applied: for ``n`` tokens that follow ``s``
    computed ones ``n * (s + (n + 1) / 2)``."""
    prefill_seqs: int = 0
    """Prefill chunks: requests of which it computes prompt tokens."""
    decode_seqs: int = 0
    """Requests that decode: each computes one token."""
    kv_tokens: int = 0
    """Tokens in the KV cache of the decoding requests: what decode attention reads."""
    distinct_adapters: int = 0
    """Distinct adapters in the step, the base model not counted."""
    sum_ranks: int = 0
    """Sum of the ranks of the distinct adapters."""
    max_rank: int = 0
    """Largest rank of the distinct adapters."""
    lora_tokens: int = 0
    """Tokens, of prefill and decode, of requests that want an adapter."""
    lora_token_ranks: int = 0
    """Sum, over those tokens, of their adapter's rank."""
    blocked_seqs: int = 0
    """Waiting requests, if each of them waits for an adapter: a scheduler that passes over them looks at every one. 0
    if one waits for something else, because it stops there."""

    @property
    def tokens(self) -> int:
        """Tokens the step computes: the prefill chunks plus one for each decoding sequence."""
        return self.prefill_tokens + self.decode_seqs


class CostView(Protocol):
    """What a policy may ask of the cost model."""

    def step_seconds(self, shape: BatchShape) -> float:
        """Seconds a step of this shape takes."""

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        """Seconds of the hop of an adapter that starts at ``tier``: remote to disk, disk to host, or host to GPU."""
