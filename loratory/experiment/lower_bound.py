"""Lower bound: times that no policy can beat, computed from the cost model and what a run served."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush, heapreplace
from typing import Any

import numpy as np

from loratory.reports.run_columns import RunColumns
from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter
from loratory.serving.plan import BatchShape
from loratory.serving.workload import Floats, Ints
from loratory.sim.cost.base import CostModel

_FINE, _COARSE = 1.02, 1.08
"""Ratios of successive sizes at which `_cells` asks the cost model."""

_TRIALS = 41
"""Weights that `token_seconds` tries."""


def lower_bound(
    run: RunColumns, cost: CostModel, engine: EngineConfig, adapters: Iterable[Adapter], open_loop: bool
) -> dict[str, Any]:
    """What no policy can go below on the requests that this run has measured: keys as in a run of summary.json.

    ``ttft_s`` (mean, p99), ``e2e_s`` (mean): of the requests that got a token, and of those that completed.
    ``adapters.loads``: the adapters that were used, each of which was loaded once at least; not there after a warm-up.

    *Alone.* A request's TTFT is at least that of its prompt alone on an idle engine whose GPU holds its adapter, and
    every later token takes at least a decode step of batch 1 (`prefill_alone_s`, `decode_alone_s`): `step_seconds`
    never falls in any field of a shape, and a shape with other requests in it is nowhere smaller. So its order
    statistics, too, are at least those of the times alone.

    *Together.* In an open loop, a replica is also seen as one server. `token_seconds` gives a and b such that every
    step takes at least a * (prefill tokens) + b * (decode tokens). Let a request's work be w = a * (prompt tokens it
    computes) + b * (output tokens - 1), and spread the work of each step evenly over the step. Then the work done a
    second is at most 1, n replicas do at most n, and a request has ended only when its whole work is done: this is a
    schedule, with sharing, of the requests' work on one server of speed n. Each such schedule can be changed to one
    without sharing and with no later ends (earliest end first: in every interval the work that comes and ends there
    fits). Of those, shortest remaining processing time has the least mean time from arrival to end (Schrage, A proof
    of the optimality of the shortest remaining processing time discipline, Operations Research 16, 1968). Requests
    that are left out, and work that is done twice after a preemption, only take time from the others. For TTFT the
    work is that of the prompt alone.

    The mean of e2e_s is bounded by the work together, or by that of ttft_s plus the decode steps alone, and each mean
    by the larger of its bounds. Needs step times without noise.
    """
    columns = run.records.requests.read(["prompt_tokens", "cached_tokens"])
    prompt, cached = (columns.column(name).to_numpy().astype(np.int64) for name in ("prompt_tokens", "cached_tokens"))
    code, names = run.named("adapter")
    ranks = {adapter.name: adapter.rank for adapter in adapters}
    rank = np.array([*(ranks[name] for name in names), 0], dtype=np.int64)[code]
    begun, done = run.counted & ~np.isnan(run.first), run.counted & run.completed
    if not begun.any():
        return {}
    first_s = prefill_alone_s(cost, prompt, cached, rank, engine.max_num_batched_tokens)
    steps = np.maximum(run.output.astype(np.int64) - 1, 0)
    later_s = decode_alone_s(cost, prompt, steps, rank)
    a, b = token_seconds(
        cost,
        engine.max_num_batched_tokens,
        engine.max_num_seqs,
        float((prompt - cached)[done].sum()),
        float(steps[done].sum()),
    )
    replicas = run.info.replicas

    def flow_s(chosen: Any, decodes: float) -> float:
        work = a * (prompt - cached)[chosen] + decodes * steps[chosen]
        return mean_flow_s(run.arrival[chosen], work / replicas) if open_loop and chosen.any() else 0.0

    found: dict[str, Any] = {
        "ttft_s": {
            "mean": max(float(first_s[begun].mean()), flow_s(begun, 0.0)),
            "p99": float(np.percentile(first_s[begun], 99)),
        }
    }
    if done.any():
        apart = max(float(first_s[done].mean()), flow_s(done, 0.0)) + float(later_s[done].mean())
        found["e2e_s"] = {"mean": max(apart, flow_s(done, b))}
    if not run.warmup:
        used = code[~np.isnan(run.number("admitted"))]
        found["adapters"] = {"loads": len(np.unique(used[used >= 0]))}
    return found


def prefill_alone_s(cost: CostModel, prompt: Ints, cached: Ints, rank: Ints, budget: int) -> Floats:
    """Least seconds in which steps of at most ``budget`` tokens compute each prompt, less its cached tokens.

    In one step, if it fits, or in several, of which each takes at least as long per token as the fastest of up to that
    size: so the bound holds however the prompt is split.
    """
    new = prompt - cached
    alone = np.empty(len(new))
    for each in np.unique(rank).tolist():
        mine = np.flatnonzero(rank == each)
        low, high = _cells(int(min(new[mine].max(), budget)), _FINE)
        before = int(cached[mine].min())
        times = [cost.step_seconds(_prefill(size, before, each)) for size in low.tolist()]
        rates = np.minimum.accumulate(np.array(times) / high)
        place = np.minimum(np.searchsorted(high, new[mine]), len(high) - 1)
        alone[mine] = rates[place] * new[mine]
    known: dict[tuple[int, int, int], float] = {}
    for request, key in enumerate(zip(new.tolist(), cached.tolist(), rank.tolist(), strict=True)):
        if key[0] <= budget:
            if key not in known:
                known[key] = cost.step_seconds(_prefill(*key))
            alone[request] = min(float(alone[request]), known[key])
    return alone


def _prefill(tokens: int, cached: int, rank: int) -> BatchShape:
    """A step with nothing but a chunk of one prompt that follows ``cached`` tokens."""
    return BatchShape(tokens, tokens * (cached + (tokens + 1) * 0.5), 1, 0, 0, *_lora(tokens, rank))


def _lora(tokens: int, rank: int) -> tuple[int, int, int, int, int]:
    return (1, rank, rank, tokens, tokens * rank) if rank else (0, 0, 0, 0, 0)


def decode_alone_s(cost: CostModel, prompt: Ints, steps: Ints, rank: Ints) -> Floats:
    """Seconds of each request's decode steps in a batch of its own; the first reads its prompt from the KV cache."""
    total = np.zeros(len(prompt))
    for each in np.unique(rank).tolist():
        mine = rank == each
        shape = BatchShape(0, 0.0, 0, 1, 1, *_lora(1, each))
        line = cost.decode_line(shape)
        first, count = prompt[mine].astype(np.float64), steps[mine].astype(np.float64)
        if line is None:
            least = {int(n): cost.step_seconds(shape._replace(kv_tokens=int(n))) for n in np.unique(prompt[mine])}
            total[mine] = count * np.array([least[n] for n in prompt[mine].tolist()])
            continue
        level, slope, floor = line.intercept_s, line.slope_s_per_token, line.floor_s
        flat = np.zeros_like(count)  # steps that take `floor_s`
        if slope > 0:
            flat = np.clip(np.ceil((floor - level) / slope - first), 0.0, count)
        elif floor > level:
            flat = count
        rest, start = count - flat, first + flat
        total[mine] = flat * floor + rest * (level + slope * (start + (rest - 1) * 0.5))
    return total


def token_seconds(cost: CostModel, tokens: int, seqs: int, prefill: float, decode: float) -> tuple[float, float]:
    """(a, b): every step takes at least a seconds a prefill token plus b a decode token.

    Steps have at most ``tokens`` tokens, of which at most ``seqs`` decode. Of many such pairs it is the one with the
    most work for so many ``prefill`` and ``decode`` tokens in all. The cost model is asked at the lower end of each
    cell of a grid, and the tokens are those of its upper end, which holds for all in between.
    """
    p_low, p_high = _cells(tokens, _COARSE)
    d_low, d_high = _cells(min(seqs, tokens), _COARSE)
    decodes = np.array([cost.step_seconds(BatchShape(decode_seqs=d, kv_tokens=d)) for d in d_low.tolist()])
    least = np.array(
        [
            [
                cost.step_seconds(BatchShape(p, float(p), 1, d, d)) if p + d <= tokens else np.inf
                for d in (0, *d_low.tolist())
            ]
            for p in p_low.tolist()
        ]
    )
    most = np.array([0, *d_high.tolist()])
    best = (0.0, 0.0)
    for b in np.linspace(0.0, float((decodes / d_high).min()), _TRIALS).tolist():
        a = float(((least - b * most) / p_high[:, None]).min())
        if a >= 0 and a * prefill + b * decode > best[0] * prefill + best[1] * decode:
            best = (a, b)
    return best


def _cells(most: int, ratio: float) -> tuple[Ints, Ints]:
    """The lowest and the highest number of each of the cells that 1 to ``most`` are cut into."""
    ends = [1]
    while ends[-1] < most:
        ends.append(min(most, max(ends[-1] + 1, int(ends[-1] * ratio))))
    high = np.array(ends, dtype=np.int64)
    return np.concatenate(([1], high[:-1] + 1)), high


def mean_flow_s(arrival: Sequence[float] | Floats, work: Sequence[float] | Floats) -> float:
    """Mean seconds from arrival to end on one server that always does the job with the least work left."""
    order = np.argsort(np.asarray(arrival), kind="stable")
    jobs = list(zip(np.asarray(arrival)[order].tolist(), np.asarray(work)[order].tolist(), strict=True))
    left: list[tuple[float, float]] = []  # a heap of (work left, arrival)
    now = total = 0.0
    for at, seconds in [*jobs, (np.inf, 0.0)]:
        while left and now + left[0][0] <= at:
            now += left[0][0]
            total += now - heappop(left)[1]
        if left and now < at:
            heapreplace(left, (left[0][0] - (at - now), left[0][1]))
        now = max(now, at)
        heappush(left, (seconds, at))
    return total / len(jobs)
