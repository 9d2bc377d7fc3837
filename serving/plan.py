"""StepPlan, BatchShape, CostView, StepResult: what a backend is asked to run, what that costs, what it answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from loratory.serving.lora import Adapter
from loratory.serving.sequence import Sequence


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


@dataclass(slots=True)  # not frozen: every admission makes one, and a frozen one takes five times as long to make
class Prefill:
    """One request's part of a step's prefill: compute ``tokens`` positions from ``start``.

    ``completes`` says that the whole context is then in the KV cache, so that the step samples a token.
    """

    sequence: Sequence
    start: int
    tokens: int
    completes: bool


class AdapterLoad(NamedTuple):
    """Bring ``adapter`` from ``tier`` to a GPU slot, or only as far as host memory when ``prefetch``."""

    adapter: Adapter
    tier: str
    prefetch: bool

    def fetch_seconds(self, cost: CostView) -> float:
        """Seconds to host memory by the cost model: from disk, or from farther by way of the disk."""
        if self.tier == "host":
            return 0.0
        seconds = cost.load_seconds(self.adapter, "disk")
        return seconds + cost.load_seconds(self.adapter, "remote") if self.tier == "remote" else seconds

    def seconds(self, cost: CostView) -> float:
        """Seconds of the whole load by the cost model, when no other is in its way."""
        seconds = self.fetch_seconds(cost)
        return seconds if self.prefetch else seconds + cost.load_seconds(self.adapter, "host")


@dataclass(slots=True)  # not frozen: see Prefill
class StepPlan:
    """One step to run. ``decodes`` reads the ledger's live set, so a backend uses it before it commits the plan.

    ``max_repeat``: for how many further identical decode steps nothing can change (0 when the step has a prefill).
    ``wake_at``: absolute second at whose following step boundary the policy wants to be asked, or None.
    ``epoch`` is equal for successive pure decode steps of an unchanged batch. ``loads`` start at this plan's time; with
    ``adapter_loading: sync`` the step waits for those that are not prefetches.
    """

    prefills: tuple[Prefill, ...]
    decode_count: int
    decodes: Collection[Sequence]
    loads: tuple[AdapterLoad, ...]
    max_repeat: int
    wake_at: float | None
    shape: BatchShape
    epoch: int

    @property
    def computes(self) -> bool:
        """Whether the step runs the model at all; a plan may hold nothing but loads."""
        return self.decode_count > 0 or bool(self.prefills)


@dataclass(slots=True)  # not frozen: see Prefill
class StepResult:
    """What a backend did with a plan: ``steps`` identical steps (1 for any plan that is not a pure decode).

    ``finished`` are the request ids whose last sampled token ended them (end of sequence, a stop string).
    ``load_s`` are the seconds for which the step waited for adapter loads (``adapter_loading: sync``). ``failed``: the
    requests of the plan that got no token because something of theirs is broken, each with the reason; they end failed.
    """

    steps: int = 1
    finished: Collection[str] = ()
    load_s: float = 0.0
    failed: Mapping[str, str] | None = None
