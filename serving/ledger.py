"""Ledger: the only mutable state of an engine. It executes actions and refuses unsafe ones, whatever the policy."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from serving.adapters import AdapterState, TenantState
from serving.config import EngineConfig
from serving.errors import InputError
from serving.host import HostCache
from serving.kv import KVPool
from serving.lora import Adapter
from serving.plan import AdapterLoad
from serving.policy import (
    OK,
    REFUSED,
    SCORERS,
    AdapterView,
    CostView,
    Outcome,
    RequestView,
    RequestViews,
    Scorer,
    TenantView,
)
from serving.queue import WaitQueue
from serving.request import Request, Status
from serving.sequence import Sequence
from serving.waiting import WaitIndex, Within


class Ledger:
    """Waiting and running requests, adapter tiers and slots, KV blocks and budgets of one engine.

    ``config`` must name ``num_gpu_blocks``. ``kv_bytes_per_token`` (one replica, all its GPUs) is needed with
    ``memory: unified``, where an adapter takes as many KV blocks as its bytes fill. Raises `InputError` for adapters
    the configuration can never serve: a rank above ``max_lora_rank``, equal names or ids, too many pinned.
    """

    def __init__(
        self,
        config: EngineConfig,
        adapters: Iterable[Adapter],
        cost: CostView,
        kv_bytes_per_token: int | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self.config = config
        self.cost = cost
        self.scorer: Scorer = scorer or SCORERS[config.eviction]
        self.memory = config.memory
        self.max_loras = config.max_loras
        self.max_seqs = config.max_num_seqs
        self.sync_loading = config.adapter_loading == "sync"
        self.now = 0.0
        self.clock = [0]
        self.kv = KVPool(config.require_blocks(), config.block_size, self.clock)
        self.index = WaitIndex(self.obtainable, self._ready)
        self.waiting: WaitQueue = self.index.queue
        self.sequences: dict[str, Sequence] = {}
        self.running: dict[str, Sequence] = {}
        self.decoding: dict[str, Sequence] = {}
        self.partial: dict[str, Sequence] = {}
        self.prefills: dict[str, tuple[Sequence, int, int]] = {}
        """This step's prefill chunks: (sequence, first position, tokens)."""
        self.loads: list[AdapterLoad] = []
        """Loads to start with this step."""
        self.token_budget = 0
        self.tenants: dict[str, TenantState] = {}
        self.tenant_views: dict[str, TenantView] = {}
        self.adapters: dict[str, AdapterState] = {}
        self.adapter_views: dict[str, AdapterView] = {}
        self.base = AdapterState(None, 0, self.index.table, self.clock)
        self.base.view = AdapterView(self.base)
        self.host = HostCache(config.host_slots)
        self.on_gpu: dict[str, AdapterState] = {}
        """Adapters whose tier is gpu."""
        self.gpu_views: dict[str, AdapterView] = {}
        self.idle: dict[str, AdapterState] = {}
        """Of those, the ones with no reference that are not pinned."""
        self.loading: dict[str, AdapterState] = {}
        self.active_ranks: dict[int, int] = {}
        """How many adapters with a reference have each rank."""
        self.active_adapters = 0
        self.sum_ranks = 0
        self.lora_decoding = 0
        self.lora_decoding_ranks = 0
        self.epoch = 0
        self.register(adapters, kv_bytes_per_token)
        self.max_context = self._max_context()

    def register(self, adapters: Iterable[Adapter], kv_bytes_per_token: int | None) -> None:
        """Make adapters known. Raises `InputError` for those this configuration can never serve."""
        ids: dict[int, str] = {}
        for adapter in adapters:
            name, other = adapter.name, ids.setdefault(adapter.lora.lora_int_id, adapter.name)
            if name in self.adapters or other != name:
                raise InputError(
                    f"adapter {name!r} repeats the name or the lora_int_id {adapter.lora.lora_int_id} of adapter "
                    f"{other!r}: both must be unique in an engine"
                )
            if adapter.rank > self.config.max_lora_rank:
                raise InputError(
                    f"adapter {name!r} has rank {adapter.rank}, above engine.max_lora_rank "
                    f"{self.config.max_lora_rank}: raise max_lora_rank or leave the adapter out"
                )
            blocks = 0
            if self.memory == "unified":
                if not kv_bytes_per_token:
                    raise InputError(
                        "memory: unified needs the KV bytes of a token: give a model, or kv_bytes_per_token"
                    )
                blocks = self.kv.blocks(-(-adapter.bytes // kv_bytes_per_token))
            state = AdapterState(adapter, blocks, self.index.table, self.clock)
            state.kv_tokens = blocks * self.kv.block_size
            state.view = AdapterView(state)
            self.adapters[name] = state
            self.adapter_views[name] = state.view
            self.host.start(state)
        pinned = sum(state.pinned for state in self.adapters.values())
        if pinned > self.max_loras or (pinned == self.max_loras and len(self.adapters) > pinned):
            raise InputError(
                f"{pinned} adapters are pinned and engine.max_loras is {self.max_loras}: no slot is left for the other "
                "adapters, so raise max_loras or pin fewer"
            )

    def _max_context(self) -> int:
        """Most tokens of context one request can have in the KV pool when it runs alone."""
        largest = max((s.blocks for s in self.adapters.values()), default=0)
        pinned = sum(s.blocks for s in self.adapters.values() if s.pinned)
        room = (self.kv.total - largest - pinned) * self.kv.block_size
        if room < 2:
            raise InputError(
                f"the KV pool of {self.kv.total} blocks has no room beside its adapters: raise num_gpu_blocks or "
                "gpu_memory_utilization, or lower adapter ranks"
            )
        return room

    # -- what a policy reads -------------------------------------------------------------------------------------

    @property
    def free_slots(self) -> int:
        """GPU slots neither held nor promised to a load in flight."""
        return self.max_loras - len(self.on_gpu) - len(self.loading)

    @property
    def kv_free_tokens(self) -> int:
        """Tokens the free KV blocks hold."""
        return self.kv.free * self.kv.block_size

    @property
    def kv_total_tokens(self) -> int:
        """Tokens the whole KV pool holds."""
        return self.kv.total * self.kv.block_size

    @property
    def seq_budget(self) -> int:
        """Requests that may still be admitted before ``max_num_seqs``."""
        return self.max_seqs - len(self.running)

    @property
    def running_views(self) -> Collection[RequestView]:
        """Running requests, first admitted first."""
        return RequestViews(self.running)

    def adapter_queue(self, adapter: str | None) -> WaitQueue:
        """Requests waiting for an adapter."""
        return (self.base if adapter is None else self.adapters[adapter]).queue

    def tenant_queue(self, tenant: str) -> WaitQueue:
        """Requests of a tenant that wait."""
        state = self.tenants.get(tenant)
        return WaitQueue({}) if state is None else state.queue

    def obtainable(self) -> bool:
        """Whether a GPU slot is free or held by an adapter that may go."""
        if len(self.on_gpu) + len(self.loading) < self.max_loras:
            return True
        if not self.idle:
            return False
        busy = self.running or self.loading
        return not busy or any(not (state.fresh and state.queue) for state in self.idle.values())

    def idle_views(self) -> list[AdapterView]:
        """Adapters that may be evicted and were not just loaded for somebody who waits.

        With nothing running and nothing on the way they all may: else a policy that insists on another adapter, having
        changed its mind while this one was loading, would wait for ever.
        """
        busy = self.running or self.loading
        return [state.view for state in self.idle.values() if not (busy and state.fresh and state.queue)]

    def _ready(self) -> Iterator[AdapterState]:
        backlogged = self.index.backlogged
        if len(backlogged) < len(self.on_gpu):
            return iter([state for state in backlogged.values() if state.tier == "gpu"])
        return iter([self.base, *self.on_gpu.values()])

    def can_admit(self) -> bool:
        """Whether this step has room for another request at all."""
        return self.token_budget > 0 and len(self.running) < self.max_seqs

    def unblocked(
        self, within: Within, only: Collection[str] | None, without: Collection[str]
    ) -> Iterator[RequestView]:
        """See `serving.policy.View.unblocked`."""
        if self.token_budget <= 0 or len(self.running) >= self.max_seqs:
            return iter(())
        return self.index.unblocked(within, only, without)

    # -- requests come and go ------------------------------------------------------------------------------------

    def submit(self, request: Request) -> tuple[Sequence, str]:
        """Take in a request: it waits. A reason in second place says that it can never run and must be rejected."""
        tenant = self.tenants.get(request.tenant)
        if tenant is None:
            tenant = self.tenants[request.tenant] = TenantState(request.tenant, self.index.table, self.clock)
            tenant.view = self.tenant_views[request.tenant] = TenantView(tenant)
        adapter = self.base if request.adapter is None else self.adapters.get(request.adapter)
        known = adapter is not None
        limit = self.max_context + 1
        if self.config.max_model_len is not None:
            limit = min(limit, self.config.max_model_len)
        room = limit - request.prompt_tokens
        sequence = Sequence(
            request,
            self.base if adapter is None else adapter,
            tenant,
            self.clock,
            min(request.max_tokens, max(room, 1)),
        )
        sequence.view = RequestView(sequence)
        if not known:
            return sequence, f"adapter {request.adapter!r} is not registered"
        if room < 1:
            return sequence, f"prompt of {request.prompt_tokens} tokens does not fit the context limit of {limit}"
        self.sequences[request.request_id] = sequence
        self.index.join(sequence)
        return sequence, ""

    def end(self, sequence: Sequence, status: Status, why: str) -> None:
        """Give a request its final status and free all it holds."""
        if sequence.state == "waiting" and sequence.ticket:
            self.index.leave(sequence)
        elif sequence.state == "running":
            self._stop(sequence)
        self.sequences.pop(sequence.request_id, None)
        sequence.state = status
        sequence.why = why
        sequence.ended_at = self.now
        if sequence.preempted_at is not None:
            self.settle_preemption(sequence)

    def settle_preemption(self, sequence: Sequence) -> None:
        """The time lost to a preemption is over: count it."""
        assert sequence.preempted_at is not None
        lost = self.now - sequence.preempted_at
        sequence.preempted_s += lost
        if sequence.first_token_at is None:
            sequence.preempted_before_first_s += lost
        sequence.preempted_at = None

    def _stop(self, sequence: Sequence) -> None:
        """Take a request off the GPU: blocks, reference, batch statistics."""
        kv, adapter = self.kv, sequence.adapter
        kv.used -= kv.held(sequence)
        del self.running[sequence.request_id]
        if sequence.decoding:
            del self.decoding[sequence.request_id]
            kv.leave(sequence)
            sequence.last_generated = sequence.generated
            sequence.decoding = False
            adapter.decode_stops()
            sequence.tenant.decode_stops()
            if adapter.rank:
                self.lora_decoding -= 1
                self.lora_decoding_ranks -= adapter.rank
        else:
            sequence.blocks = 0
            self.partial.pop(sequence.request_id, None)
            chunk = self.prefills.pop(sequence.request_id, None)
            if chunk is not None:
                self.token_budget += chunk[2]
        sequence.tenant.running -= 1
        adapter.running -= 1
        adapter.references -= 1
        if adapter.rank:
            adapter.last_used = self.now
            if not adapter.references:
                self._release(adapter)
        self.epoch += 1

    def _release(self, adapter: AdapterState) -> None:
        """The last running request that used the adapter is gone."""
        self.active_adapters -= 1
        self.sum_ranks -= adapter.rank
        count = self.active_ranks[adapter.rank] - 1
        if count:
            self.active_ranks[adapter.rank] = count
        else:
            del self.active_ranks[adapter.rank]
        assert adapter.name is not None
        if not adapter.pinned:
            self.idle[adapter.name] = adapter

    # -- actions -------------------------------------------------------------------------------------------------

    def admit(self, view: RequestView, tokens: int | None = None) -> Outcome:
        """Run a waiting request, prefilling up to ``tokens`` of its context in this step."""
        sequence = self.sequences.get(getattr(view, "request_id", ""))
        if sequence is None or sequence.state != "waiting":
            return REFUSED["unknown"]
        config = self.config
        if len(self.running) >= self.max_seqs:
            return REFUSED["seqs"]
        start = sequence.request.cached_tokens
        chunk = self.chunk(sequence.target - start)
        if tokens is not None:
            chunk = min(chunk, tokens) if isinstance(tokens, int) else 0
        if chunk < 1:
            return REFUSED["budget"]
        blocks = self.kv.blocks(start + chunk)
        if blocks > self.kv.free:
            return REFUSED["kv"]
        adapter = sequence.adapter
        if adapter.tier != "gpu":
            return REFUSED["adapter"]
        self.index.leave(sequence)
        sequence.state = "running"
        sequence.admissions += 1
        sequence.blocks = blocks
        self.kv.used += blocks
        self.token_budget -= chunk
        sequence.prefilled = start + chunk
        request_id = sequence.request.request_id
        self.prefills[request_id] = (sequence, start, chunk)
        self.running[request_id] = self.partial[request_id] = sequence
        self._refer(sequence, adapter)
        self.epoch += 1
        return OK

    def _refer(self, sequence: Sequence, adapter: AdapterState) -> None:
        tenant = sequence.tenant
        tenant.running += 1
        adapter.running += 1
        if sequence.admissions == 1:
            arrival = sequence.request.arrival
            sequence.admitted_at = self.now
            tenant.admitted_tokens += sequence.request.prompt_tokens
            adapter.admitted_tokens += sequence.request.prompt_tokens
            if adapter.rank:
                sequence.hit = not adapter.fresh
                waited = min(adapter.loaded_at, self.now) - max(adapter.load_started, arrival)
                sequence.load_wait_s = max(0.0, waited)
        adapter.references += 1
        if adapter.rank:
            adapter.fresh = False
            adapter.uses += 1
            adapter.last_used = self.now
            if adapter.references == 1:
                self.active_adapters += 1
                self.sum_ranks += adapter.rank
                self.active_ranks[adapter.rank] = self.active_ranks.get(adapter.rank, 0) + 1
                assert adapter.name is not None
                self.idle.pop(adapter.name, None)

    def chunk(self, remaining: int) -> int:
        """Context tokens of a request that this step may prefill, 0 when the budget does not allow any."""
        config, budget = self.config, self.token_budget
        if config.long_prefill_token_threshold:
            remaining = min(remaining, config.long_prefill_token_threshold)
        if remaining <= budget:
            return remaining
        if not config.enable_chunked_prefill and budget < config.max_num_batched_tokens:
            return 0
        return max(budget, 0)

    def extend(self, sequence: Sequence) -> bool:
        """Prefill the next chunk of a part-prefilled request in this step; False when KV blocks are missing."""
        chunk = self.chunk(sequence.target - sequence.prefilled)
        if chunk < 1:
            return True
        blocks = self.kv.blocks(sequence.prefilled + chunk)
        if blocks - sequence.blocks > self.kv.free:
            return False
        self.kv.used += blocks - sequence.blocks
        sequence.blocks = blocks
        self.prefills[sequence.request_id] = (sequence, sequence.prefilled, chunk)
        sequence.prefilled += chunk
        self.token_budget -= chunk
        return True

    def preempt(self, view: RequestView) -> Outcome:
        """Take a running request's blocks; it waits again in front and recomputes its context."""
        sequence = self.sequences.get(getattr(view, "request_id", ""))
        if sequence is None or sequence.state != "running":
            return REFUSED["unknown"]
        chunk = self.prefills.get(sequence.request_id)
        if chunk is not None and chunk[1] == sequence.request.cached_tokens:
            return REFUSED["in_use"]
        self._stop(sequence)
        sequence.state = "waiting"
        sequence.preemptions += 1
        sequence.target = sequence.request.prompt_tokens + sequence.last_generated
        sequence.prefilled = sequence.request.cached_tokens
        if sequence.preempted_at is None:
            sequence.preempted_at = self.now
        self.index.rejoin(sequence)
        return OK

    def load(self, name: str) -> Outcome:
        """Bring an adapter to a free GPU slot. It is usable at once with sync loading, else when the load is done."""
        state = self.adapters.get(name)
        if state is None:
            return REFUSED["unknown"]
        if state.tier in ("gpu", "loading"):
            return REFUSED["adapter"]
        if self.free_slots < 1:
            return REFUSED["slots"]
        if state.blocks > self.kv.free:
            return REFUSED["kv"]
        if not self.host.hold(state):
            return REFUSED["in_use"]
        assert state.spec is not None
        self.loads.append(AdapterLoad(state.spec, state.tier, False))
        self.kv.used += state.blocks
        state.load_started = self.now
        self.loading[name] = state
        state.tier = "loading"
        if self.sync_loading:
            self.arrive(state)
        return OK

    def arrive(self, state: AdapterState) -> None:
        """A load to the GPU is done."""
        assert state.name is not None
        del self.loading[state.name]
        self.on_gpu[state.name] = state
        self.gpu_views[state.name] = state.view
        state.tier = "gpu"
        state.eta = None
        state.fresh = True
        state.prefetching = False
        state.loaded_at = state.last_used = self.now
        if not state.pinned:
            self.idle[state.name] = state

    def fail_load(self, state: AdapterState) -> None:
        """A load came to nothing: the slot, the blocks and the place in host memory are free again."""
        if state.tier == "loading":
            assert state.name is not None
            del self.loading[state.name]
            self.kv.used -= state.blocks
            state.tier = "disk"
        state.eta = None
        self.host.drop(state)

    def prefetch(self, name: str) -> Outcome:
        """Bring an adapter from disk or farther to host memory."""
        state = self.adapters.get(name)
        if state is None:
            return REFUSED["unknown"]
        if state.tier not in ("disk", "remote") or state.prefetching:
            return REFUSED["adapter"]
        tier = state.tier
        if not self.host.hold(state):
            return REFUSED["in_use"]
        assert state.spec is not None
        state.prefetching = True
        self.loads.append(AdapterLoad(state.spec, tier, True))
        return OK

    def evict(self, name: str) -> Outcome:
        """Free the GPU slot of an adapter nobody uses; it stays in host memory."""
        state = self.adapters.get(name)
        if state is None:
            return REFUSED["unknown"]
        if state.tier == "loading" or state.references:
            return REFUSED["in_use"]
        if state.tier != "gpu":
            return REFUSED["adapter"]
        if state.pinned:
            return REFUSED["pinned"]
        del self.on_gpu[name]
        del self.gpu_views[name]
        del self.idle[name]
        self.kv.used -= state.blocks
        self.host.rest(state)
        self.index.cooled(state)
        return OK

    # -- the step ------------------------------------------------------------------------------------------------

    def begin_decode(self, sequence: Sequence) -> None:
        """A request's context is in the KV cache and its next token sampled: it decodes from now on."""
        del self.partial[sequence.request_id]
        self.kv.join(sequence)
        sequence.decoding = True
        sequence.finish_clock = self.clock[0] + sequence.max_tokens - sequence.generated
        self.decoding[sequence.request_id] = sequence
        adapter = sequence.adapter
        adapter.decode_starts()
        sequence.tenant.decode_starts()
        if adapter.rank:
            self.lora_decoding += 1
            self.lora_decoding_ranks += adapter.rank
        self.epoch += 1
