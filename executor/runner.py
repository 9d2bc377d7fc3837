"""ModelRunner: computes one step plan with the model, and samples its tokens."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from loratory.executor.batch import Batch, Chunk, LoRA
from loratory.executor.block_tables import BlockTables
from loratory.executor.generation import Generation
from loratory.executor.graphs import DecodeGraphs
from loratory.executor.kv_cache import KVCache
from loratory.executor.model import Model
from loratory.executor.sampling import TokenLogprobs, raw_logprobs, sample, token_logprobs
from loratory.serving.plan import StepPlan


@dataclass(frozen=True, slots=True)
class StepTokens:
    """A step's result: the next token of each request that got one, and the requests whose logits were not finite.

    ``logprobs``: how likely the tokens were, of the requests that asked for it.
    """

    tokens: Mapping[str, int]
    broken: tuple[str, ...] = ()
    logprobs: Mapping[str, TokenLogprobs] = field(default_factory=dict)


class ModelRunner:
    """A model, its KV cache and its LoRA slots. Of a request it keeps only the KV blocks.

    ``slot_of(adapter)`` is the LoRA slot of an adapter; ``graphs`` run the batches they cover.
    """

    def __init__(
        self,
        model: Model,
        kv: KVCache,
        tables: BlockTables,
        lora: LoRA | None,
        slot_of: Callable[[str], int],
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self._model = model
        self._kv = kv
        self._lora = lora
        self._slot_of = slot_of
        self._graphs = graphs
        self.tables = tables
        self._unproven: set[str] = set()
        """Requests whose keys and values may not be finite: none of their logits were checked since the last write."""

    def run(self, plan: StepPlan, generations: Mapping[str, Generation], skip: Container[str] = ()) -> StepTokens:
        """Compute a plan's prefill chunks and decode tokens in one forward pass, except for those in ``skip``."""
        batch, ids, adapters = self._batch(plan, generations, skip)
        if batch is None:
            return StepTokens({})
        if self._graphs is not None and self._graphs.covers(batch):
            logits = self._graphs.forward(batch, adapters)
        else:
            logits = self._model.forward(batch, self._kv, self._lora if adapters else None)
        if not ids:
            return StepTokens({})
        picked = [generations[request_id] for request_id in ids]
        params = [g.sampling for g in picked]
        raw = raw_logprobs(logits, params)
        sampled = sample(logits, params, [len(g.tokens) for g in picked])
        tokens, broken = sampled.tokens.tolist(), sampled.broken.tolist()
        told = {ids[row]: token_logprobs(all_, tokens[row], params[row].logprobs or 0) for row, all_ in raw.items()}
        if self._unproven:
            self._unproven.difference_update(ids)
        if not any(broken):
            return StepTokens(dict(zip(ids, tokens, strict=True)), (), told)
        good = {name: token for name, token, bad in zip(ids, tokens, broken, strict=True) if not bad}
        bad_ids = tuple(name for name, bad in zip(ids, broken, strict=True) if bad)
        self._unproven.update(bad_ids)
        return StepTokens(good, bad_ids, told)

    def free(self, request_id: str) -> None:
        """Take back a request's KV blocks; nothing if it has none.

        The next sequence gets the blocks as they are, and attention multiplies what lies behind a sequence's end by 0.
        NaN times 0 is NaN, so blocks whose numbers were not found finite are set to zero.
        """
        if request_id in self._unproven:
            self._unproven.discard(request_id)
            self._kv.clear(self.tables.blocks(request_id))
        self.tables.free(request_id)

    def _batch(
        self, plan: StepPlan, generations: Mapping[str, Generation], skip: Container[str]
    ) -> tuple[Batch | None, list[str], bool]:
        """The flattened batch, the ids of the requests that get a token from it, and whether any has an adapter."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        lengths: list[int] = []
        members: list[int] = []
        ids: list[str] = []
        grow, slot_of = self.tables.grow, self._slot
        for sequence in plan.decodes if plan.decode_count else ():
            request_id = sequence.request.request_id
            place = sequence.kv_tokens
            tokens.append(generations[request_id].tokens[-1])
            positions.append(place)
            slots.append(slot_of(sequence.request.adapter))
            lengths.append(place + 1)
            members.append(grow(request_id, place + 1))
            ids.append(request_id)
        decodes = len(tokens)
        sample_rows = list(range(decodes))
        chunks: list[Chunk] = []
        for prefill in plan.prefills:
            start, count = prefill.start, prefill.tokens
            request_id = prefill.sequence.request.request_id
            if request_id in skip:
                continue
            chunks.append(Chunk(len(tokens), count, start))
            tokens += generations[request_id].context(start, count)
            positions += range(start, start + count)
            slots += [slot_of(prefill.sequence.request.adapter)] * count
            lengths.append(start + count)
            members.append(grow(request_id, start + count))
            if prefill.completes:
                ids.append(request_id)
                sample_rows.append(len(tokens) - 1)
            else:
                self._unproven.add(request_id)
        if not tokens:
            return None, [], False
        device = self._kv.device
        batch = Batch(
            torch.tensor(tokens).to(device, non_blocking=True),
            torch.tensor(positions).to(device, non_blocking=True),
            torch.tensor(slots).to(device, non_blocking=True),
            decodes,
            tuple(chunks),
            self.tables.select(np.array(members)).to(device, non_blocking=True),
            tuple(lengths),
            torch.tensor(sample_rows, dtype=torch.int64).to(device, non_blocking=True),
        )
        return batch, ids, max(slots) >= 0

    def _slot(self, adapter: str | None) -> int:
        return -1 if adapter is None else self._slot_of(adapter)
