"""Policy: the interface of a scheduling policy, and helpers to write one in a few lines.

A policy file imports `loratory.policy`, which gathers these and all else it needs. See docs/policies.md for a tutorial.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal, Protocol

from loratory.serving.actions import REFUSED, Action, Admit, Evict, Load, Outcome, Prefetch, Schedule
from loratory.serving.engine_view import View
from loratory.serving.events import TOLD, Event
from loratory.serving.eviction import Scorer
from loratory.serving.fairness import FairnessLimits
from loratory.serving.views import RequestView

Decisive = Literal["adapter", "tenant", "weight", "priority", "deadline", "predicted_tokens"]
"""What a request may have or lack, and a policy may decide by."""


class Policy:
    """Decides what runs: the base class of policies, in which every member but `schedule` has a default.

    A class of its own with a `schedule` method is a policy as well; of the other members it has those it needs. A
    policy's members are read and checked once, when it is loaded: see `loratory.serving.policy_members`.
    """

    only_waiting: bool = False
    """Whether `schedule` is not called while no request waits, which saves time."""

    observes: tuple[type, ...] = TOLD
    """Types of the events that `observe` is told; by default all, those of later versions included."""

    evict: str | Scorer | None = None
    """Which idle adapter leaves the GPU first: the name of one of `SCORERS`, or a function of an `AdapterView` and the
    `View`; the lowest score goes first. It overrides ``engine.eviction``, which None leaves in force."""

    prefetch: int = 0
    """Waiting requests, from the front, whose adapters are fetched from disk to host memory ahead of their turn."""

    decides_by: tuple[Decisive, ...] | None = None
    """What its order of requests rests on: a run whose workload lacks one of these gets a note. None: not known."""

    source: str = ""
    """The paper, or the project and file, that its algorithm comes from."""

    spec: str = ""
    """How it was asked for, such as ``mine.py:Mine:depth=3``; set when it is loaded, and shown in errors."""

    def schedule(self, view: View) -> Schedule:
        """Yield actions; each yield returns the `Outcome`. Called when something visible has changed."""
        raise NotImplementedError

    def observe(self, event: Event) -> None:
        """Be told what happened: an event of one of the types in ``observes``. Where it is not overridden, no event is
        made for the policy."""

    def victim(self, view: View) -> RequestView | None:
        """The running request to preempt when KV blocks run out; None: the one that was admitted last."""

    def bound(self, limits: FairnessLimits) -> float | None:
        """The largest gap in service, in weighted tokens, that it lets come between two backlogged units; None: it
        promises none."""


class PolicyLike(Protocol):
    """What an engine takes: a `Policy`, or any object that has its `schedule`."""

    def schedule(self, view: View) -> Schedule:
        """See `Policy.schedule`."""


_new = tuple.__new__
"""Makes a named tuple from all its fields in order, in half the time of calling its class."""


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
