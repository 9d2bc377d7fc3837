"""HostCache: which adapters are in host memory, at most ``max_cpu_loras``, a superset of those on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from loratory.serving.compiling import mypyc_attr
from loratory.serving.lora import Tier
from loratory.serving.usage import AdapterState


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class HostCache:
    """Places in host memory. When all are taken, the least recently used adapter that is only there loses its place.

    ``held`` are the adapters that have a place: those in host memory only, those on the GPU, and those on their way to
    either. ``_resting`` is a heap of (last use, id, adapter) of those in host memory only; entries of adapters that
    have been used or have left since are out of date.
    """

    __slots__ = ("_resting", "held", "max_cpu_loras", "moved", "tell")

    def __init__(self, max_cpu_loras: int) -> None:
        self.max_cpu_loras = max_cpu_loras
        self.held: dict[str | None, AdapterState] = {}
        self._resting: list[tuple[float, int, AdapterState]] = []
        self.tell: Callable[[str], None] | None = None
        """Called with the name of an adapter that has lost its place to another."""
        self.moved: Callable[[AdapterState], None] | None = None
        """Called with each adapter whose tier has changed."""

    def __getstate__(self) -> tuple[None, dict[str, object]]:
        """All but ``tell`` and ``moved``: a copy of an engine tells others."""
        kept = {"max_cpu_loras": self.max_cpu_loras, "held": self.held, "_resting": self._resting}
        return None, {**kept, "tell": None, "moved": None}

    def move(self, state: AdapterState, tier: Tier) -> None:
        """An adapter is on another tier from now on."""
        state.tier = tier
        if self.moved is not None:
            self.moved(state)

    def start(self, state: AdapterState) -> None:
        """Give an adapter that begins in host memory a place; it begins on disk when all places are taken."""
        if state.tier == "host":
            if len(self.held) >= self.max_cpu_loras:
                self.move(state, "disk")
                return
            self.held[state.name] = state
            self.rest(state)

    def hold(self, state: AdapterState) -> bool:
        """Give the adapter a place, that of another if none is free; False when no other may leave."""
        if state.name in self.held:
            return True
        while len(self.held) >= self.max_cpu_loras:
            if not self._send_one_to_disk():
                return False
        self.held[state.name] = state
        return True

    def _send_one_to_disk(self) -> bool:
        while self._resting:
            last_used, _, state = heappop(self._resting)
            if state.tier == "host" and state.last_used == last_used and self.held.get(state.name) is state:
                del self.held[state.name]
                self.move(state, "disk")
                if self.tell is not None:
                    assert state.name is not None
                    self.tell(state.name)
                return True
        return False

    def rest(self, state: AdapterState) -> None:
        """The adapter is in host memory only: from now on it may lose its place."""
        self.move(state, "host")
        state.eta = None
        state.prefetching = False
        heappush(self._resting, (state.last_used, state.lora_int_id, state))

    def drop(self, state: AdapterState) -> None:
        """The adapter's load failed: it has no place any more."""
        self.held.pop(state.name, None)
        state.prefetching = False
        state.eta = None
