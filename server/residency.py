"""Residency: which adapters are on the GPU and which in host memory, as an engine's events tell it."""

from __future__ import annotations

from collections.abc import Iterable

from loratory.serving.events import (
    AdapterAdded,
    AdapterPinned,
    AdapterRemoved,
    Evicted,
    HostEvicted,
    Loaded,
    LoadFailed,
    LoadStarted,
)
from loratory.serving.lora import Adapter

_TO_GPU, _TO_HOST = False, True
"""Whether a load is a prefetch."""


class Residency:
    """Where the adapters of one engine are, between its steps. Only the engine's thread writes.

    An adapter is on the GPU when a load has ended and before it is evicted; it is in host memory alone (`host`) before
    that load, and after the eviction until another takes its place. An adapter that comes from farther is nowhere until
    it has arrived.
    """

    __slots__ = ("_early", "_host_slots", "_started", "_sync", "_together", "gpu", "host", "known", "pinned")

    def __init__(self, adapters: Iterable[Adapter], host_slots: int, sync: bool) -> None:
        self._host_slots = host_slots
        self._sync = sync
        self.known: dict[str, Adapter] = {}
        self.gpu: dict[str, None] = {}
        self.host: dict[str, None] = {}
        self.pinned: dict[str, None] = {}
        self._started: dict[tuple[str, bool], tuple[float, str]] = {}
        """Loads in flight: (adapter, whether it is a prefetch) to the second they began at, and the tier they began in.
        """
        self._together: tuple[float, int] = (-1.0, 0)
        """With sync loading: the second of the last step that waited for loads, and for how many."""
        self._early: dict[str, int] = {}
        """With sync loading: how often an adapter was evicted before the step that its load belongs to was run. Such a
        load is told when it has lost its meaning."""
        for adapter in adapters:
            self._learn(adapter)

    def _learn(self, adapter: Adapter) -> None:
        """As `loratory.serving.host_cache.HostCache.start`: some begin in host memory, while it has room."""
        self.known[adapter.name] = adapter
        if adapter.pinned:
            self.pinned[adapter.name] = None
        if (
            adapter.tier == "host"
            and len({*self.gpu, *self.host, *(name for name, _ in self._started)}) < self._host_slots
        ):
            self.host[adapter.name] = None

    def added(self, event: AdapterAdded) -> None:
        """The engine knows one more adapter."""
        self._learn(event.spec)

    def removed(self, event: AdapterRemoved) -> None:
        """It knows one less."""
        name = event.adapter
        self.known.pop(name, None)
        for places in (self.gpu, self.host, self.pinned):
            places.pop(name, None)
        self._early.pop(name, None)
        self._started.pop((name, _TO_GPU), None)
        self._started.pop((name, _TO_HOST), None)

    def pin_changed(self, event: AdapterPinned) -> None:
        """An adapter was pinned, or is not any more."""
        if event.pinned:
            self.pinned[event.adapter] = None
        else:
            self.pinned.pop(event.adapter, None)

    def load_started(self, event: LoadStarted) -> None:
        """A load is on the way."""
        self._started[event.adapter, event.prefetch] = (event.now, event.tier)
        if self._sync and not event.prefetch:
            begun, number = self._together
            self._together = (event.now, number + 1 if begun == event.now else 1)

    def loaded(self, event: Loaded) -> tuple[str, float] | None:
        """A load has ended. Returns the tier it began in, and its seconds: of a step's loads, each has an equal part of
        the time that the step waited for them."""
        name, prefetch = event.adapter, event.prefetch
        started = self._started.pop((name, prefetch), None)
        if prefetch:
            if started is not None:
                self.host[name] = None
        elif self._early.get(name):
            self._early[name] -= 1
            if not self._early[name]:
                del self._early[name]
        else:
            self._started.pop((name, _TO_HOST), None)  # the load has overtaken its prefetch, whose end means nothing
            self.gpu[name] = None
            self.host.pop(name, None)
        if started is None:
            return None
        begun, tier = started
        alone = not self._sync or prefetch
        return tier, (event.now - begun) / (1 if alone else self._together[1])

    def load_failed(self, event: LoadFailed) -> None:
        """An adapter could not be loaded, and is neither here nor there."""
        name = event.adapter
        self._started.pop((name, event.prefetch), None)
        if not event.prefetch:
            self.gpu.pop(name, None)
            self.host.pop(name, None)

    def evicted(self, event: Evicted) -> None:
        """An adapter left its slot, and is in host memory alone."""
        name = event.adapter
        if name in self.gpu:
            del self.gpu[name]
        else:
            self._early[name] = self._early.get(name, 0) + 1
            self._started.pop((name, _TO_HOST), None)
        self.host[name] = None

    def host_evicted(self, event: HostEvicted) -> None:
        """An adapter left host memory."""
        self.host.pop(event.adapter, None)

    def level(self, name: str) -> str:
        """ "gpu", "cpu" or "": vLLM's words."""
        return "gpu" if name in self.gpu else "cpu" if name in self.host else ""
