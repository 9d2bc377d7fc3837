"""step_shape: what a cost model may know of a step, from the ledger's running sums."""

from __future__ import annotations

from loratory.serving.ledger import Ledger
from loratory.serving.plan import BatchShape, Prefill


def step_shape(ledger: Ledger, prefills: tuple[Prefill, ...], decodes: int) -> BatchShape:
    """The shape of a step: all that runs when it decodes, else only the adapters of its prefill chunks."""
    tokens = lora_tokens = lora_token_ranks = 0
    attention = 0.0
    for prefill in prefills:
        chunk, rank = prefill.tokens, prefill.sequence.adapter.rank
        tokens += chunk
        attention += chunk * (prefill.start + (chunk + 1) * 0.5)
        if rank:
            lora_tokens += chunk
            lora_token_ranks += chunk * rank
    if decodes:
        kv, batch = ledger.kv, ledger.batch
        kv_tokens = kv.offsets + decodes * ledger.clock[0]  # `KVPool.tokens_read`, without the call
        distinct, total, largest = batch.adapters, batch.sum_ranks, batch.max_rank
        lora_tokens += batch.decoding
        lora_token_ranks += batch.decoding_ranks
    else:
        adapters = [prefill.sequence.adapter for prefill in prefills]
        ranks = {adapter.name: adapter.rank for adapter in adapters if adapter.rank}
        kv_tokens, distinct, total, largest = 0, len(ranks), sum(ranks.values()), max(ranks.values(), default=0)
    blocked = len(ledger.waiting.by_ticket)
    if blocked:
        wanted = ledger.waiting.backlogged
        if None in wanted or not wanted.keys().isdisjoint(ledger.slots.on_gpu):
            blocked = 0
    row = (
        tokens,
        attention,
        len(prefills),
        decodes,
        kv_tokens,
        distinct,
        total,
        largest,
        lora_tokens,
        lora_token_ranks,
        blocked,
    )
    return tuple.__new__(BatchShape, row)  # in half the time that the class takes
