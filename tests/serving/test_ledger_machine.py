"""A machine that drives the Ledger directly with legal and illegal actions, its books checked after each."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lab import MORE

from loratory.serving.actions import Outcome
from loratory.serving.ledger import Ledger
from loratory.serving.request import Request
from loratory.testing import ToyCost, adapter, configs
from loratory.testing.integrity import check

WHY = {None, "slots", "kv", "seqs", "budget", "adapter", "pinned", "in_use", "unknown"}
NAMES = ["a1", "a2", "a3", "a4", "a5", "nobody"]


class LedgerMachine(RuleBasedStateMachine):
    """Plays engine, policy and backend over one ledger, in no sensible order."""

    @initialize(
        config=configs(),
        pinned=st.booleans(),
        tiers=st.lists(st.sampled_from(["host", "disk", "remote"]), min_size=5, max_size=5),
    )
    def begin(self, config: Any, pinned: bool, tiers: list[Any]) -> None:
        pinned = pinned and config.max_loras > 1
        adapters = [
            adapter(n + 1, rank=[4, 8, 16][n % 3], size=[10, 40][n % 2], tier=tier, pinned=pinned and n == 0)
            for n, tier in enumerate(tiers)
        ]
        self.ledger = Ledger(config, adapters, ToyCost(), 10)
        self.ended: list[Any] = []
        self.count = 0
        self.flying: list[tuple[str, bool]] = []
        self.ledger.token_budget = config.max_num_batched_tokens

    def _answer(self, outcome: Outcome) -> Outcome:
        assert outcome.why in WHY and bool(outcome) == outcome.ok == (outcome.why is None)
        return outcome

    def _pick(self, number: int) -> Any:
        known = [*self.ledger.sequences.values(), *self.ended[-2:]]
        return known[number % len(known)] if known else None

    @rule(
        name=st.sampled_from([None, None, *NAMES]),
        prompt=st.sampled_from([1, 3, 16, 40, 70, 5000]),
        most=st.sampled_from([1, 2, 9, 60]),
        cached=st.sampled_from([0, 0, 2]),
        tenant=st.sampled_from(["t0", "t1"]),
    )
    def submit(self, name: str | None, prompt: int, most: int, cached: int, tenant: str) -> None:
        self.count += 1
        request = Request(
            str(self.count), name, self.ledger.now, prompt, most, tenant, cached_tokens=min(cached, prompt - 1)
        )
        sequence, refusal = self.ledger.submit(request)
        assert bool(refusal) == (name == "nobody" or prompt >= 5000 or sequence.request_id not in self.ledger.sequences)
        if refusal:
            self.ledger.end(sequence, "rejected", refusal)
            self.ended.append(sequence)

    @rule(number=st.integers(0, 99), tokens=st.sampled_from([None, None, None, 1, 4, 0, -1]))
    def admit(self, number: int, tokens: int | None) -> None:
        ledger, sequence = self.ledger, self._pick(number)
        if sequence is None:
            return
        before, tier = sequence.state, sequence.adapter.tier
        outcome = self._answer(ledger.admit(sequence.view, tokens))
        if outcome:
            assert before == "waiting" and tier == "gpu" and sequence.state == "running"
            assert sequence.request_id in ledger.prefills
        else:
            assert sequence.state == before

    @rule(name=st.sampled_from(NAMES))
    def load(self, name: str) -> None:
        ledger = self.ledger
        free = ledger.slots.free
        if self._answer(ledger.load(name)):
            assert free > 0 and ledger.slots.free == free - 1

    @rule(name=st.sampled_from(NAMES))
    def evict(self, name: str) -> None:
        state = self.ledger.adapters.get(name)
        safe = state is not None and state.tier == "gpu" and not state.pinned and not state.running
        assert bool(self._answer(self.ledger.evict(name))) == safe

    @rule(name=st.sampled_from(NAMES))
    def prefetch(self, name: str) -> None:
        self._answer(self.ledger.prefetch(name))

    @rule(number=st.integers(0, 99))
    def preempt(self, number: int) -> None:
        sequence = self._pick(number)
        if sequence is not None:
            before, generated = sequence.state, sequence.generated
            outcome = self._answer(self.ledger.preempt(sequence.view))
            assert not outcome or (before == "running" and sequence.state == "waiting")
            assert sequence.generated == generated

    @rule(number=st.integers(0, 99), status=st.sampled_from(["aborted", "rejected", "failed"]))
    def end(self, number: int, status: Any) -> None:
        known = list(self.ledger.sequences.values())
        if known:
            sequence = known[number % len(known)]
            self.ledger.end(sequence, status, "by the machine")
            self.ended.append(sequence)

    @precondition(lambda self: not self.ledger.kv.reserved)
    @rule()
    def plan(self) -> None:
        """Reserve the next decode step and the next chunks, as an engine does before it asks its policy."""
        ledger = self.ledger
        if ledger.prefills:
            return
        ledger.token_budget = ledger.config.max_num_batched_tokens
        while ledger.kv.need() > ledger.kv.free:
            if self._free_blocks():
                continue
        if ledger.kv.decoding:
            ledger.kv.reserve()
            ledger.token_budget -= ledger.kv.decoding
        for sequence in list(ledger.partial.values()):
            while sequence.state == "running" and not ledger.extend(sequence):
                self._free_blocks()

    def _free_blocks(self) -> bool:
        ledger = self.ledger
        if ledger.config.memory == "unified" and ledger.slots.idle:
            return bool(ledger.evict(next(iter(ledger.slots.idle))))
        return bool(ledger.preempt(next(reversed(ledger.running.values())).view))

    @rule(steps=st.integers(1, 20), seconds=st.sampled_from([0.0, 0.5]))
    def commit(self, steps: int, seconds: float) -> None:
        """The step is over: chunks are computed, decodes have grown, whoever is at its end has ended."""
        ledger = self.ledger
        ledger.now += seconds
        for load in ledger.slots.loads:
            self.flying.append((load.adapter.name, load.prefetch))
        ledger.slots.loads.clear()
        if ledger.kv.reserved and ledger.kv.decoding:
            left = min(s.finish_clock for s in ledger.decoding.values()) - ledger.clock[0]
            ledger.kv.advance(1 if ledger.prefills else ledger.kv.steps(min(steps, left)))
        ledger.kv.reserved = 0
        done = [p.sequence for p in ledger.prefills.values() if p.start + p.tokens == p.sequence.target]
        ledger.prefills.clear()
        for sequence in done:
            ledger.begin_decode(sequence)
            if sequence.preempted_at is not None:
                ledger.settle_preemption(sequence)
        for sequence in [s for s in ledger.decoding.values() if s.finish_clock <= ledger.clock[0]]:
            ledger.end(sequence, "completed", "length")
            assert sequence.generated == sequence.max_tokens
            self.ended.append(sequence)

    @precondition(lambda self: self.flying)
    @rule(number=st.integers(0, 99), well=st.booleans())
    def land(self, number: int, well: bool) -> None:
        """A load in flight arrives, or fails."""
        name, prefetch = self.flying.pop(number % len(self.flying))
        ledger, state = self.ledger, self.ledger.adapters[name]
        if prefetch:
            if well and state.tier in ("disk", "remote") and state.prefetching:
                ledger.host_cache.rest(state)
            elif not well and state.prefetching and state.tier != "loading":
                ledger.slots.fail(state)
                ledger.waiting.cooled(state)
            state.prefetching = state.prefetching and (name, True) in self.flying
        elif state.tier == "loading":
            if well:
                ledger.slots.arrive(state, ledger.now)
            else:
                ledger.slots.fail(state)
                ledger.waiting.cooled(state)

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "ledger"):
            check(self.ledger, self.ended)

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            ledger = self.ledger
            for sequence in list(ledger.sequences.values()):
                ledger.end(sequence, "aborted", "over")
                self.ended.append(sequence)
            check(ledger, self.ended)
            adapters = [s.blocks for s in ledger.adapters.values() if s.tier in ("gpu", "loading")]
            assert ledger.kv.used == sum(adapters) and not ledger.running and not len(ledger.waiting)


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=60 * MORE, stateful_step_count=50)
