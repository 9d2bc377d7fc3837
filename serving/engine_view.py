"""View: what a policy sees of its engine: read-only and live."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Set
from operator import attrgetter
from typing import Literal

from loratory.serving.ledger import Ledger
from loratory.serving.lora import Adapter
from loratory.serving.plan import BatchShape, CostView
from loratory.serving.read_only import LiveKeys, LiveMapping, LiveWalk
from loratory.serving.views import AdapterView, RequestView, RequestViews, TenantView, live
from loratory.serving.wait_index import Within
from loratory.serving.wait_queue import QueueView, WaitQueue


class _GuestCost:
    """A cost model as a policy sees it: it answers, and nothing of it can be changed."""

    __slots__ = ("_cost",)

    def __init__(self, cost: CostView) -> None:
        self._cost = cost

    def step_seconds(self, shape: BatchShape) -> float:
        """See `CostView`."""
        return self._cost.step_seconds(shape)

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        """See `CostView`."""
        return self._cost.load_seconds(adapter, tier)


class View:
    """What a policy sees of its engine: read-only and live. Attribute names are part of the interface.

    Times are absolute seconds.
    """

    __slots__ = (
        "_adapters",
        "_backlogged",
        "_cost",
        "_ledger",
        "_on_gpu",
        "_running",
        "_scorer",
        "_tenants",
        "_waiting",
    )

    def __init__(self, ledger: Ledger, scorer: Callable[[AdapterView, View], float]) -> None:
        self._ledger = ledger
        self._scorer = scorer
        self._cost = _GuestCost(ledger.cost)
        self._waiting = QueueView(ledger.waiting.queue)
        self._running = RequestViews(ledger.running)
        self._adapters = LiveMapping(ledger.adapter_views)
        self._tenants = LiveMapping(ledger.tenant_views)
        self._on_gpu = LiveMapping(ledger.slots.views)
        self._backlogged = LiveKeys(LiveMapping(ledger.waiting.backlogged))

    now: float = live(attrgetter("_ledger.now"))
    """Second of this call."""
    waiting: QueueView = live(attrgetter("_waiting"))
    """Waiting requests in arrival order, preempted ones first."""
    running: Collection[RequestView] = live(attrgetter("_running"))
    """Running requests in order of admission."""
    adapters: Mapping[str, AdapterView] = live(attrgetter("_adapters"))
    """All adapters of the engine by name, the base model not included."""
    tenants: Mapping[str, TenantView] = live(attrgetter("_tenants"))
    """Tenants that have sent a request so far, by name."""
    base: AdapterView = live(attrgetter("_ledger.base.view"))
    """The base model as an adapter: rank 0, no bytes, always on the GPU."""
    max_loras: int = live(attrgetter("_ledger.slots.max_loras"))
    """GPU slots: the most adapters that can be on the GPU at once."""
    free_slots: int = live(attrgetter("_ledger.slots.free"))
    """GPU slots that no adapter holds and no load in flight will fill."""
    kv_free_tokens: int = live(attrgetter("_ledger.kv.free_tokens"))
    """Tokens that the free KV blocks hold."""
    kv_total_tokens: int = live(attrgetter("_ledger.kv.total_tokens"))
    """Tokens that all KV blocks hold."""
    token_budget: int = live(attrgetter("_ledger.token_budget"))
    """Tokens that this step can still prefill."""
    seq_budget: int = live(attrgetter("_ledger.seq_budget"))
    """Requests that can still be admitted before ``max_num_seqs`` run."""
    decode_steps: int = live(lambda self: self._ledger.clock[0])
    """Decode steps that the engine has done so far."""
    memory: str = live(attrgetter("_ledger.config.memory"))
    """Where adapters are on the GPU: "slots", in slots of their own; "unified", in one pool with the KV blocks."""
    cost: CostView = live(attrgetter("_cost"))
    """The cost model: seconds of a step, seconds of a load."""
    scorer: Callable[[AdapterView, View], float] = live(attrgetter("_scorer"))
    """The score of an idle adapter; `want` evicts the one with the lowest."""

    def waiting_for(self, adapter: str | None) -> QueueView:
        """Requests that wait for an adapter (None: for the base model), in arrival order, preempted ones first."""
        ledger = self._ledger
        state = ledger.base if adapter is None else ledger.adapters.find(adapter)
        if state is None and adapter not in ledger.removed:
            raise KeyError(adapter)
        return QueueView(WaitQueue({})) if state is None else state.queue_view

    def waiting_of(self, tenant: str) -> QueueView:
        """Requests of a tenant that wait, in arrival order, preempted ones first."""
        state = self._ledger.tenants.get(tenant)
        return QueueView(WaitQueue({})) if state is None else state.queue_view

    def adapter(self, request: RequestView) -> AdapterView:
        """The adapter that a request wants, or `base`."""
        name = request.adapter
        return self._ledger.base.view if name is None else self._ledger.adapter_views[name]

    def tenant(self, request: RequestView) -> TenantView:
        """The tenant that sent a request."""
        return self._ledger.tenant_views[request.tenant]

    slot_obtainable: bool = live(lambda self: self._ledger.slots.obtainable())
    """Whether a GPU slot is free, or `idle` has an adapter to evict."""
    can_admit: bool = live(lambda self: self._ledger.can_admit())
    """Whether this step has tokens and a place left to admit a request."""
    active_adapters: int = live(attrgetter("_ledger.batch.adapters"))
    """Distinct adapters that running requests use, the base model not counted."""

    def unblocked(
        self, within: Within = "any", only: Collection[str] | None = None, without: Collection[str] = ()
    ) -> Iterator[RequestView]:
        """Waiting requests in arrival order, without those that their adapter blocks at that moment; none at all when
        this step cannot admit another request.

        An adapter blocks its requests while it is on the way to the GPU, and while it is not there and every slot is in
        use. Blocked requests cost nothing, however many wait.

        ``within``: "batch", only adapters that running requests use; "gpu", only adapters on the GPU. ``only``: only
        these adapters. The base model is always among them. ``without``: no requests for these adapters.
        """
        ledger = self._ledger
        return LiveWalk(None, ledger.waiting.unblocked(within, only, without)) if ledger.can_admit() else iter(())

    backlogged: Set[str | None] = live(attrgetter("_backlogged"))
    """Names of adapters that a request waits for; None stands for the base model."""

    def first_waiting(self, where: Literal["any", "off"] = "any") -> Iterator[RequestView]:
        """The first waiting request of each adapter, in arrival order; "off": only of adapters that are neither on the
        GPU nor on the way there. Read it to the end, or leave it, before yielding the next action."""
        ledger = self._ledger
        return LiveWalk(None, ledger.waiting.heads(where == "off", ledger.slots.loading.values()))

    on_gpu: Mapping[str, AdapterView] = live(attrgetter("_on_gpu"))
    """Adapters on the GPU by name, the base model not included."""

    def idle(self) -> list[AdapterView]:
        """Adapters on the GPU that may be evicted: no running request uses them, they are not pinned, and they were not
        just loaded for a request that still waits."""
        return self._ledger.slots.idle_views()
