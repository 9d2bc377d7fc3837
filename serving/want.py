"""want: what most policies yield, written once: a request with all it takes, and adapters ahead of their turn."""

from __future__ import annotations

from collections.abc import Generator

from loratory.serving.actions import REFUSED, Action, Admit, Evict, Load, Outcome, Prefetch
from loratory.serving.engine_view import View
from loratory.serving.views import RequestView

_new = tuple.__new__
"""Makes a named tuple in half the time that its class takes."""


def _cheapest_idle(view: View) -> str | None:
    """The idle adapter with the lowest score, or None when every adapter on the GPU must stay."""
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
        while why == "kv" and (evicted := _cheapest_idle(view)) is not None:
            yield Evict(evicted)
            outcome = yield _new(Admit, (request, None))
            why = outcome.why
    if why != "adapter":
        return outcome
    adapter = view.adapter(request)
    if adapter.name is None or adapter.tier in ("loading", "gpu"):
        return outcome
    if not view.free_slots:
        evicted = _cheapest_idle(view)
        if evicted is None:
            return REFUSED["slots"]
        yield Evict(evicted)
    loaded = yield Load(adapter.name)
    while loaded.why in ("slots", "kv") and (evicted := _cheapest_idle(view)) is not None:
        yield Evict(evicted)
        loaded = yield Load(adapter.name)
    if not loaded.ok:
        return loaded
    return (yield _new(Admit, (request, None)))


def look_ahead(view: View, depth: int) -> Generator[Action, Outcome, None]:
    """Prefetch to host memory the adapters of the first ``depth`` waiting requests that are on disk or farther."""
    for place, request in enumerate(view.waiting):
        if place >= depth:
            return
        adapter = view.adapter(request)
        if adapter.name is not None and adapter.tier in ("disk", "remote") and not adapter.prefetching:
            yield Prefetch(adapter.name)
