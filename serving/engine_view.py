"""View: what a policy sees of its engine: read-only and live."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Set
from operator import attrgetter
from typing import Literal

from loratory.serving.ledger import Ledger
from loratory.serving.plan import CostView
from loratory.serving.views import AdapterView, RequestView, TenantView
from loratory.serving.wait_index import Within
from loratory.serving.wait_queue import QueueView


class View:
    """What a policy sees of its engine: read-only and live. Attribute names are part of the interface.

    Times are absolute seconds. ``waiting`` iterates requests in arrival order, preempted ones first.
    ``backlogged``: names of adapters with a waiting request (None: the base model). ``decode_steps``:
    decode steps the engine has done so far.
    """

    __slots__ = ("_ledger", "_scorer")

    def __init__(self, ledger: Ledger, scorer: Callable[[AdapterView, View], float]) -> None:
        self._ledger = ledger
        self._scorer = scorer

    now: float = property(attrgetter("_ledger.now"))  # type: ignore[assignment]
    waiting: QueueView = property(attrgetter("_ledger.waiting_view"))  # type: ignore[assignment]
    running: Collection[RequestView] = property(attrgetter("_ledger.running_views"))  # type: ignore[assignment]
    adapters: Mapping[str, AdapterView] = property(attrgetter("_ledger.shown_adapters"))  # type: ignore[assignment]
    tenants: Mapping[str, TenantView] = property(attrgetter("_ledger.shown_tenants"))  # type: ignore[assignment]
    base: AdapterView = property(attrgetter("_ledger.base.view"))  # type: ignore[assignment]
    max_loras: int = property(attrgetter("_ledger.max_loras"))  # type: ignore[assignment]
    free_slots: int = property(attrgetter("_ledger.slots.free"))  # type: ignore[assignment]
    kv_free_tokens: int = property(attrgetter("_ledger.kv_free_tokens"))  # type: ignore[assignment]
    kv_total_tokens: int = property(attrgetter("_ledger.kv_total_tokens"))  # type: ignore[assignment]
    token_budget: int = property(attrgetter("_ledger.token_budget"))  # type: ignore[assignment]
    seq_budget: int = property(attrgetter("_ledger.seq_budget"))  # type: ignore[assignment]
    decode_steps: int = property(lambda self: self._ledger.clock[0])  # type: ignore[assignment]
    memory: str = property(attrgetter("_ledger.memory"))  # type: ignore[assignment]
    cost: CostView = property(attrgetter("_ledger.cost"))  # type: ignore[assignment]
    scorer: Callable[[AdapterView, View], float] = property(attrgetter("_scorer"))  # type: ignore[assignment]

    def waiting_for(self, adapter: str | None) -> QueueView:
        """Requests waiting for an adapter (None: for the base model), in arrival order."""
        return self._ledger.adapter_queue(adapter)

    def waiting_of(self, tenant: str) -> QueueView:
        """Requests of a tenant that wait, in arrival order."""
        return self._ledger.tenant_queue(tenant)

    def adapter(self, request: RequestView) -> AdapterView:
        """The adapter a request wants; for the base model a view that is always on the GPU."""
        name = request.adapter
        return self._ledger.base.view if name is None else self._ledger.adapter_views[name]

    def tenant(self, request: RequestView) -> TenantView:
        """The tenant of a request."""
        return self._ledger.tenant_views[request.tenant]

    slot_obtainable: bool = property(lambda self: self._ledger.slots.obtainable())  # type: ignore[assignment]
    can_admit: bool = property(lambda self: self._ledger.can_admit())  # type: ignore[assignment]
    active_adapters: int = property(attrgetter("_ledger.batch.adapters"))  # type: ignore[assignment]

    def unblocked(
        self, within: Within = "any", only: Collection[str] | None = None, without: Collection[str] = ()
    ) -> Iterator[RequestView]:
        """Waiting requests in arrival order, without those whose adapter stands in the way at that moment; none at all
        when this step has no budget left to admit anybody.

        ``within``: "batch", only adapters that running requests use (and the base model); "gpu", adapters on the GPU.
        ``only``: no adapters but these (and the base model). ``without``: these adapters left out.

        Left out, as long as it lasts: adapters on the way to the GPU, and those not there while every slot is in use.
        What is left out costs nothing, however many wait.
        """
        return self._ledger.unblocked(within, only, without)

    backlogged: Set[str | None] = property(lambda self: self._ledger.index.backlogged.keys())  # type: ignore[assignment]

    def first_waiting(self, where: Literal["any", "off"] = "any") -> Iterator[RequestView]:
        """The first waiting request of each adapter, longest waiting first; "off": only of adapters not on the GPU and
        not on the way there. Read it to the end, or leave it, before yielding the next action."""
        ledger = self._ledger
        return ledger.index.heads(where == "off", ledger.slots.loading.values())

    on_gpu: Mapping[str, AdapterView] = property(attrgetter("_ledger.slots.shown"))  # type: ignore[assignment]

    def idle(self) -> list[AdapterView]:
        """Adapters on the GPU that may be evicted: unused, not pinned, and not just loaded for someone who waits."""
        return self._ledger.slots.idle_views()
