"""ceiling: output tokens a second that a scenario's cost model gives one GPU when the batch is full."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import NamedTuple

from loratory.experiment.resolve import Built
from loratory.serving.plan import BatchShape
from loratory.serving.workload import Workload


def ceiling(built: Built, workload: Workload) -> float:
    """Output tokens/s of one GPU in a steady state with a full batch of this workload's mean request.

    In each step ``n`` sequences decode one token, and as many prompts are computed as sequences end: n / (mean output)
    of them; with ``batching: separate`` in steps of their own, as full as they get. ``n`` is ``max_num_seqs``, less
    where KV blocks for the mean context or the token budget of a step hold fewer. Adapters in the batch:
    as many as there are slots, adapters or sequences. Loads and waiting are left out, so no run does much better.
    Infinite for a cost model under which nothing takes time. Over replicas of several kinds, the mean over all GPUs.
    """
    if built.mixed:
        each = [replace(built, engine=kind.engine, cost=kind.cost, kinds=(kind,)) for kind in built.kinds]
        return sum(ceiling(one, workload) * one.gpus for one in each) / built.gpus
    settings = built.engine
    separate = settings.batching == "separate"
    prompt, output = float(workload.prompt_tokens.mean()), float(workload.output_tokens.mean())
    computed = prompt - (0.0 if workload.cached_tokens is None else float(workload.cached_tokens.mean()))
    context = prompt + output / 2
    budget = settings.max_num_batched_tokens
    room = settings.require_blocks() * settings.block_size / context
    n = max(1.0, min(settings.max_num_seqs, room, budget if separate else budget / (1 + computed / output)))
    lora = _Lora.of(built, workload, n)
    wanted = n * computed / output
    chunk = min(budget, n * computed) if separate else wanted
    decode = BatchShape(decode_seqs=round(n), kv_tokens=round(n * context))
    prefill = BatchShape(
        prefill_tokens=round(chunk),
        prefill_attention=chunk * (prompt - computed / 2),
        prefill_seqs=min(round(chunk), max(1, round(chunk / computed))),
    )
    cost = built.cost
    if separate:
        prefills = wanted / chunk * cost.step_seconds(lora.put_on(prefill))
        seconds = cost.step_seconds(lora.put_on(decode)) + prefills
    else:
        seconds = cost.step_seconds(lora.put_on(_joined(decode, prefill)))
    return n / seconds / settings.tensor_parallel_size if seconds > 0 else inf


class _Lora(NamedTuple):
    """The adapters of a batch: how many distinct ones, their mean rank, and their share of all tokens, from 0 to 1."""

    adapters: int
    rank: float
    share: float

    @classmethod
    def of(cls, built: Built, workload: Workload, sequences: float) -> _Lora:
        """For a batch of ``sequences`` of a workload's requests."""
        asked = workload.adapter[workload.adapter >= 0]
        names = {workload.adapters[place] for place in set(asked.tolist())}
        ranks = [adapter.rank for adapter in built.adapters if adapter.name in names]
        if not ranks:
            return cls(0, 0.0, 0.0)
        share = len(asked) / len(workload)
        distinct = min(built.engine.max_loras, len(ranks), max(1, round(sequences * share)))
        return cls(distinct, sum(ranks) / len(ranks), share)

    def put_on(self, shape: BatchShape) -> BatchShape:
        """The shape with these adapters in it."""
        tokens = round(shape.tokens * self.share)
        return shape._replace(
            distinct_adapters=self.adapters,
            sum_ranks=round(self.adapters * self.rank),
            max_rank=round(self.rank),
            lora_tokens=tokens,
            lora_token_ranks=round(tokens * self.rank),
        )


def _joined(decode: BatchShape, prefill: BatchShape) -> BatchShape:
    """One step of both."""
    return decode._replace(
        prefill_tokens=prefill.prefill_tokens,
        prefill_attention=prefill.prefill_attention,
        prefill_seqs=prefill.prefill_seqs,
    )
