"""Sequence: the ledger's record of one submitted request, from arrival to its final status."""

from __future__ import annotations

from loratory.serving.compiling import mypyc_attr
from loratory.serving.request import Request, Status
from loratory.serving.usage import AdapterState, TenantState
from loratory.serving.views import RequestView
from loratory.serving.wait_queue import Queued


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class Sequence(Queued):
    """One request in an engine. Only the ledger writes it; backends and sinks read it; policies get `RequestView`.

    Times are absolute seconds, None until they happen. The e2e time of a request that completed is exactly
    ``queue_s + load_wait_s + prefill_s + decode_s + preempted_s``.

    ``admitted_at`` is the first admission, ``first_token_at`` the first output token, ``ended_at`` the final status.
    ``load_wait_s``: waited only because the adapter was being loaded. ``preempted_s``: from each preemption until the
    recomputed context gave its next token. ``hit``: adapter on the GPU and used before, at first admission.
    """

    __slots__ = (
        "adapter",
        "admissions",
        "admitted_at",
        "blocks",
        "clock",
        "decoding",
        "ended_at",
        "finish_clock",
        "first_token_at",
        "hit",
        "joins",
        "last_generated",
        "load_wait_s",
        "max_tokens",
        "offset",
        "preempted_at",
        "preempted_before_first_s",
        "preempted_s",
        "preemptions",
        "prefilled",
        "state",
        "target",
        "tenant",
        "why",
    )

    adapter: AdapterState
    tenant: TenantState
    clock: list[int]
    """The engine's decode clock, shared: one int, the decode steps committed so far."""
    max_tokens: int
    """Output tokens at which it ends, the engine's limit of context length included."""
    target: int
    """Context tokens to prefill in this residence: the prompt, and after a preemption the output so far."""
    prefilled: int
    """Of those, tokens in the KV cache (and in the step being run)."""
    offset: int
    """While it decodes: KV tokens minus decode clock."""
    blocks: int
    """KV blocks held while it is not decoding (see `loratory.serving.kv_pool.KVPool.held`)."""
    finish_clock: int
    """Decode clock at which it reaches ``max_tokens``."""

    def __init__(
        self, request: Request, adapter: AdapterState, tenant: TenantState, clock: list[int], max_tokens: int
    ) -> None:
        self.request = request
        self.adapter = adapter
        self.tenant = tenant
        self.clock = clock
        self.max_tokens = max_tokens
        self.state: Status = "waiting"
        self.why = ""
        self.ticket = 0
        self.decoding = False
        self.offset = 0
        self.blocks = 0
        self.finish_clock = 0
        self.last_generated = 0
        self.target = request.prompt_tokens
        self.prefilled = request.cached_tokens
        self.admissions = 0
        self.joins = 0
        """How often it began to decode."""
        self.preemptions = 0
        self.hit: bool | None = None
        self.admitted_at: float | None = None
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self.preempted_at: float | None = None
        self.load_wait_s = 0.0
        self.preempted_s = 0.0
        self.preempted_before_first_s = 0.0

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.request.request_id

    @property
    def kv_tokens(self) -> int:
        """Tokens in the KV cache. Each decode step of the engine adds one, so it is an offset to the decode clock."""
        return self.offset + self.clock[0] if self.decoding else self.prefilled if self.state == "running" else 0

    @property
    def generated(self) -> int:
        """Output tokens so far, preemptions included. After prefill of a context of c tokens, KV holds c of them."""
        if self.decoding:
            return self.offset + self.clock[0] - self.request.prompt_tokens + 1
        return self.last_generated

    @property
    def queue_s(self) -> float | None:
        """Seconds from arrival to first admission, less the wait for the adapter's load."""
        return None if self.admitted_at is None else self.admitted_at - self.request.arrival - self.load_wait_s

    @property
    def prefill_s(self) -> float | None:
        """Seconds from first admission to first token, less the time lost to preemption before it."""
        if self.admitted_at is None or self.first_token_at is None:
            return None
        return self.first_token_at - self.admitted_at - self.preempted_before_first_s

    @property
    def decode_s(self) -> float | None:
        """Seconds from first token to the end, less the time lost to preemption after it."""
        if self.first_token_at is None or self.ended_at is None:
            return None
        return self.ended_at - self.first_token_at - (self.preempted_s - self.preempted_before_first_s)


def sequence_of(request: RequestView) -> Sequence:
    """What the ledger knows of a request, also after its end: for sinks and backends, which only read it."""
    sequence: Sequence = request._sequence
    return sequence
