"""GpuSlots: which adapters are on the GPU or on their way there, and which of them may be evicted."""

from __future__ import annotations

from loratory.serving.actions import OK, REFUSED, Outcome
from loratory.serving.adapter_states import AdapterStates
from loratory.serving.compiling import mypyc_attr
from loratory.serving.host_cache import HostCache
from loratory.serving.kv_pool import KVPool
from loratory.serving.plan import AdapterLoad
from loratory.serving.sequence import Sequence
from loratory.serving.usage import AdapterState
from loratory.serving.views import AdapterView


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class GpuSlots:
    """``max_loras`` slots, each free, held by an adapter, or promised to a load in flight.

    ``sync``: an adapter can be used in the step that starts its load. ``adapters`` are all of the engine's, ``running``
    its running requests; both belong to the ledger and are only read here.
    """

    __slots__ = (
        "_adapters",
        "_host",
        "_kv",
        "_running",
        "free",
        "idle",
        "loading",
        "loads",
        "max_loras",
        "on_gpu",
        "sync",
        "views",
    )

    def __init__(
        self,
        max_loras: int,
        sync: bool,
        kv: KVPool,
        host: HostCache,
        adapters: AdapterStates,
        running: dict[str, Sequence],
    ) -> None:
        self.max_loras = max_loras
        self.free = max_loras
        """Slots that no adapter holds and no load in flight will fill."""
        self.sync = sync
        self._kv = kv
        self._host = host
        self._adapters = adapters
        self._running = running
        self.on_gpu: dict[str, AdapterState] = {}
        self.views: dict[str, AdapterView] = {}
        self.idle: dict[str, AdapterState] = {}
        """Adapters on the GPU that no running request uses and that are not pinned."""
        self.loading: dict[str, AdapterState] = {}
        self.loads: list[AdapterLoad] = []
        """Loads that begin with the step being planned."""

    def obtainable(self) -> bool:
        """Whether a slot is free or held by an adapter that may go."""
        if self.free:
            return True
        busy = self._running or self.loading
        for state in self.idle.values():  # noqa: SIM110 - a generator costs more than the usual single turn
            if not (busy and state.fresh and state.queue.live):
                return True
        return False

    def idle_views(self) -> list[AdapterView]:
        """Adapters that may be evicted and were not just loaded for a request that still waits.

        If nothing runs and nothing is on the way, all of them may be: else a policy that now insists on another adapter
        than the one it has loaded would wait for ever.
        """
        if not self.idle:
            return []
        busy = self._running or self.loading
        return [state.view for state in self.idle.values() if not (busy and state.fresh and state.queue.live)]

    def load(self, name: str, now: float) -> Outcome:
        """Bring an adapter to a free slot. With sync loading it can be used at once, else when the load ends."""
        state = self._adapters.find(name)
        if state is None:
            return REFUSED["unknown"]
        if state.tier in ("gpu", "loading"):
            return REFUSED["adapter"]
        if not self.free:
            return REFUSED["slots"]
        if state.blocks > self._kv.free:
            return REFUSED["kv"]
        if not self._host.hold(state):
            return REFUSED["in_use"]
        assert state.spec is not None
        self.loads.append(AdapterLoad(state.spec, state.tier, False))
        self._kv.take(state.blocks)
        state.load_started = now
        self.free -= 1
        self.loading[name] = state
        self._host.move(state, "loading")
        if self.sync:
            self.arrive(state, now)
        return OK

    def take_loads(self) -> tuple[AdapterLoad, ...]:
        """The loads that begin with the step being planned; they are its plan's from now on."""
        loads = tuple(self.loads)
        self.loads.clear()
        return loads

    def arrive(self, state: AdapterState, now: float) -> None:
        """A load to the GPU has ended."""
        name = state.name
        assert name is not None
        del self.loading[name]
        self.on_gpu[name] = state
        self.views[name] = state.view
        self._host.move(state, "gpu")
        state.eta = None
        state.fresh = True
        state.prefetching = False
        state.loaded_at = state.last_used = now
        if not state.pinned:
            self.idle[name] = state

    def fail(self, state: AdapterState) -> None:
        """A load failed: free the slot, the blocks and the place in host memory.

        With sync loading the adapter was already on the GPU, but no running request may use it any more.
        """
        name = state.name
        assert name is not None and not state.running
        if state.tier in ("loading", "gpu"):
            if self.loading.pop(name, None) is None:
                del self.on_gpu[name]
                del self.views[name]
                self.idle.pop(name, None)
            self.free += 1
            self._kv.give(state.blocks)
            self._host.move(state, "disk")
        state.eta = None
        self._host.drop(state)

    def prefetch(self, name: str) -> Outcome:
        """Bring an adapter from disk or farther to host memory."""
        state = self._adapters.find(name)
        if state is None:
            return REFUSED["unknown"]
        if state.tier not in ("disk", "remote") or state.prefetching:
            return REFUSED["adapter"]
        tier = state.tier
        if not self._host.hold(state):
            return REFUSED["in_use"]
        assert state.spec is not None
        state.prefetching = True
        self.loads.append(AdapterLoad(state.spec, tier, True))
        return OK

    def evict(self, name: str) -> Outcome:
        """Free the slot of an adapter that no running request uses; it stays in host memory."""
        state = self._adapters.find(name)
        if state is None:
            return REFUSED["unknown"]
        if state.tier == "loading" or state.running:
            return REFUSED["in_use"]
        if state.tier != "gpu":
            return REFUSED["adapter"]
        if state.pinned:
            return REFUSED["pinned"]
        del self.on_gpu[name]
        del self.views[name]
        del self.idle[name]
        self.free += 1
        self._kv.give(state.blocks)
        self._host.rest(state)
        return OK
