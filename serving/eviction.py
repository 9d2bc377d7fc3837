"""Eviction: scores by which an idle adapter gives up its GPU slot."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from loratory.serving.engine_view import View
from loratory.serving.read_only import LiveMapping
from loratory.serving.views import AdapterView

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


SCORERS: Mapping[str, Scorer] = LiveMapping({"lru": lru, "lfu": lfu, "fifo": fifo, "cost_aware": cost_aware})
