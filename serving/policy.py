"""The policy interface: the actions a scheduling policy yields, what it sees, and helpers to write one in a few lines.

A policy file imports this module and nothing else of Loratory. See docs/policies.md for a tutorial.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from serving.errors import InputError
from serving.events import Admitted, Arrived, Ended, Event, Evicted, Loaded, LoadStarted, Preempted, Served
from serving.fairness import By, Rounds, Unit, Units
from serving.lanes import Lanes
from serving.lora import Adapter, Tier
from serving.plan import BatchShape
from serving.queue import WaitQueue
from serving.waiting import Within

if TYPE_CHECKING:
    from serving.ledger import Ledger

__all__ = [
    "SCORERS",
    "Action",
    "AdapterView",
    "Admit",
    "Admitted",
    "Arrived",
    "BatchShape",
    "By",
    "CostView",
    "Ended",
    "Event",
    "Evict",
    "Evicted",
    "InputError",
    "Lanes",
    "Limits",
    "Load",
    "LoadStarted",
    "Loaded",
    "Outcome",
    "Policy",
    "Preempt",
    "Preempted",
    "Prefetch",
    "Reject",
    "RequestView",
    "RequestViews",
    "Rounds",
    "Schedule",
    "Scorer",
    "Served",
    "TenantView",
    "Unit",
    "Units",
    "View",
    "Wake",
    "Within",
    "look_ahead",
    "want",
]


class Outcome(NamedTuple):
    """What the ledger did with an action. True when ``ok``; else ``why`` is one of the words below.

    slots: no GPU slot is free. kv: too few KV blocks are free. seqs: ``max_num_seqs`` run. budget: the step's tokens
    are spent. adapter: the adapter is not where the action needs it. pinned, in_use: it must stay, or be finished with
    first. unknown: no such waiting or running request, adapter, or point in time.
    """

    ok: bool
    why: str | None = None

    def __bool__(self) -> bool:
        return self.ok


OK = Outcome(True)
REFUSED = {
    why: Outcome(False, why) for why in ("slots", "kv", "seqs", "budget", "adapter", "pinned", "in_use", "unknown")
}


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
    ``admitted_tokens`` and ``output_tokens``: its service so far. ``kv_tokens``: tokens of KV memory it takes while on the
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


class Admit(NamedTuple):
    """Run a waiting request: compute ``tokens`` of its prompt in this step, by default as many as fit the budget."""

    request: RequestView
    tokens: int | None = None


class Load(NamedTuple):
    """Bring an adapter to a free GPU slot. Never evicts by itself."""

    adapter: str


class Evict(NamedTuple):
    """Free the GPU slot of an adapter that no running request uses."""

    adapter: str


class Preempt(NamedTuple):
    """Take a running request's KV blocks; it waits again, in front, and recomputes its context when admitted."""

    request: RequestView


class Reject(NamedTuple):
    """End a waiting request unserved; ``why`` is shown to its client and in reports."""

    request: RequestView
    why: str


class Prefetch(NamedTuple):
    """Bring an adapter from disk or farther to host memory, in the background."""

    adapter: str


class Wake(NamedTuple):
    """Ask to be called again: at the first step boundary at or after second ``at``, or after so many decode steps."""

    at: float | None = None
    after_steps: int | None = None


Action = Admit | Load | Evict | Preempt | Reject | Prefetch | Wake
Schedule = Generator[Action, Outcome, None]


class CostView(Protocol):
    """What a policy may ask of the cost model."""

    def step_seconds(self, shape: BatchShape) -> float:
        """Seconds a step of this shape takes."""

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        """Seconds of the hop of an adapter that starts at ``tier``: remote to disk, disk to host, or host to GPU."""


class Limits(NamedTuple):
    """What a fairness bound depends on: longest prompt and output, tokens the KV pool holds, most running requests.

    The gap is measured between the ``unit`` named, in service of these weights a token.
    """

    max_prompt_tokens: int
    max_output_tokens: int
    kv_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    unit: By = "tenant"
    input_weight: float = 1.0
    output_weight: float = 2.0


class Policy(Protocol):
    """Decides what runs. Optional members: ``observe(event)`` is told what happened; ``victim(view)`` names the running
    request to preempt when KV runs out (by default the last admitted); ``bound(limits)`` promises a service gap, in
    weighted tokens, between two backlogged units, or returns None; ``evict`` (a name in `SCORERS`) and ``prefetch`` (a number) override the engine's; ``observes``
    names the event types it wants (by default all); ``only_waiting`` = True: do not ask while nobody waits."""

    def schedule(self, view: View) -> Schedule:
        """Yield actions; each yield returns the `Outcome`. Called when something visible has changed."""


class View:
    """What a policy sees of its engine: read-only and live. Attribute names are part of the interface.

    Times are absolute seconds. ``waiting`` iterates requests in arrival order, preempted ones first.
    """

    __slots__ = ("_ledger",)

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    now: float = property(attrgetter("_ledger.now"))  # type: ignore[assignment]
    waiting: WaitQueue = property(attrgetter("_ledger.waiting"))  # type: ignore[assignment]
    running: Collection[RequestView] = property(attrgetter("_ledger.running_views"))  # type: ignore[assignment]
    adapters: Mapping[str, AdapterView] = property(attrgetter("_ledger.adapter_views"))  # type: ignore[assignment]
    tenants: Mapping[str, TenantView] = property(attrgetter("_ledger.tenant_views"))  # type: ignore[assignment]
    base: AdapterView = property(attrgetter("_ledger.base.view"))  # type: ignore[assignment]
    max_loras: int = property(attrgetter("_ledger.max_loras"))  # type: ignore[assignment]
    free_slots: int = property(attrgetter("_ledger.free_slots"))  # type: ignore[assignment]
    kv_free_tokens: int = property(attrgetter("_ledger.kv_free_tokens"))  # type: ignore[assignment]
    kv_total_tokens: int = property(attrgetter("_ledger.kv_total_tokens"))  # type: ignore[assignment]
    token_budget: int = property(attrgetter("_ledger.token_budget"))  # type: ignore[assignment]
    seq_budget: int = property(attrgetter("_ledger.seq_budget"))  # type: ignore[assignment]
    memory: str = property(attrgetter("_ledger.memory"))  # type: ignore[assignment]
    cost: CostView = property(attrgetter("_ledger.cost"))  # type: ignore[assignment]
    scorer: Scorer = property(attrgetter("_ledger.scorer"))  # type: ignore[assignment]

    def waiting_for(self, adapter: str | None) -> WaitQueue:
        """Requests waiting for an adapter (None: for the base model), in arrival order."""
        return self._ledger.adapter_queue(adapter)

    def waiting_of(self, tenant: str) -> WaitQueue:
        """Requests of a tenant that wait, in arrival order."""
        return self._ledger.tenant_queue(tenant)

    def adapter(self, request: RequestView) -> AdapterView:
        """The adapter a request wants; for the base model a view that is always on the GPU."""
        name = request.adapter
        return self._ledger.base.view if name is None else self._ledger.adapter_views[name]

    def tenant(self, request: RequestView) -> TenantView:
        """The tenant of a request."""
        return self._ledger.tenant_views[request.tenant]

    slot_obtainable: bool = property(lambda self: self._ledger.obtainable())  # type: ignore[assignment]
    can_admit: bool = property(lambda self: self._ledger.can_admit())  # type: ignore[assignment]
    active_adapters: int = property(attrgetter("_ledger.active_adapters"))  # type: ignore[assignment]

    def unblocked(
        self, within: Within = "any", only: Collection[str] | None = None, without: Collection[str] = ()
    ) -> Iterator[RequestView]:
        """Waiting requests in arrival order, without those whose adapter stands in the way at that moment; none at all
        when this step has no budget left to admit anybody.

        ``within``: "batch", only adapters that running requests use (and the base model); "gpu", adapters on the GPU.
        ``only``: no adapters but these (and the base model). ``without``: these adapters left out.

        Left out, as long as it lasts: adapters on the way to the GPU, and adapters not there while every slot is in use.
        What is left out costs nothing, however many wait.
        """
        return self._ledger.unblocked(within, only, without)

    def first_waiting(self, where: Literal["any", "off"] = "any") -> Iterator[RequestView]:
        """The first waiting request of each adapter, longest waiting first; "off": only of adapters not on the GPU and not
        on the way there. Read it to the end, or leave it, before yielding the next action."""
        return self._ledger.index.heads(where == "off")

    on_gpu: Mapping[str, AdapterView] = property(lambda self: self._ledger.gpu_views)  # type: ignore[assignment]

    def idle(self) -> list[AdapterView]:
        """Adapters on the GPU that may be evicted: unused, not pinned, and not just loaded for someone who waits."""
        return self._ledger.idle_views()


Scorer = Callable[[AdapterView, View], float]
"""Scores an idle adapter; the lowest goes first."""


def lru(adapter: AdapterView, view: View) -> float:
    """Least recently used goes first."""
    return adapter.last_used


def lfu(adapter: AdapterView, view: View) -> float:
    """Least frequently used goes first."""
    return adapter.uses


def fifo(adapter: AdapterView, view: View) -> float:
    """Longest on the GPU goes first."""
    return adapter.loaded_at


def cost_aware(adapter: AdapterView, view: View) -> float:
    """Least reload time per second of recent use goes first (after Greedy-Dual-Size-Frequency, Cherkasova 1998)."""
    if adapter.spec is None:
        return float("inf")
    reload_s = view.cost.load_seconds(adapter.spec, "host")
    return adapter.uses * reload_s / (view.now - adapter.last_used + reload_s + 1e-9)


SCORERS: dict[str, Scorer] = {"lru": lru, "lfu": lfu, "fifo": fifo, "cost_aware": cost_aware}


def _goes_first(view: View) -> str | None:
    """The idle adapter the scorer gives up first, or None when every adapter on the GPU must stay."""
    idle = view.idle()
    if not idle:
        return None
    scorer = view.scorer
    return min(idle, key=lambda candidate: (scorer(candidate, view), candidate.lora_int_id)).name


def want(view: View, request: RequestView) -> Generator[Action, Outcome, Outcome]:
    """Admit a request; where its adapter is not on the GPU, load it first, evicting the idle adapter that scores lowest.

    Use as ``outcome = yield from want(view, request)``. Loads only when everything else about the request fits.
    With ``adapter_loading: async`` the outcome is refused ("adapter") until the load is done.
    """
    outcome = yield Admit(request)
    if outcome.ok:
        return outcome
    while outcome.why == "kv" and view.memory == "unified" and (goes := _goes_first(view)) is not None:
        yield Evict(goes)
        outcome = yield Admit(request)
    if outcome.why != "adapter":
        return outcome
    adapter = view.adapter(request)
    if adapter.tier in ("loading", "gpu") or adapter.name is None:
        return outcome
    loaded = yield Load(adapter.name)
    while loaded.why in ("slots", "kv") and (goes := _goes_first(view)) is not None:
        yield Evict(goes)
        loaded = yield Load(adapter.name)
    if not loaded:
        return loaded
    return (yield Admit(request))


def look_ahead(view: View, depth: int) -> Generator[Action, Outcome, None]:
    """Prefetch to host memory the adapters of the first ``depth`` waiting requests that are on disk or farther."""
    for place, request in enumerate(view.waiting):
        if place >= depth:
            return
        adapter = view.adapter(request)
        if adapter.name is not None and adapter.tier in ("disk", "remote") and not adapter.prefetching:
            yield Prefetch(adapter.name)
