"""Metric counts: what a server has counted, as plain numbers. One thread writes each; any thread may read."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from operator import attrgetter
from threading import Lock
from typing import NamedTuple

from loratory.reports.tenant_service import OUTPUT_WEIGHT
from loratory.server.backlog import Backlog
from loratory.server.buckets import (
    EACH_TPOT_S,
    EACH_TTFT_S,
    LOAD_S,
    REQUEST_S,
    STEP_S,
    STEP_TOKENS,
    TOKEN_S,
    TTFT_S,
    WAIT_S,
    Buckets,
    one_two_five,
)
from loratory.server.label_text import label_text
from loratory.server.leaders import OTHER, Leaders
from loratory.server.residency import Residency
from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter

PHASES = ("queue", "adapter_load", "prefill", "decode", "preempted")
"""The parts of a completed request's time, which together are all of it (`loratory.serving.sequence.Sequence`)."""

TRANSITIONS = ("load", "activate")
"""vLLM's words: "load" from disk or farther, to wherever the load went; "activate" from host memory to a slot."""

MOST_NAMES = 32
"""Adapters, and tenants, that have series of their own."""

_MOST_KEYS = 200
"""Different label values that the HTTP side may count under one metric; more are counted as "other"."""


class Swap(NamedTuple):
    """A policy was put in: when (unix time), which, and why the one before it went; "" where that was ordered."""

    unix_s: float
    policy: str
    why: str


class AdapterCounts:
    """Of one adapter, by the name that clients use."""

    __slots__ = ("evictions", "failures", "hits", "loads", "misses", "output_tokens", "requests", "tpot", "ttft")

    def __init__(self) -> None:
        self.requests = 0
        self.output_tokens = 0
        self.hits = 0
        self.misses = 0
        self.loads: Counter[str] = Counter()
        """By where to: gpu or host."""
        self.failures = 0
        self.evictions: Counter[str] = Counter()
        """By where from: gpu or host."""
        self.ttft = Buckets(EACH_TTFT_S)
        self.tpot = Buckets(EACH_TPOT_S)


class TenantCounts:
    """Of one tenant. ``name``: the engine's for it. ``queued``: its requests that wait and never ran yet."""

    __slots__ = ("name", "output_tokens", "prompt_tokens", "queued", "requests", "running", "ttft", "waiting", "weight")

    def __init__(self) -> None:
        self.name = ""
        self.requests = 0
        self.waiting = 0
        self.running = 0
        self.queued = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.weight = 1.0
        self.ttft = Buckets(EACH_TTFT_S)

    @property
    def service(self) -> float:
        """Weighted tokens: a prompt's when it is admitted, an output's one by one, which count twice (VTC)."""
        return self.prompt_tokens + OUTPUT_WEIGHT * self.output_tokens


class Counts:
    """Everything that a server has counted. What the engine's thread writes first, then what HTTP's threads do."""

    def __init__(
        self, config: EngineConfig, model_name: str, adapters: Iterable[Adapter], policy: str, queue_limit: int | None
    ) -> None:
        self.config = config
        self.model_name = model_name
        self.queue_limit = queue_limit
        self.max_num_seqs = config.max_num_seqs
        """The limit in force: an operator may lower it."""
        self.residency = Residency(adapters, config.host_slots, config.adapter_loading == "sync")
        self.in_flight: dict[str, list[int]] = {}
        """By the engine's adapter name, requests that run and that wait; only while there are any."""
        self.running = 0
        self.waiting = 0
        self.kv_blocks = 0
        self.batch_adapters = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.hits = 0
        self.misses = 0
        self.preemptions: Counter[str] = Counter()
        self.ended: Counter[tuple[str, str]] = Counter()
        """By status and word (`loratory.server.end_reasons`)."""
        self.refusals: Counter[tuple[str, str]] = Counter()
        """By action and word of refusal (`loratory.serving.actions.Outcome`)."""
        self.policy = policy
        self.swaps: Counter[str] = Counter()
        """By outcome: done, or put_back where a policy failed and the one before it returned."""
        self.swapped: deque[Swap] = deque(maxlen=20)
        """The last swaps."""
        longest = config.max_model_len or config.require_blocks() * config.block_size
        self.ttft, self.itl, self.tpot = Buckets(TTFT_S), Buckets(TOKEN_S), Buckets(TOKEN_S)
        self.e2e, self.queue, self.prefill = Buckets(REQUEST_S), Buckets(REQUEST_S), Buckets(REQUEST_S)
        self.decode, self.inference = Buckets(REQUEST_S), Buckets(REQUEST_S)
        self.phases = {phase: Buckets(WAIT_S) for phase in PHASES}
        self.request_prompt, self.request_output = Buckets(one_two_five(longest)), Buckets(one_two_five(longest))
        self.max_tokens = Buckets(one_two_five(longest))
        self.step_tokens, self.step = Buckets(STEP_TOKENS), Buckets(STEP_S)
        self.load_wait_s = 0.0
        self.loads = {transition: Buckets(LOAD_S) for transition in TRANSITIONS}
        self.adapters = Leaders(MOST_NAMES, AdapterCounts)
        self.tenants = Leaders(MOST_NAMES, TenantCounts)
        self.backlog: Backlog[TenantCounts] = Backlog(attrgetter("service"), attrgetter("weight"))

        self._lock = Lock()
        self.swaps_refused = 0
        self.responses: Counter[tuple[str, str]] = Counter()
        """By route and status of the answer."""
        self.refused: Counter[str] = Counter()
        """Requests that HTTP refused, by reason: the engine never saw them."""

    def respond(self, route: str, status: int) -> None:
        """HTTP answered; ``route`` is a template of the app's, such as ``/v1/completions``."""
        key = (label_text(route), str(status))
        with self._lock:
            known = key in self.responses or len(self.responses) < _MOST_KEYS
            self.responses[key if known else (OTHER, str(status))] += 1

    def refuse(self, reason: str) -> None:
        """HTTP refused a request."""
        reason = label_text(reason)
        with self._lock:
            self.refused[reason if reason in self.refused or len(self.refused) < _MOST_KEYS else OTHER] += 1

    def refuse_swap(self) -> None:
        """A policy was not put in, because it did not pass its checks."""
        with self._lock:
            self.swaps_refused += 1
