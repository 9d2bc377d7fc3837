"""CheckedEngine: an engine whose books are checked after every plan and commit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import loratory.sim.cluster
from loratory.serving.engine import Engine
from loratory.serving.events import Ended
from loratory.serving.integrity import check
from loratory.serving.plan import StepPlan, StepResult


class CheckedEngine(Engine):
    """An engine whose books are checked after every plan and commit, and that counts tokens for itself."""

    made: list[CheckedEngine] = []

    def __init__(self, *arguments: Any) -> None:
        *arguments, sink = arguments  # type: ignore[assignment]
        self.ended_sequences: list[Any] = []

        def keep(event: Any) -> None:
            if isinstance(event, Ended):
                self.ended_sequences.append(event.sequence)
            if sink is not None:
                sink(event)

        super().__init__(*arguments, keep)
        self.prefill_tokens: Counter[str] = Counter()
        self.sampled: Counter[str] = Counter()
        self.service: list[tuple[float, dict[str, tuple[int, int]]]] = []
        self.checks = 0
        self._at = float("-inf")
        CheckedEngine.made.append(self)

    def plan(self, now: float) -> StepPlan | None:
        assert now >= self._at, f"planned at {now}, which is before {self._at}"
        self._at = now
        plan = super().plan(now)
        self._check()
        if plan is not None:
            self._check_plan(plan)
        return plan

    def _check(self) -> None:
        """Each time at first; now and then in a run that does not end."""
        self.checks += 1
        if self.checks < 4000 or self.checks % 1000 == 0:
            check(self.ledger, self.ended_sequences)
            self._note()

    def _check_plan(self, plan: StepPlan) -> None:
        ledger, config, shape = self.ledger, self.ledger.config, plan.shape
        decodes = list(plan.decodes)
        assert plan.decode_count == len(decodes) == shape.decode_seqs
        assert shape.tokens <= config.max_num_batched_tokens
        assert len(decodes) + len(plan.prefills) <= config.max_num_seqs
        if config.batching == "separate":
            assert not (plan.prefills and decodes)
        assert shape.prefill_seqs == len(plan.prefills) and not (plan.prefills and plan.max_repeat)
        names = {s.adapter.name: s.adapter.rank for s in [*decodes, *(p.sequence for p in plan.prefills)]}
        assert all(name is None or ledger.adapters[name].tier == "gpu" for name in names)
        names.pop(None, None)
        assert len(names) <= config.max_loras
        if plan.computes and config.batching == "chunked":
            # part-prefilled requests that get no token this step keep their adapter in the batch
            assert shape.distinct_adapters >= len(names) and shape.max_rank >= max(names.values(), default=0)
        for sequence, start, tokens, completes in plan.prefills:
            assert tokens >= 1 and start >= sequence.request.cached_tokens
            assert completes == (start + tokens == sequence.target)
            if config.long_prefill_token_threshold:
                assert tokens <= config.long_prefill_token_threshold
        assert shape.prefill_tokens == sum(p.tokens for p in plan.prefills)
        attended = sum(sum(range(p.start + 1, p.start + p.tokens + 1)) for p in plan.prefills)
        assert shape.prefill_attention == attended
        assert shape.kv_tokens == sum(s.kv_tokens for s in decodes)
        work = [(1, s.adapter.rank) for s in decodes] + [(p.tokens, p.sequence.adapter.rank) for p in plan.prefills]
        assert shape.lora_tokens == sum(tokens for tokens, rank in work if rank)
        assert shape.lora_token_ranks == sum(tokens * rank for tokens, rank in work)

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> None:
        assert now >= self._at and 1 <= result.steps <= plan.max_repeat + 1
        self._at = now
        for sequence in list(plan.decodes):
            self.sampled[sequence.request_id] += result.steps
        for sequence, _, tokens, completes in plan.prefills:
            self.prefill_tokens[sequence.request_id] += tokens
            self.sampled[sequence.request_id] += completes
        super().commit(plan, result, now)
        self._check()

    def _note(self) -> None:
        ledger = self.ledger
        service: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for sequence in [*ledger.sequences.values(), *self.ended_sequences]:
            if sequence.admissions:
                service[sequence.tenant.name][0] += sequence.request.prompt_tokens
                service[sequence.tenant.name][1] += sequence.generated
        self.service.append((self.ledger.now, {name: (a, b) for name, (a, b) in service.items()}))


@contextmanager
def checked() -> Iterator[list[CheckedEngine]]:
    """Within, `simulate` builds checked engines and lists them here."""
    before, CheckedEngine.made = loratory.sim.cluster.Engine, []
    loratory.sim.cluster.Engine = CheckedEngine  # type: ignore[misc]
    try:
        yield CheckedEngine.made
    finally:
        loratory.sim.cluster.Engine = before  # type: ignore[misc]
