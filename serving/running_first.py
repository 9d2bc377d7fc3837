"""RunningFirst: what a step gives the running requests before any that wait, preempting where KV blocks are missing."""

from __future__ import annotations

from loratory.serving.engine_view import View
from loratory.serving.ledger import Ledger
from loratory.serving.policy_runner import PolicyRunner
from loratory.serving.sequence import Sequence


class RunningFirst:
    """Every decoding request takes the block of its next token, every part-prefilled one those of its next chunk.

    Nearly always all of them are free, and the order does not matter. Where they are not, the running requests are
    gone through in order of admission, as vLLM does (`in_order`).
    """

    __slots__ = ("_ledger", "_runner", "_view")

    def __init__(self, ledger: Ledger, runner: PolicyRunner, view: View) -> None:
        self._ledger = ledger
        self._runner = runner
        self._view = view

    def extend_partial(self) -> bool:
        """Give part-prefilled requests their next chunk; False if a request was preempted for it."""
        ledger = self._ledger
        for sequence in list(ledger.partial.values()):
            if not ledger.extend(sequence):
                return self.in_order()
        return True

    def in_order(self) -> bool:
        """Give blocks to the running requests in order of admission; False if a request was preempted.

        A request that finds too few makes the engine preempt another, again and again, until it fits or was itself the
        victim. In that case those behind it compute nothing in this step, and keep what they hold:

            running in order      A   B   C   D      blocks wanted 0 1 1 0, free 1, the victims: C, then B
            A  needs none
            B  takes the last block
            C  finds none, and is the victim itself: it waits again
            D  is held for this step, though it needs no block

        The victim may stand before the request that needs blocks: then its chunk or its token of this step is taken
        back. Source: vLLM 0.32, vllm/v1/core/sched/scheduler.py, schedule().
        """
        ledger, kv = self._ledger, self._ledger.kv
        kv.unreserve()
        for prefill in list(ledger.prefills.values()):
            ledger.retract(prefill.sequence)
        ledger.begin_step()
        taken: dict[str, int] = {}
        """Blocks that decoding requests were given, by request id."""
        try:
            return self._go_through(taken)
        finally:  # also where the policy failed
            kv.give(sum(taken.values()))
            kv.reserve()

    def _go_through(self, taken: dict[str, int]) -> bool:
        """The loop of `in_order`, which counts the blocks of decoding requests in ``taken``."""
        ledger, kv = self._ledger, self._ledger.kv
        kept = go_on = True
        for sequence in list(ledger.running.values()):
            if sequence.state != "running" or sequence.request_id in ledger.seated:
                continue
            go_on = go_on and ledger.token_budget > 0
            if not go_on:
                if sequence.decoding:
                    ledger.hold(sequence)
                continue
            tokens = 1 if sequence.decoding else ledger.chunk(sequence.target - sequence.prefilled)
            while not self._fits(sequence, tokens, taken):
                if self._runner.evict_for_kv(self._view):
                    continue
                kept = False
                victim = self._runner.preempt_one(self._view)
                if victim.request_id in taken:
                    kv.give(taken.pop(victim.request_id))
                    ledger.token_budget += 1
                if victim is sequence:
                    go_on = False
                    break
        return kept

    def _fits(self, sequence: Sequence, tokens: int, taken: dict[str, int]) -> bool:
        """Take what a running request needs to compute ``tokens`` in this step; False if too few blocks are free."""
        ledger, kv = self._ledger, self._ledger.kv
        if not sequence.decoding:
            return ledger.extend(sequence, tokens)
        blocks = kv.held_after_step(sequence) - kv.held(sequence)
        if blocks > kv.free:
            return False
        kv.take(blocks)
        taken[sequence.request_id] = blocks
        ledger.token_budget -= 1
        return True

    def reserve_decode(self) -> bool:
        """For steps that only decode (``batching: separate``): take the blocks; False if a request was preempted."""
        kept = True
        while not self._ledger.kv.reserve():
            if not self._runner.evict_for_kv(self._view):
                self._runner.preempt_one(self._view)
                kept = False
        self._ledger.token_budget -= self._ledger.kv.decoding
        return kept

    def extend_each(self) -> bool:
        """The same for their prefill steps: the next chunks, one request after the other."""
        kept = True
        for sequence in list(self._ledger.partial.values()):
            while sequence.state == "running" and not self._ledger.extend(sequence):
                if not self._runner.evict_for_kv(self._view):
                    self._runner.preempt_one(self._view)
                    kept = False
        return kept
