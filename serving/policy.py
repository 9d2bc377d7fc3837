"""Policy: the interface of a scheduling policy, and helpers to write one in a few lines.

A policy file imports `loratory.policy`, which gathers these and all else it needs. See docs/policies.md for a tutorial.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal, Protocol

from loratory.serving.actions import REFUSED, Action, Admit, Evict, Load, Outcome, Prefetch, Schedule
from loratory.serving.engine_view import View
from loratory.serving.views import RequestView

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
