"""The policy interface: the actions a scheduling policy yields, what it sees, and helpers to write one in a few lines.

A policy file imports this module and nothing else of Loratory. See docs/policies.md for a tutorial.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Literal, NamedTuple, Protocol

from loratory.errors import InputError
from loratory.serving.events import Admitted, Arrived, Ended, Event, Evicted, Loaded, LoadStarted, Preempted, Served
from loratory.serving.fairness import Account, By, Rounds, Unit, Units
from loratory.serving.lanes import Lanes
from loratory.serving.lora import Adapter
from loratory.serving.plan import BatchShape
from loratory.serving.reservation import Reservation
from loratory.serving.views import AdapterView, RequestView, RequestViews, TenantView, View
from loratory.serving.wait_index import Within

__all__ = [
    "SCORERS",
    "Account",
    "Action",
    "AdapterView",
    "Admit",
    "Admitted",
    "Arrived",
    "BatchShape",
    "By",
    "CostView",
    "Decisive",
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
    "Reservation",
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
    first. reserve: it waits for LightLLM's router (`loratory.serving.reserved`). unknown: no such waiting or running
    request, adapter, or point in time.
    """

    ok: bool
    why: str | None = None

    def __bool__(self) -> bool:
        return self.ok


OK = Outcome(True)
REFUSED = {
    why: Outcome(False, why) for why in ("slots", "kv", "seqs", "budget", "adapter", "pinned", "in_use", "unknown")
}


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


Decisive = Literal["adapter", "tenant", "weight", "priority", "deadline", "predicted_tokens"]
"""What a request may have or lack, and a policy may decide by."""


class Policy(Protocol):
    """Decides what runs. Optional members: ``observe(event)`` is told what happened; ``victim(view)`` names the running
    request to preempt when KV runs out (by default the last admitted); ``bound(limits)`` promises a service gap, in
    weighted tokens, between two backlogged units, or returns None; ``evict`` (a name in `SCORERS`) and ``prefetch`` (a
    number) override the engine's; ``observes`` names the event types it wants (by default all); ``only_waiting`` =
    True: do not ask while nobody waits; ``decides_by`` names those of `Decisive` that its order of requests rests on: a
    run whose workload lacks one gets a note."""

    def schedule(self, view: View) -> Schedule:
        """Yield actions; each yield returns the `Outcome`. Called when something visible has changed."""


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


_new = tuple.__new__
"""Makes a named tuple from all its fields in order, in half the time of calling its class."""

SCORERS: dict[str, Scorer] = {"lru": lru, "lfu": lfu, "fifo": fifo, "cost_aware": cost_aware}


def _goes_first(view: View) -> str | None:
    """The idle adapter the scorer gives up first, or None when every adapter on the GPU must stay."""
    idle = view.idle()
    if not idle:
        return None
    scorer = view.scorer
    return min([(scorer(adapter, view), adapter.lora_int_id, adapter.name) for adapter in idle])[2]


def want(view: View, request: RequestView) -> Generator[Action, Outcome, Outcome]:
    """Admit a request; where its adapter is not on the GPU, load it first, evicting the idle one that scores lowest.

    Use as ``outcome = yield from want(view, request)``. Loads only when everything else about the request fits.
    With ``adapter_loading: async`` the outcome is refused ("adapter") until the load is done.
    """
    outcome = yield _new(Admit, (request, None))
    why = outcome.why
    if why is None:
        return outcome
    if why == "kv" and view.memory == "unified":
        while why == "kv" and (goes := _goes_first(view)) is not None:
            yield Evict(goes)
            outcome = yield Admit(request)
            why = outcome.why
    if why != "adapter":
        return outcome
    adapter = view.adapter(request)
    if adapter.name is None or adapter.tier in ("loading", "gpu"):
        return outcome
    if not view.free_slots:
        goes = _goes_first(view)
        if goes is None:
            return REFUSED["slots"]
        yield Evict(goes)
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
