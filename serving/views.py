"""Views: what a policy sees of an engine, its requests, adapters and tenants: read-only and live."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Set
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from loratory.serving.lora import Adapter, Tier
from loratory.serving.wait_index import Within
from loratory.serving.wait_queue import QueueView

if TYPE_CHECKING:
    from loratory.serving.ledger import Ledger
    from loratory.serving.policy import CostView, Scorer


class RequestView:
    """A request as a policy sees it: read-only and live. It never shows the true output length.

    Times are absolute seconds, token fields are counts, ``adapter`` is a name or None for the base model.
    """

    __slots__ = ("_sequence",)

    def __init__(self, sequence: Any) -> None:
        self._sequence = sequence

    request_id: str = property(attrgetter("_sequence.request.request_id"))  # type: ignore[assignment]
    adapter: str | None = property(attrgetter("_sequence.request.adapter"))  # type: ignore[assignment]
    tenant: str = property(attrgetter("_sequence.request.tenant"))  # type: ignore[assignment]
    arrival: float = property(attrgetter("_sequence.request.arrival"))  # type: ignore[assignment]
    prompt_tokens: int = property(attrgetter("_sequence.request.prompt_tokens"))  # type: ignore[assignment]
    cached_tokens: int = property(attrgetter("_sequence.request.cached_tokens"))  # type: ignore[assignment]
    max_tokens: int = property(attrgetter("_sequence.max_tokens"))  # type: ignore[assignment]
    predicted_tokens: int | None = property(attrgetter("_sequence.request.predicted_tokens"))  # type: ignore[assignment]
    generated_tokens: int = property(attrgetter("_sequence.generated"))  # type: ignore[assignment]
    priority: int = property(attrgetter("_sequence.request.priority"))  # type: ignore[assignment]
    deadline: float | None = property(attrgetter("_sequence.request.deadline"))  # type: ignore[assignment]
    weight: float = property(attrgetter("_sequence.request.weight"))  # type: ignore[assignment]
    kv_tokens: int = property(attrgetter("_sequence.kv_tokens"))  # type: ignore[assignment]
    preemptions: int = property(attrgetter("_sequence.preemptions"))  # type: ignore[assignment]
    running: bool = property(lambda self: self._sequence.state == "running")  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<request {self.request_id} adapter={self.adapter} tenant={self.tenant}>"


class RequestViews:
    """A live collection of requests; one may preempt while iterating. Counting it costs nothing."""

    __slots__ = ("_sequences",)

    def __init__(self, sequences: Mapping[str, Any]) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[RequestView]:
        return iter([sequence.view for sequence in self._sequences.values()])

    def __contains__(self, view: object) -> bool:
        return isinstance(view, RequestView) and view.request_id in self._sequences


class AdapterView:
    """An adapter as a policy sees it: read-only and live. ``name`` is None for the base model.

    ``eta``: absolute second at which a load in flight is expected to end, if known. ``references``: running requests
    that use it. ``waiting``: requests waiting for it. ``uses``: admissions so far. ``bytes``: size of its weights.
    ``admitted_tokens`` and ``output_tokens``: its service so far. ``kv_tokens``: tokens of KV memory it takes on the
    GPU (``memory: unified``, else 0). ``fresh``: loaded and not used since.
    """

    __slots__ = ("_state",)

    def __init__(self, state: Any) -> None:
        self._state = state

    name: str | None = property(attrgetter("_state.name"))  # type: ignore[assignment]
    lora_int_id: int = property(attrgetter("_state.lora_int_id"))  # type: ignore[assignment]
    rank: int = property(attrgetter("_state.rank"))  # type: ignore[assignment]
    bytes: int = property(attrgetter("_state.bytes"))  # type: ignore[assignment]
    tier: Tier = property(attrgetter("_state.tier"))  # type: ignore[assignment]
    eta: float | None = property(attrgetter("_state.eta"))  # type: ignore[assignment]
    references: int = property(attrgetter("_state.references"))  # type: ignore[assignment]
    waiting: int = property(attrgetter("_state.waiting"))  # type: ignore[assignment]
    pinned: bool = property(attrgetter("_state.pinned"))  # type: ignore[assignment]
    last_used: float = property(attrgetter("_state.last_used"))  # type: ignore[assignment]
    loaded_at: float = property(attrgetter("_state.loaded_at"))  # type: ignore[assignment]
    uses: int = property(attrgetter("_state.uses"))  # type: ignore[assignment]
    fresh: bool = property(attrgetter("_state.fresh"))  # type: ignore[assignment]
    admitted_tokens: int = property(attrgetter("_state.admitted_tokens"))  # type: ignore[assignment]
    output_tokens: int = property(attrgetter("_state.output_tokens"))  # type: ignore[assignment]
    prefetching: bool = property(attrgetter("_state.prefetching"))  # type: ignore[assignment]
    kv_tokens: int = property(lambda self: self._state.kv_tokens)  # type: ignore[assignment]
    spec: Adapter | None = property(attrgetter("_state.spec"))  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<adapter {self.name} tier={self.tier} references={self.references}>"


class TenantView:
    """A tenant as a policy sees it: requests waiting and running, prompt tokens admitted, output tokens so far."""

    __slots__ = ("_state",)

    def __init__(self, state: Any) -> None:
        self._state = state

    name: str = property(attrgetter("_state.name"))  # type: ignore[assignment]
    waiting: int = property(attrgetter("_state.waiting"))  # type: ignore[assignment]
    running: int = property(attrgetter("_state.running"))  # type: ignore[assignment]
    admitted_tokens: int = property(attrgetter("_state.admitted_tokens"))  # type: ignore[assignment]
    output_tokens: int = property(attrgetter("_state.output_tokens"))  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<tenant {self.name} waiting={self.waiting}>"


class View:
    """What a policy sees of its engine: read-only and live. Attribute names are part of the interface.

    Times are absolute seconds. ``waiting`` iterates requests in arrival order, preempted ones first.
    ``backlogged``: names of adapters with a waiting request (None: the base model). ``decode_steps``:
    decode steps the engine has done so far.
    """

    __slots__ = ("_ledger",)

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

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
    scorer: Scorer = property(attrgetter("_ledger.scorer"))  # type: ignore[assignment]

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
