"""Ledger: the only mutable state of an engine. It executes actions and refuses unsafe ones, whatever the policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from loratory.serving.actions import OK, REFUSED, Outcome
from loratory.serving.adapter_states import AdapterStates, AdapterViews
from loratory.serving.compiling import mypyc_attr
from loratory.serving.config import EngineConfig
from loratory.serving.engine_adapters import Roster, adapter_state, max_context
from loratory.serving.gpu_slots import GpuSlots
from loratory.serving.host_cache import HostCache
from loratory.serving.kv_pool import KVPool
from loratory.serving.lora import Adapter
from loratory.serving.lora_batch import LoraBatch
from loratory.serving.plan import CostView, Prefill
from loratory.serving.request import Request, Status
from loratory.serving.sequence import Sequence
from loratory.serving.usage import AdapterState, TenantState
from loratory.serving.views import AdapterView, RequestView, TenantView
from loratory.serving.wait_index import WaitIndex

KV_CACHE = "the KV cache"
"""What the reasons of rejections call it."""


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class Ledger:
    """Waiting and running requests, adapter tiers and slots, KV blocks and budgets of one engine.

    ``config`` must name ``num_gpu_blocks``. ``kv_bytes_per_token`` (one replica, all its GPUs) is needed with
    ``memory: unified``, where an adapter takes as many KV blocks as its bytes fill. Raises `InputError` for adapters
    that the configuration can never serve: a rank above ``max_lora_rank``, equal names or ids, too many pinned.
    ``adapters`` may be a `Roster` that other engines with this configuration share.
    """

    __slots__ = (
        "_chunked",
        "_full_context",
        "_kv_bytes_per_token",
        "_max_chunk",
        "_max_context",
        "_max_seqs",
        "_max_tokens",
        "_thresholds",
        "_watermark",
        "adapter_views",
        "adapters",
        "base",
        "batch",
        "clock",
        "config",
        "context_limit",
        "cost",
        "decoding",
        "ended",
        "epoch",
        "held",
        "host_cache",
        "kv",
        "leaving",
        "looks_past",
        "now",
        "partial",
        "preempted_decoding",
        "prefills",
        "removed",
        "roster",
        "running",
        "seated",
        "sequences",
        "slots",
        "tenant_views",
        "tenants",
        "token_budget",
        "waiting",
    )

    def __init__(
        self,
        config: EngineConfig,
        adapters: Iterable[Adapter] | Roster,
        cost: CostView,
        kv_bytes_per_token: int | None = None,
    ) -> None:
        self.config = config
        self._kv_bytes_per_token = kv_bytes_per_token
        self.cost = cost
        self._max_seqs = config.max_num_seqs
        self._max_tokens = config.max_num_batched_tokens
        self._chunked = config.enable_chunked_prefill
        threshold = config.long_prefill_token_threshold or self._max_tokens
        self._thresholds = (self._max_tokens if not config.long_prefill_threshold_alone else threshold, threshold)
        """The largest chunk of a request that is alone in the engine, and of any other."""
        self._max_chunk = threshold
        self._full_context = config.scheduler_reserve_full_isl
        self._watermark = config.watermark_blocks
        self.now = 0.0
        """The absolute second of the last plan or commit."""
        self.clock = [0]
        """The decode clock: the decode steps committed so far. A list, so that others share it."""
        self.sequences: dict[str, Sequence] = {}
        """The waiting and the running requests."""
        self.running: dict[str, Sequence] = {}
        """In order of admission. Each of them is in one of the next four."""
        self.decoding: dict[str, Sequence] = {}
        self.partial: dict[str, Sequence] = {}
        """Running requests whose context is not in the KV cache yet, or only part of it."""
        self.held: dict[str, Sequence] = {}
        """Running requests that could decode, but compute nothing in this step: one before them was preempted."""
        self.seated: dict[str, Sequence] = {}
        """With async scheduling: the step in flight gives them their last token. They keep their place among the
        running requests and their blocks, but use no adapter."""
        self.preempted_decoding: list[Sequence] = []
        """Requests that decoded, and were preempted by the last plan."""
        self.prefills: dict[str, Prefill] = {}
        """This step's prefill chunks."""
        self.token_budget = 0
        """Tokens that this step can still prefill."""
        self.tenants: dict[str, TenantState] = {}
        self.tenant_views: dict[str, TenantView] = {}
        self.roster = adapters if isinstance(adapters, Roster) else Roster(config, adapters)
        """The adapters at the start."""
        self.adapters = AdapterStates(self.roster.specs, self.make_state)
        self.adapter_views = AdapterViews(self.adapters)
        self.leaving: dict[str, AdapterState] = {}
        """Adapters that are to go: they take no request, and are there until nothing uses them any more."""
        self.removed: dict[str, AdapterState] = {}
        """Adapters that have gone. One that comes back goes on with its counts, on which fair policies rely."""
        self.kv = KVPool(config.require_blocks(), config.block_size, self.clock)
        self.host_cache = HostCache(config.host_slots)
        sync = config.adapter_loading == "sync"
        self.slots = GpuSlots(config.max_loras, sync, self.kv, self.host_cache, self.adapters, self.running)
        self.waiting = WaitIndex(self.slots.obtainable, self._on_gpu)
        self.base = AdapterState(None, 0, self.waiting.queued, self.clock)
        self.base.view = AdapterView(self.base)
        self.batch = LoraBatch()
        self.looks_past = False
        """Whether the step in flight is taken as done: `Engine.plan` counts its tokens before they are made."""
        self.epoch = 0
        """Grows whenever the running batch changes."""
        self.ended = 0
        """Requests that have a final status."""
        first = [self.adapters[adapter.name] for adapter in self.roster.first]
        for state in first:
            self.host_cache.start(state)
        self._max_context = max_context(self.kv, first)
        self.context_limit = min(self._max_context + 1, config.max_model_len or self._max_context + 1)
        """Tokens that prompt and output of a request may have; the last of them needs no place in the KV cache."""

    # -- what a policy reads -------------------------------------------------------------------------------------

    @property
    def seq_budget(self) -> int:
        """Requests that can still be admitted before ``max_num_seqs`` run."""
        return self._max_seqs - len(self.running)

    def make_state(self, adapter: Adapter) -> AdapterState:
        """The state of an adapter that nothing has asked for so far."""
        return adapter_state(self.config, adapter, self.kv, self._kv_bytes_per_token, self.waiting.queued)

    def _on_gpu(self) -> Iterator[AdapterState]:
        """The adapters on the GPU, or those of them that requests wait for, whichever are fewer to find."""
        backlogged = self.waiting.backlogged
        if len(backlogged) < len(self.slots.on_gpu):
            return iter([view._state for view in backlogged.values() if view._state.tier == "gpu"])
        return iter([self.base, *self.slots.on_gpu.values()])

    def limit_seqs(self, max_num_seqs: int) -> str:
        """Admit at most so many requests at once from now on; those that run go on. Returns why not, or ""."""
        most = self.config.max_num_seqs
        if not 1 <= max_num_seqs <= most:
            return f"max_num_seqs is {max_num_seqs}: give from 1 to {most}, for which the engine was started"
        self._max_seqs = max_num_seqs
        return ""

    def can_admit(self) -> bool:
        """Whether this step has tokens and a place left for another request."""
        return self.token_budget > 0 and len(self.running) < self._max_seqs

    # -- requests come and go ------------------------------------------------------------------------------------

    def submit(self, request: Request) -> tuple[Sequence, str]:
        """A request arrives, and waits. The second value is the reason to reject it if it can never run, else empty."""
        tenant = self.tenants.get(request.tenant)
        if tenant is None:
            tenant = self.tenants[request.tenant] = TenantState(request.tenant, self.waiting.queued, self.clock)
            tenant.view = self.tenant_views[request.tenant] = TenantView(tenant)
        adapter = self.base if request.adapter is None else self.adapters.find(request.adapter)
        max_tokens = request.max_tokens
        room = self.context_limit - request.prompt_tokens
        if max_tokens > room:
            max_tokens = max(room, 1)
        sequence = Sequence(request, adapter or self.base, tenant, self.clock, max_tokens)
        sequence.view = RequestView(sequence)
        if adapter is None or (self.leaving and request.adapter in self.leaving):
            return sequence, f"adapter {request.adapter!r} is not registered"
        if room < 1:
            return sequence, f"prompt of {request.prompt_tokens} tokens and an output do not fit {self._fits()}"
        self.sequences[request.request_id] = sequence
        self.waiting.join(sequence)
        return sequence, ""

    def _fits(self) -> str:
        """What a request's prompt and output must fit, in words."""
        if self.context_limit == self.config.max_model_len:
            return f"max_model_len {self.context_limit}"
        return f"{KV_CACHE}, which holds {self._max_context} tokens of one request"

    def end(self, sequence: Sequence, status: Status, why: str) -> None:
        """Give a request its final status and free what it holds."""
        if sequence.state == "running":
            self._stop(sequence)
        elif sequence.state == "waiting" and sequence.ticket:
            self.waiting.leave(sequence)
        self.sequences.pop(sequence.request.request_id, None)
        sequence.state = status
        sequence.why = why
        sequence.ended_at = self.now
        self.ended += 1
        if sequence.preempted_at is not None:
            self.settle_preemption(sequence)

    def settle_preemption(self, sequence: Sequence) -> None:
        """A preempted request has its next token, or has ended: count the time that the preemption took."""
        assert sequence.preempted_at is not None
        lost = self.now - sequence.preempted_at
        sequence.preempted_s += lost
        if sequence.first_token_at is None:
            sequence.preempted_before_first_s += lost
        sequence.preempted_at = None

    def _stop(self, sequence: Sequence) -> None:
        """Take a running request out of the batch, and free its blocks and its hold on its adapter."""
        request_id = sequence.request.request_id
        del self.running[request_id]
        if sequence.decoding:
            self._stop_decoding(sequence)
        else:
            self.kv.give(sequence.blocks)
            sequence.blocks = 0
            self.partial.pop(request_id, None)
            self.held.pop(request_id, None)
            prefill = self.prefills.pop(request_id, None)
            if prefill is not None:
                self.token_budget += prefill.tokens
        sequence.tenant.running -= 1
        if not (self.seated and self.seated.pop(request_id, None) is not None):
            self._leave_adapter(sequence.adapter)
        self.epoch += 1

    def _stop_decoding(self, sequence: Sequence) -> None:
        """Take a request out of those that decode, and free its blocks."""
        adapter, tenant, request_id = sequence.adapter, sequence.tenant, sequence.request.request_id
        del self.decoding[request_id]
        clock = self.clock[0]
        sequence.last_generated = sequence.offset + clock - sequence.request.prompt_tokens + 1  # `generated`
        self.kv.leave(sequence)
        sequence.decoding = False
        adapter.decoding -= 1
        adapter.output_offset += clock
        tenant.decoding -= 1
        tenant.output_offset += clock
        if adapter.rank:
            self.batch.decoding -= 1
            self.batch.decoding_ranks -= adapter.rank

    def _leave_adapter(self, adapter: AdapterState) -> None:
        """A running request uses its adapter no more."""
        adapter.running -= 1
        if adapter.rank:
            adapter.last_used = self.now
            if not adapter.running:
                self.batch.leave(adapter.rank)
                if not adapter.pinned:
                    assert adapter.name is not None
                    self.slots.idle[adapter.name] = adapter

    def hold(self, sequence: Sequence) -> None:
        """A decoding request computes nothing in this step. `release` lets it go on."""
        self._pause(sequence)
        self.held[sequence.request_id] = sequence

    def release(self) -> None:
        """The step is over: the requests that were held decode again."""
        for sequence in self.held.values():
            sequence.target = sequence.prefilled
            sequence.last_generated -= 1  # `begin_decode` counts the token that was sampled last
            sequence.adapter.output_offset -= 1
            sequence.tenant.output_offset -= 1
            self.partial[sequence.request_id] = sequence
            self.begin_decode(sequence)
        self.held.clear()

    def seat(self, sequence: Sequence) -> None:
        """The step in flight gives a request its last token: until that step is committed it only keeps its blocks."""
        self._pause(sequence)
        self.seated[sequence.request_id] = sequence
        self._leave_adapter(sequence.adapter)
        self.epoch += 1

    def take_back_token(self, sequence: Sequence) -> None:
        """A request ends before the step in flight does: its token of that step, if it has one, was never made."""
        request_id = sequence.request.request_id
        if sequence.decoding:
            self._pause(sequence)
            self.held[request_id] = sequence
        elif request_id not in self.held and request_id not in self.seated and sequence not in self.preempted_decoding:
            return
        sequence.last_generated -= 1
        sequence.adapter.output_offset -= 1
        sequence.tenant.output_offset -= 1

    def _pause(self, sequence: Sequence) -> None:
        """Take a request out of those that decode; it goes on running and holding its blocks."""
        blocks, tokens = self.kv.held(sequence), sequence.kv_tokens
        self._stop_decoding(sequence)
        self.kv.take(blocks)
        sequence.blocks, sequence.prefilled = blocks, tokens
        self.epoch += 1

    def in_state(self, view: RequestView, state: Literal["waiting", "running"]) -> Sequence | None:
        """The request behind a view, if it is one of this engine's in that state; None for anything else."""
        sequence: Sequence | None = view._sequence if type(view) is RequestView else None
        return sequence if sequence is not None and sequence.state == state and sequence.clock is self.clock else None

    # -- actions -------------------------------------------------------------------------------------------------

    def admit(self, view: RequestView, tokens: int | None = None) -> Outcome:
        """Run a waiting request, prefilling up to ``tokens`` of its context in this step."""
        # `in_state`, without the call
        sequence: Sequence | None = view._sequence if type(view) is RequestView else None
        if sequence is None or sequence.state != "waiting" or sequence.clock is not self.clock:
            return REFUSED["unknown"]
        if len(self.running) >= self._max_seqs:
            return REFUSED["seqs"]
        start = sequence.prefilled
        chunk = self.chunk(sequence.target - start)
        if tokens is not None:
            chunk = min(chunk, tokens) if type(tokens) is int else 0
        if chunk < 1:
            return REFUSED["budget"]
        kv, adapter = self.kv, sequence.adapter
        end = start + chunk
        blocks = -(-end // kv.block_size)
        free = kv.total - kv.used
        if self._watermark and self.running:
            free -= self._watermark
        if blocks > free or (self._full_context and -(-sequence.target // kv.block_size) > free):
            return REFUSED["kv"]
        if adapter.tier != "gpu":
            return REFUSED["adapter"]
        request_id = sequence.request.request_id
        self.waiting.leave(sequence)
        sequence.state = "running"
        sequence.blocks = blocks
        sequence.prefilled = end
        kv.take(blocks)
        self.token_budget -= chunk
        self.prefills[request_id] = Prefill(sequence, start, chunk, end == sequence.target)
        self.running[request_id] = self.partial[request_id] = sequence
        self.epoch += 1
        sequence.admissions += 1
        if sequence.admissions == 1:
            self._first_admission(sequence, adapter)
        sequence.tenant.running += 1
        adapter.running += 1
        if adapter.rank:
            adapter.fresh = False
            adapter.uses += 1
            adapter.last_used = self.now
            if adapter.running == 1:
                self.batch.enter(adapter.rank)
                assert adapter.name is not None
                self.slots.idle.pop(adapter.name, None)
        return OK

    def _first_admission(self, sequence: Sequence, adapter: AdapterState) -> None:
        now, request = self.now, sequence.request
        sequence.admitted_at = now
        sequence.tenant.admitted_tokens += request.prompt_tokens
        adapter.admitted_tokens += request.prompt_tokens
        if adapter.rank:
            sequence.hit = not adapter.fresh
            if adapter.loaded_at > request.arrival:
                waited = min(adapter.loaded_at, now) - max(adapter.load_started, request.arrival)
                sequence.load_wait_s = max(0.0, waited)

    def begin_step(self) -> None:
        """A step is planned: its token budget, and its largest chunk."""
        self.token_budget = self._max_tokens
        if self.preempted_decoding:
            self.preempted_decoding.clear()
        self._max_chunk = self._thresholds[len(self.sequences) > 1]

    def chunk(self, remaining: int) -> int:
        """The tokens of a request's ``remaining`` context that this step may prefill; 0 if the budget allows none."""
        budget = self.token_budget
        if remaining > self._max_chunk:
            remaining = self._max_chunk
        if remaining <= budget:
            return remaining
        if not self._chunked and budget < self._max_tokens:
            return 0
        return max(budget, 0)

    def extend(self, sequence: Sequence, tokens: int | None = None) -> bool:
        """Prefill the next chunk of a part-prefilled request in this step; False if KV blocks are missing.

        ``tokens``: its size, where `chunk` was asked before.
        """
        chunk = self.chunk(sequence.target - sequence.prefilled) if tokens is None else tokens
        if chunk < 1:
            return True
        blocks = self.kv.blocks(sequence.prefilled + chunk)
        if blocks - sequence.blocks > self.kv.free:
            return False
        self.kv.take(blocks - sequence.blocks)
        sequence.blocks = blocks
        end = sequence.prefilled + chunk
        self.prefills[sequence.request_id] = Prefill(sequence, sequence.prefilled, chunk, end == sequence.target)
        sequence.prefilled = end
        self.token_budget -= chunk
        return True

    def retract(self, sequence: Sequence) -> None:
        """Take back the chunk that this step was to prefill of a part-prefilled request (`extend`)."""
        prefill = self.prefills.pop(sequence.request_id)
        blocks = self.kv.blocks(prefill.start)
        self.kv.give(sequence.blocks - blocks)
        sequence.blocks, sequence.prefilled = blocks, prefill.start
        self.token_budget += prefill.tokens

    def preempt(self, view: RequestView) -> Outcome:
        """Take a running request's blocks: it waits again, in front, and its context will be recomputed."""
        sequence = self.in_state(view, "running")
        if sequence is None:
            return REFUSED["unknown"]
        prefill = self.prefills.get(sequence.request_id)
        if prefill is not None and prefill.start == sequence.request.cached_tokens:
            return REFUSED["in_use"]
        if sequence.decoding or sequence.request_id in self.seated:
            self.preempted_decoding.append(sequence)
        self._stop(sequence)
        sequence.state = "waiting"
        sequence.preemptions += 1
        sequence.target = sequence.request.prompt_tokens + sequence.last_generated
        sequence.prefilled = sequence.request.cached_tokens
        if sequence.preempted_at is None:
            sequence.preempted_at = self.now
        self.waiting.rejoin(sequence)
        return OK

    def load(self, name: str) -> Outcome:
        """Bring an adapter to a free GPU slot. With sync loading it can be used at once, else when the load ends."""
        return self.slots.load(name, self.now)

    def prefetch(self, name: str) -> Outcome:
        """Bring an adapter from disk or farther to host memory."""
        return self.slots.prefetch(name)

    def evict(self, name: str) -> Outcome:
        """Free the GPU slot of an adapter that no running request uses; it stays in host memory."""
        outcome = self.slots.evict(name)
        if outcome.ok:
            self.waiting.cooled(self.adapters[name])
        return outcome

    # -- the step ------------------------------------------------------------------------------------------------

    def begin_decode(self, sequence: Sequence) -> None:
        """A request's context is in the KV cache and its next token sampled: from now on it decodes."""
        request_id, adapter, tenant = sequence.request.request_id, sequence.adapter, sequence.tenant
        clock = self.clock[0]
        sequence.joins += 1
        del self.partial[request_id]
        self.decoding[request_id] = sequence
        sequence.finish_clock = clock + sequence.max_tokens - sequence.last_generated - 1
        self.kv.join(sequence)
        sequence.decoding = True
        adapter.decoding += 1
        adapter.output_offset += 1 - clock
        tenant.decoding += 1
        tenant.output_offset += 1 - clock
        if adapter.rank:
            self.batch.decoding += 1
            self.batch.decoding_ranks += adapter.rank
        self.epoch += 1
