"""EngineLoads: what the engine tells of adapter loads, and what their ends change."""

from __future__ import annotations

from loratory.serving.event_dispatch import Announcer
from loratory.serving.events import Loaded, LoadFailed, LoadStarted
from loratory.serving.ledger import Ledger
from loratory.serving.plan import StepPlan
from loratory.serving.policy_runner import PolicyRunner


class EngineLoads:
    """The loads of one engine, from the plan that begins them to their end."""

    __slots__ = ("_announcer", "_ledger", "_runner", "_tell_load_started", "_tell_loaded")

    def __init__(self, ledger: Ledger, announcer: Announcer, runner: PolicyRunner) -> None:
        self._ledger = ledger
        self._runner = runner
        self.seat(announcer)

    def seat(self, announcer: Announcer) -> None:
        """From now on tell a policy by its announcer."""
        self._announcer = announcer
        self._tell_load_started = announcer.handler(LoadStarted)
        self._tell_loaded = announcer.handler(Loaded)

    def expect(self, name: str, eta: float) -> None:
        """A load in flight will end at about second ``eta``; policies see it as `AdapterView.eta`."""
        state = self._ledger.adapters[name]
        if state.tier == "loading" or state.prefetching:  # else a load overtook its prefetch
            state.eta = eta

    def expect_all(self, plan: StepPlan, now: float) -> None:
        """The plan's loads that no step waits for begin at ``now``; the cost model predicts when they end."""
        for load in plan.loads:
            if load.prefetch or not self._ledger.slots.sync:
                self.expect(load.adapter.name, now + load.seconds(self._ledger.cost))

    def begun(self, plan: StepPlan, start: float, load_s: float) -> None:
        """The plan's loads began at second ``start``; with sync loading those to the GPU ended ``load_s`` later."""
        ledger, done = self._ledger, start + load_s
        if self._tell_load_started is not None:
            for adapter, tier, prefetch in plan.loads:
                self._tell_load_started(LoadStarted(start, adapter.name, tier, prefetch))
        for adapter, _, prefetch in plan.loads:
            if ledger.slots.sync and not prefetch:
                ledger.adapters[adapter.name].loaded_at = done
                if self._tell_loaded is not None:
                    self._tell_loaded(Loaded(done, adapter.name, False))

    def done(self, name: str, prefetch: bool) -> None:
        """A load or prefetch that no step waited for has ended."""
        ledger = self._ledger
        state = ledger.adapters.find(name)
        if state is None:  # a prefetch that a load had overtaken; then the adapter was removed
            return
        if prefetch:
            if state.tier in ("disk", "remote") and state.prefetching:
                ledger.host_cache.rest(state)
            state.prefetching = False
        elif state.tier == "loading":
            ledger.slots.arrive(state, ledger.now)
        if self._tell_loaded is not None:
            self._tell_loaded(Loaded(ledger.now, name, prefetch))

    def failed(self, name: str, why: str, prefetch: bool) -> None:
        """A load failed, and with it the requests that need the adapter; a failed prefetch fails none."""
        ledger = self._ledger
        state = ledger.adapters.find(name)
        if state is None:
            return
        if (tell := self._announcer.sink_handler(LoadFailed)) is not None:
            tell(LoadFailed(ledger.now, name, why, prefetch))
        if prefetch:
            state.prefetching = False
            if state.tier in ("disk", "remote"):
                ledger.host_cache.drop(state)
            return
        running = [sequence for sequence in ledger.running.values() if sequence.adapter is state]
        waiting = [ledger.waiting.by_ticket[queued.ticket] for queued in state.queue.sequences()]
        for sequence in (*running, *waiting):
            self._runner.end(sequence, "failed", f"adapter {name!r} could not be loaded: {why}")
        ledger.slots.fail(state)

    def dismiss_policy(self) -> None:
        """The policy has failed: it gets no event any more."""
        self._tell_loaded = self._announcer.sink_handler(Loaded)
