"""HostCache: which adapters are in host memory, at most ``max_cpu_loras``, a superset of those on the GPU."""

from __future__ import annotations

from heapq import heappop, heappush

from loratory.serving.usage import AdapterState


class HostCache:
    """Places in host memory. When all are taken, the least recently used adapter that only rests there goes to disk."""

    __slots__ = ("_resting", "held", "max_cpu_loras")

    def __init__(self, max_cpu_loras: int) -> None:
        self.max_cpu_loras = max_cpu_loras
        self.held: dict[str | None, AdapterState] = {}
        self._resting: list[tuple[float, int, AdapterState]] = []

    def start(self, state: AdapterState) -> None:
        """Place an adapter that rests in host memory at the start; on disk when all places are taken."""
        if state.tier == "host":
            if len(self.held) >= self.max_cpu_loras:
                state.tier = "disk"
                return
            self.held[state.name] = state
            self.rest(state)

    def hold(self, state: AdapterState) -> bool:
        """Give the adapter a place, sending another to disk if need be; False when every place is in use."""
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
            if state.tier == "host" and state.last_used == last_used and state.name in self.held:
                del self.held[state.name]
                state.tier = "disk"
                return True
        return False

    def rest(self, state: AdapterState) -> None:
        """The adapter is in host memory and nowhere above: it may be sent to disk from now on."""
        state.tier = "host"
        state.eta = None
        state.prefetching = False
        heappush(self._resting, (state.last_used, state.lora_int_id, state))

    def drop(self, state: AdapterState) -> None:
        """The adapter's load failed: it holds no place."""
        self.held.pop(state.name, None)
        state.prefetching = False
        state.eta = None
