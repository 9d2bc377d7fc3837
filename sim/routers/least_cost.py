"""least_cost: the replica where the request costs least, by its cost model: prefill, decode, rank and load."""

from __future__ import annotations

import numpy as np

from loratory.router import AWAY, HOST, BatchShape, Fleet, InputError, Request, Router


class LeastCost(Router):
    """Sends a request to where it delays requests least, itself included.

    The cost model of each replica says by how much the request would lengthen a step when its prompt is computed, and
    each decode step after that, beside what the replica reported last: so a high rank costs much where ranks are low,
    and little where they are high anyway. Every request in flight there waits for the prefill once and for the longer
    decode step at each of its tokens. Where the adapter is not on the GPU, its load comes on top. A step that goes on
    anyway costs nothing: on an idle replica the request is compared with a second one like it. Replicas whose decode
    step would take longer than ``slo_s`` are chosen only where all would.

    Not modelled: the CPU that computes the adapter's part of a prefill while it loads; ranks and prompts of waiting
    requests (they count as many like this one with no adapter of their own); whether a resident adapter is in the
    running batch (it counts as if it were); an adapter on remote storage costs as much as on disk.

    Parameters:
        tokens: output tokens expected of a request that comes without a prediction
        slo_s: the longest decode step that is good enough, in seconds; 0 for none
    """

    source = (
        "Toppings (Li et al., USENIX ATC 2025; as CaraServe, arXiv 2401.11240): rank-aware scheduling; the scenario's "
        "cost model stands for its fitted lines, and the load is added"
    )

    def __init__(self, tokens: int = 128, slo_s: float = 0.0) -> None:
        if tokens < 1:
            raise InputError(f"least_cost: tokens is {tokens}: give 1 or more")
        if slo_s < 0:
            raise InputError(f"least_cost: slo_s is {slo_s:g}: give 0 or more")
        self._tokens = tokens
        self._slo_s = slo_s

    def route(self, request: Request, fleet: Fleet) -> int:
        """The candidate with the lowest cost; of equal ones the one that was sent a request longest ago."""
        adapter = None if request.adapter is None else fleet.adapter(request.adapter)
        rank = 0 if adapter is None else adapter.rank
        tiers = fleet.tiers(request.adapter or "").tolist()
        in_flight = fleet.in_flight.tolist()
        tokens = request.predicted_tokens or self._tokens
        costs, slow = np.zeros((2, len(fleet)))
        known: dict[tuple[int, BatchShape, int, int], tuple[float, bool]] = {}
        for place in fleet.candidates.tolist():
            model, tier, count = fleet.cost(place), tiers[place], in_flight[place]
            key = (id(model), fleet.shape(place), count, tier)
            found = known.get(key)
            if found is None:
                before = _batch(fleet.shape(place), max(count, 1), request, rank if not count else 0)
                new = rank if tier <= HOST and count else 0
                longer, prefill = _with(before, request, rank, new, decodes=True), _with(before, request, rank, new)
                step_s, decode_s = model.step_seconds(before), model.step_seconds(longer)
                cost = (count + 1) * (model.step_seconds(prefill) - step_s + tokens * (decode_s - step_s))
                if adapter is not None and tier <= HOST:
                    cost += model.load_seconds(adapter, "host")
                    cost += model.load_seconds(adapter, "disk") if tier == AWAY else 0.0
                found = known[key] = cost, bool(self._slo_s) and decode_s > self._slo_s
            costs[place], slow[place] = found
        candidates = fleet.candidates
        within = candidates[slow[candidates] == 0]
        return fleet.lowest(costs, within if len(within) else candidates)


def _batch(shape: BatchShape, count: int, request: Request, rank: int) -> BatchShape:
    """A decode step of ``count`` requests: those of the last step, and more that are like this one.

    ``rank``: that of the adapter of the one request of an idle replica.
    """
    more = max(0, count - shape.decode_seqs)
    return BatchShape(
        decode_seqs=shape.decode_seqs + more,
        kv_tokens=shape.kv_tokens + more * request.prompt_tokens,
        distinct_adapters=shape.distinct_adapters + (1 if rank and not shape.distinct_adapters else 0),
        sum_ranks=max(shape.sum_ranks, rank),
        max_rank=max(shape.max_rank, rank),
        lora_tokens=min(shape.lora_tokens, shape.decode_seqs) + (more if rank else 0),
        lora_token_ranks=min(shape.lora_token_ranks, shape.decode_seqs * shape.max_rank) + more * rank,
    )


def _with(batch: BatchShape, request: Request, rank: int, new: int, decodes: bool = False) -> BatchShape:
    """The step with the request's prompt in it, or with the request as one more that decodes.

    ``new``: the rank of its adapter where that is not in the batch.
    """
    chunk = 1 if decodes else request.prompt_tokens - request.cached_tokens
    lora = chunk if rank else 0
    batch = batch._replace(
        distinct_adapters=batch.distinct_adapters + (1 if new else 0),
        sum_ranks=batch.sum_ranks + new,
        max_rank=max(batch.max_rank, rank),
        lora_tokens=batch.lora_tokens + lora,
        lora_token_ranks=batch.lora_token_ranks + lora * rank,
    )
    if decodes:
        return batch._replace(decode_seqs=batch.decode_seqs + 1, kv_tokens=batch.kv_tokens + request.prompt_tokens)
    pairs = chunk * (request.cached_tokens + (chunk + 1) / 2)
    return batch._replace(prefill_tokens=chunk, prefill_attention=pairs, prefill_seqs=1)
