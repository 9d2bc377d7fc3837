"""AdapterChanges: adapters that come, go, are pinned or loaded by order, while their engine runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from loratory.errors import InputError
from loratory.serving.adapter_limits import pinned_problem
from loratory.serving.engine_adapters import refuse_rank
from loratory.serving.event_dispatch import Announcer
from loratory.serving.events import AdapterAdded, AdapterPinned, AdapterRemoved
from loratory.serving.ledger import Ledger
from loratory.serving.lora import Adapter
from loratory.serving.policy_runner import PolicyRunner
from loratory.serving.usage import AdapterState

Answer = Callable[[str], None]
"""Takes "" where an order was carried out, else the reason why it was not."""

_REFUSED = {
    "slots": "every GPU slot is in use: unpin an adapter, wait until requests end, or raise max_loras",
    "in_use": "host memory holds no adapter that may leave: raise max_cpu_loras",
    "kv": "the KV cache has no room for it: wait until requests end",
}


class AdapterChanges:
    """What an operator orders about the adapters of one engine; the engine's thread carries it out between two steps.

    An adapter that is to go takes no request any more. Once its last request has ended, and no load of it is in flight,
    its slot and its place in host memory are free, and the engine knows it no more (`settle`). All but `add` is done at
    the next plan, in order with the requests, and answered then (`enter` is `add` at that time). An id never gets
    another meaning: neither may a name come back with another id, nor an id with another name or digest.
    """

    __slots__ = ("_announcer", "_ids", "_later", "_ledger", "_put", "_runner")

    def __init__(
        self, ledger: Ledger, runner: PolicyRunner, announcer: Announcer, put: Callable[[Callable[[], None]], None]
    ) -> None:
        """``put``: has a call made when the next plan takes in what happened."""
        self._put = put
        self._ledger = ledger
        self._runner = runner
        self._later: dict[int, Adapter] = {}
        """Adapters that came after the start, by id; none is ever forgotten."""
        self._ids: dict[str, int] = {}
        """Their ids by name."""
        for adapter in ledger.adapters.later():
            self._remember(adapter)
        self.seat(announcer)

    def seat(self, announcer: Announcer) -> None:
        """From now on tell a policy by its announcer."""
        self._announcer = announcer

    def add(self, adapter: Adapter) -> None:
        """The engine knows one more adapter. Raises `InputError` for one that it could not serve."""
        ledger, name, number = self._ledger, adapter.name, adapter.lora.lora_int_id
        if ledger.config.memory == "unified":
            raise InputError("engine.memory is unified, which takes all adapters at the start: set it to slots")
        if name in ledger.adapters:
            raise InputError(f"adapter {name!r} is in use: remove it first, or add this one under another name")
        if (former := self._former_id(name)) not in (None, number):
            raise InputError(f"adapter {name!r} had the lora_int_id {former} here: an id never changes its meaning")
        meaning = self._later.get(number) or ledger.roster.by_id.get(number)
        if meaning is not None and (meaning.name, meaning.digest) != (name, adapter.digest):
            other = f"adapter {meaning.name!r}" if meaning.name != name else "other content"
            raise InputError(f"the lora_int_id {number} means {other} in this engine: give {name!r} an id of its own")
        refuse_rank(ledger.config, adapter)
        state = ledger.removed.get(name)
        if state is None:
            state = ledger.make_state(adapter)
        else:
            state.begin(adapter)
        if state.pinned and (problem := self._too_many_pinned(len(ledger.adapters) + 1)):
            raise InputError(problem)
        self._remember(adapter)
        ledger.removed.pop(name, None)
        ledger.adapters.add(state)
        ledger.host_cache.start(state)
        if (tell := self._announcer.handler(AdapterAdded)) is not None:
            tell(AdapterAdded(ledger.now, name, adapter))

    def enter(self, adapter: Adapter) -> None:
        """From the next plan on the engine knows one more adapter, for requests that are submitted from now on.

        That plan raises what `add` does.
        """
        self._put(partial(self.add, adapter))

    def _remember(self, adapter: Adapter) -> None:
        self._later[adapter.lora.lora_int_id] = adapter
        self._ids[adapter.name] = adapter.lora.lora_int_id

    def _former_id(self, name: str) -> int | None:
        """The id that a name has ever had here."""
        first = self._ledger.roster.specs.get(name)
        return self._ids.get(name) if first is None else first.lora.lora_int_id

    def remove(self, name: str, answer: Answer) -> None:
        """The adapter is to go: its requests so far are served, then the engine knows it no more (`AdapterRemoved`)."""
        self._put(partial(self._remove, name, answer))

    def pin(self, name: str, answer: Answer) -> None:
        """From now on the adapter stays on the GPU once it is there."""
        self._put(partial(self._pin, name, answer))

    def unpin(self, name: str, answer: Answer) -> None:
        """From now on the adapter may be evicted."""
        self._put(partial(self._unpin, name, answer))

    def preload(self, name: str, answer: Answer) -> None:
        """Load the adapter to the GPU with the next step, evicting the idle one that was used longest ago where none is
        free. The answer comes when the load begins."""
        self._put(partial(self._preload, name, answer))

    def prefetch(self, name: str, answer: Answer) -> None:
        """Bring the adapter to host memory with the next step. The answer comes when that begins, or need not be."""
        self._put(partial(self._prefetch, name, answer))

    def _remove(self, name: str, answer: Answer) -> None:
        state = self._ledger.adapters.find(name)
        if state is None or name in self._ledger.leaving:
            answer(f"adapter {name!r} is not known here")
            return
        self._ledger.leaving[name] = state
        self._runner.ask = True
        answer("")

    def settle(self) -> None:
        """Let those go that were to go and that nothing uses any more."""
        ledger = self._ledger
        for name, state in list(ledger.leaving.items()):
            if state.queue.live or state.running or state.tier == "loading" or state.prefetching:
                continue
            if state.tier == "gpu":
                state.pinned = False
                ledger.slots.idle[name] = state
                self._runner.evict(name)
            ledger.host_cache.drop(state)
            del ledger.leaving[name]
            ledger.adapters.remove(name)
            ledger.removed[name] = state
            self._runner.ask = True
            if (tell := self._announcer.handler(AdapterRemoved)) is not None:
                tell(AdapterRemoved(ledger.now, name))

    def _pin(self, name: str, answer: Answer) -> None:
        if (state := self._known(name, answer)) is None:
            return
        if not state.pinned:
            if problem := self._too_many_pinned(len(self._ledger.adapters)):
                answer(problem)
                return
            state.pinned = True
            self._ledger.slots.idle.pop(name, None)
            self._runner.ask = True
            self._tell_pinned(name, True)
        answer("")

    def _unpin(self, name: str, answer: Answer) -> None:
        if (state := self._known(name, answer)) is None:
            return
        if state.pinned:
            state.pinned = False
            if state.tier == "gpu" and not state.running:
                self._ledger.slots.idle[name] = state
            self._runner.ask = True
            self._tell_pinned(name, False)
        answer("")

    def _preload(self, name: str, answer: Answer) -> None:
        if (state := self._known(name, answer)) is None:
            return
        if state.tier in ("gpu", "loading"):
            answer("")
            return
        ledger = self._ledger
        if not ledger.slots.free and (idle := ledger.slots.idle_views()):
            evicted = min(idle, key=lambda adapter: (adapter.last_used, adapter.lora_int_id)).name
            assert evicted is not None
            self._runner.evict(evicted)
        outcome = ledger.load(name)
        self._runner.ask = True
        answer("" if outcome.ok else _REFUSED.get(str(outcome.why), str(outcome.why)))

    def _prefetch(self, name: str, answer: Answer) -> None:
        if (state := self._known(name, answer)) is None:
            return
        if state.prefetching or state.tier not in ("disk", "remote"):
            answer("")
            return
        outcome = self._ledger.prefetch(name)
        self._runner.ask = True
        answer("" if outcome.ok else _REFUSED.get(str(outcome.why), str(outcome.why)))

    def _tell_pinned(self, name: str, pinned: bool) -> None:
        if (tell := self._announcer.sink_handler(AdapterPinned)) is not None:
            tell(AdapterPinned(self._ledger.now, name, pinned))

    def _known(self, name: str, answer: Answer) -> AdapterState | None:
        state = self._ledger.adapters.find(name)
        if state is None or name in self._ledger.leaving:
            answer(f"adapter {name!r} is not known here")
            return None
        return state

    def _too_many_pinned(self, adapters: int) -> str | None:
        """What is wrong with one pinned adapter more, when there are ``adapters`` in all."""
        pinned = 1 + sum(state.pinned for state in self._ledger.adapters.made())
        return pinned_problem("the engine would have pinned", pinned, adapters, self._ledger.config.max_loras)
