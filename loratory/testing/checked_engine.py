"""CheckedEngine: an engine whose books are recounted after every plan and commit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.event_dispatch import hearing
from loratory.serving.events import Ended, Handler, Sink
from loratory.serving.lora import Adapter
from loratory.serving.plan import CostView, StepPlan, StepResult
from loratory.serving.policy import PolicyLike
from loratory.serving.sequence import sequence_of
from loratory.testing.broken_law import BrokenLaw
from loratory.testing.integrity import IntegrityError, check


class CheckedEngine(Engine):
    """An engine whose books are recounted after every plan and commit, and that counts tokens for itself.

    ``sampled`` and ``prefill_tokens``: output and prompt tokens by request. ``service``: at each recount, its second
    and by tenant the prompt tokens admitted and the output tokens so far. ``ended_sequences``: what has ended. Raises
    `BrokenLaw`.
    """

    def __init__(
        self,
        config: EngineConfig,
        adapters: Iterable[Adapter],
        policy: PolicyLike,
        cost: CostView,
        kv_bytes_per_token: int | None = None,
        sink: Sink | Handler | None = None,
    ) -> None:
        self.ended_sequences: list[Any] = []

        def keep(event: Ended) -> None:
            self.ended_sequences.append(sequence_of(event.request))

        super().__init__(config, adapters, policy, cost, kv_bytes_per_token, hearing(sink, Ended, keep))
        self.prefill_tokens: Counter[str] = Counter()
        self.sampled: Counter[str] = Counter()
        self.service: list[tuple[float, dict[str, tuple[int, int]]]] = []
        self.checks = 0
        self._decodes: dict[int, list[str]] = {}
        """The decoding requests of each plan that is not committed: by then the next one may have been made."""
        self._at = float("-inf")

    def plan(self, now: float) -> StepPlan | None:
        """See `Engine.plan`."""
        self._advance(now)
        plan = super().plan(now)
        self._check()
        if plan is not None:
            self._check_plan(plan)
            self._decodes[id(plan)] = [sequence.request_id for sequence in plan.decodes]
        return plan

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> None:
        """See `Engine.commit`."""
        self._advance(now)
        if not 1 <= result.steps <= plan.max_repeat + 1:
            raise BrokenLaw("limits", f"{result.steps} steps were run of a plan for at most {plan.max_repeat + 1}")
        self._count(self._decodes.pop(id(plan)), result.steps)
        for prefill in plan.prefills:
            self.prefill_tokens[prefill.sequence.request_id] += prefill.tokens
            self.sampled[prefill.sequence.request_id] += prefill.completes and prefill.sequence.ended_at is None
        super().commit(plan, result, now)
        self._check()

    def repeat(self, plan: StepPlan, steps: int, now: float) -> None:
        """See `Engine.repeat`."""
        self._advance(now)
        if not 1 <= steps <= plan.max_repeat:
            raise BrokenLaw("limits", f"{steps} steps were repeated of a plan for at most {plan.max_repeat}")
        self._count(self._decodes[id(plan)], steps)
        super().repeat(plan, steps, now)
        self._check()

    def _count(self, decodes: Iterable[str], steps: int) -> None:
        for request_id in decodes:
            if request_id in self.ledger.sequences:  # else it ended after the step was planned, which is wasted on it
                self.sampled[request_id] += steps

    def _advance(self, now: float) -> None:
        if now < self._at:
            raise BrokenLaw("time", f"the engine is called at {now}, which is before {self._at}")
        self._at = now

    def _check(self) -> None:
        """Each time at first; now and then in a run that does not end."""
        self.checks += 1
        if self.checks < 4000 or self.checks % 1000 == 0:
            try:
                check(self.ledger, self.ended_sequences)
            except IntegrityError as error:
                raise BrokenLaw("integrity", str(error)) from error
            self._note()

    def _check_plan(self, plan: StepPlan) -> None:
        """The limits of a step, and its shape against its parts."""

        def limit(true: bool, what: str) -> None:
            if not true:
                raise BrokenLaw("limits", f"{what} in the step at {ledger.now:.9g} s: {shape}")

        ledger, config, shape = self.ledger, self.ledger.config, plan.shape
        decodes, prefills = list(plan.decodes), plan.prefills
        limit(plan.decode_count == len(decodes) == shape.decode_seqs, "number of decoding requests")
        limit(shape.tokens <= config.max_num_batched_tokens, "more than max_num_batched_tokens")
        limit(len(decodes) + len(prefills) <= config.max_num_seqs, "more than max_num_seqs")
        if config.batching == "separate":
            limit(not (prefills and decodes), "prefill and decode")
        limit(shape.prefill_seqs == len(prefills) and not (prefills and plan.max_repeat), "number of prefill chunks")
        names = {s.adapter.name: s.adapter.rank for s in [*decodes, *(p.sequence for p in prefills)]}
        limit(all(n is None or ledger.adapters[n].tier == "gpu" for n in names), "an adapter that is not on the GPU")
        names.pop(None, None)
        limit(len(names) <= config.max_loras, "more than max_loras")
        if plan.computes and config.batching == "chunked":
            # part-prefilled requests that get no token this step keep their adapter in the batch
            limit(shape.distinct_adapters >= len(names), "number of adapters")
            limit(shape.max_rank >= max(names.values(), default=0), "largest rank")
        for prefill in prefills:
            sequence, start, tokens = prefill.sequence, prefill.start, prefill.tokens
            limit(tokens >= 1 and start >= sequence.request.cached_tokens, "a prefill chunk")
            limit(prefill.completes == (start + tokens == sequence.target), "the end of a prefill")
            if config.long_prefill_token_threshold and (
                config.long_prefill_threshold_alone or len(ledger.sequences) > 1
            ):
                limit(tokens <= config.long_prefill_token_threshold, "more than long_prefill_token_threshold")
        limit(shape.prefill_tokens == sum(p.tokens for p in prefills), "number of prompt tokens")
        attended = sum(sum(range(p.start + 1, p.start + p.tokens + 1)) for p in prefills)
        limit(shape.prefill_attention == attended, "attention of prefill")
        limit(shape.kv_tokens == sum(s.kv_tokens for s in decodes), "KV tokens")
        work = [(1, s.adapter.rank) for s in decodes] + [(p.tokens, p.sequence.adapter.rank) for p in prefills]
        limit(shape.lora_tokens == sum(tokens for tokens, rank in work if rank), "LoRA tokens")
        waiting = ledger.waiting.by_ticket.values()
        passed = 0 if any(s.adapter.tier == "gpu" for s in waiting) else len(waiting)
        limit(shape.blocked_seqs == passed, "waiting requests that are passed over")
        limit(shape.lora_token_ranks == sum(tokens * rank for tokens, rank in work), "LoRA tokens times ranks")

    def _note(self) -> None:
        ledger = self.ledger
        service: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for sequence in [*ledger.sequences.values(), *self.ended_sequences]:
            if sequence.admissions:
                service[sequence.tenant.name][0] += sequence.request.prompt_tokens
                service[sequence.tenant.name][1] += sequence.generated
        self.service.append((self.ledger.now, {name: (a, b) for name, (a, b) in service.items()}))
