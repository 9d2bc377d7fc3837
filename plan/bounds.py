"""Bounds: candidates that cannot meet their SLO, found without simulating them.

Each bound is on the safe side: it discards a candidate only where no policy could keep the target, because it grants
the candidate more than any run can have.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Literal

import numpy as np

from loratory.experiment.resolve import Built
from loratory.plan.early_stop import PER_REQUEST
from loratory.plan.measure import targets_of
from loratory.reports.number_text import seconds
from loratory.reports.slo_target import SloGroup, allowed_misses
from loratory.scenarios.schema import Scenario
from loratory.serving.plan import BatchShape
from loratory.serving.workload import Floats, Workload
from loratory.sim.cost import CostModel

HOPS = ("remote", "disk", "host")
"""Tiers from which an adapter moves on, in order."""

By = Literal["memory", "rank", "settings", "budget", "idle latency", "offered load", "adapter reads", "fixed fleet"]


@dataclass(frozen=True, slots=True)
class Bound:
    """Why a candidate cannot meet its SLO: it must miss ``target``. ``replicas_help``: whether more replicas would."""

    by: By
    reason: str
    target: str
    replicas_help: bool


@dataclass(frozen=True, slots=True)
class _Limit:
    """A limit on a per-request metric of all requests, and how many of them may be beyond it."""

    key: str
    metric: str
    most_s: float
    may_be_late: int
    label: str


def hopeless(scenario: Scenario, built: Built, workloads: Sequence[Workload]) -> Bound | None:
    """The bound that discards a candidate for every one of ``workloads`` (one a seed); None if it has a chance.

    Only percentiles and the attainment of TTFT, TPOT and end-to-end time over all requests are bounded. Noise can make
    a step shorter than its cost, so nothing is discarded with it. Neither are fleets whose replicas differ. A fleet
    whose replicas come and go is granted as many as it may have, for the whole run. Roll-outs are not bounded: a new
    version may be smaller, or be there before its first request.
    """
    if (
        built.mixed
        or scenario.cluster.roll_outs
        or built.noise is not None
        or scenario.warmup_s != 0
        or scenario.workload.cutoff_s is not None
    ):
        return None
    first: Bound | None = None
    for workload in workloads:
        found = _hopeless(scenario, built, workload)
        if found is None:
            return None
        first = first or found
    return first


def _hopeless(scenario: Scenario, built: Built, workload: Workload) -> Bound | None:
    limits = _limits(scenario, built, len(workload))
    if not limits:
        return None
    alone = idle_seconds(built, workload)
    for limit in limits:
        late = int((alone[limit.metric] > limit.most_s).sum())
        if late > limit.may_be_late:
            return Bound(
                "idle latency",
                f"{limit.label} cannot be {seconds(limit.most_s)}: on an idle {scenario.gpu}, "
                f"{late / len(workload):.1%} of the requests would take longer",
                limit.key,
                False,
            )
    if workload.concurrency is not None or workload.after is not None:
        return None  # arrivals wait for the ends of others, so that an overload has no queue
    if (found := _overloaded(scenario, built, workload, limits)) is not None:
        return found
    # a replica that starts has a host cache of its own, which may be warmed ahead of requests
    return None if scenario.cluster.changes else _reading(scenario, built, workload, limits)


def _limits(scenario: Scenario, built: Built, count: int) -> list[_Limit]:
    found = []
    for target in targets_of(scenario, built):
        allowed = allowed_misses(target, count)
        if target.group != SloGroup() or allowed is None:
            continue
        for metric, most_s in target.within:
            if metric in PER_REQUEST:
                found.append(_Limit(target.name, metric, most_s, allowed, target.label))
    return found


def idle_seconds(built: Built, workload: Workload) -> dict[str, Floats]:
    """Least TTFT, TPOT and end-to-end time of each request, s: alone on an engine, without LoRA time.

    A prompt takes at least what it takes in one step: chunks read the weights once each. Every further token takes at
    least a decode step of one sequence with an empty KV cache. The first request for an adapter waits for it to come
    from where it is at the start, unless it is pinned; all others are granted theirs in a slot.
    """
    prompts = workload.prompt_tokens - (0 if workload.cached_tokens is None else workload.cached_tokens)
    some, place = np.unique(np.maximum(prompts, 1), return_inverse=True)
    first = np.array([prefill_seconds(built.cost, int(tokens)) for tokens in some])[place]
    first = first + _first_loads(built, workload)
    step = built.cost.step_seconds(BatchShape(decode_seqs=1))
    more = workload.output_tokens - 1
    return {"ttft": first, "tpot": np.where(more > 0, step, 0.0), "e2e": first + more * step}


def _first_loads(built: Built, workload: Workload) -> Floats:
    """Least seconds that each request waits for its adapter: the first one for each that is not pinned has to."""
    waits = np.zeros(len(workload))
    known = {adapter.name: adapter for adapter in built.adapters}
    used, first = np.unique(workload.adapter, return_index=True)
    for index, place in zip(used.tolist(), first.tolist(), strict=True):
        adapter = known.get(workload.adapters[index]) if index >= 0 else None
        if adapter is not None and not adapter.pinned:
            hops = HOPS[HOPS.index(adapter.tier) :]
            waits[place] = sum(built.cost.load_seconds(adapter, tier) for tier in hops)
    return waits


def prefill_seconds(cost: CostModel, tokens: int) -> float:
    """Seconds of a step that computes a prompt of ``tokens`` and nothing else, without LoRA."""
    attention = tokens * (tokens + 1) / 2
    return cost.step_seconds(BatchShape(prefill_tokens=tokens, prefill_attention=attention, prefill_seqs=1))


def _overloaded(scenario: Scenario, built: Built, workload: Workload, limits: Sequence[_Limit]) -> Bound | None:
    """Whether so much more is asked for than the replicas can do that the queue alone makes too many requests late.

    The replicas together have ``t`` times their number seconds until second ``t``. A request costs at least its output
    tokens times the least step time a token, over all batch sizes; and at least its prompt tokens times the least time
    of one in a step of ``max_num_batched_tokens``. Decoding and prefilling can share a step, so the two bounds hold one
    by one, not added. Served first are those that cost least: that is how most requests have an end by second ``t``.
    Those that may have a first token without an end are the running ones, ``max_num_seqs`` a replica, and the preempted
    ones, of which there are no more than KV blocks run out for: they are granted once again.
    """
    engine, replicas = built.engine, scenario.cluster.most_replicas
    token_s = _least_decode_s(built.cost, engine.max_num_seqs)
    prompts = workload.prompt_tokens - (0 if workload.cached_tokens is None else workload.cached_tokens)
    prompt_s = _least_prompt_s(built.cost, engine.max_num_batched_tokens)
    costs = (np.cumsum(np.sort(workload.output_tokens)) * token_s, np.cumsum(np.sort(prompts)) * prompt_s)
    last, count = float(workload.arrival[-1]), len(workload)
    for limit in limits:
        if limit.metric == "tpot":
            continue
        until = (last + limit.most_s) * replicas
        served = min(int(np.searchsorted(cost, until, side="right")) for cost in costs)
        begun = 2 * engine.max_num_seqs * replicas if limit.metric == "ttft" else 0
        late = count - served - begun
        if late > limit.may_be_late:
            asked = max(float(cost[-1]) for cost in costs) / max(last, 1e-9) / replicas
            return Bound(
                "offered load",
                f"the requests ask for at least {asked:.1f} times the work that {replicas} x {scenario.gpu} can do, so "
                f"that {late / count:.0%} of them must miss {limit.label} {seconds(limit.most_s)}",
                limit.key,
                True,
            )
    return None


def _least_decode_s(cost: CostModel, most: int) -> float:
    """Least step time a decoded token, s, over batches of 1 to ``most`` sequences."""
    seconds = [cost.step_seconds(BatchShape(decode_seqs=n)) / n for n in range(1, most + 1)]
    return min(seconds)


def _least_prompt_s(cost: CostModel, most: int) -> float:
    """Least step time a prompt token, s, attention not counted."""
    sizes: list[int] = sorted(
        {*(1 << k for k in range(40) if 1 << k <= most), *range(64, most, max(64, most // 512)), most}
    )
    seconds = [cost.step_seconds(BatchShape(prefill_tokens=n, prefill_seqs=1)) / n for n in sizes]
    return min(seconds)


def _reading(scenario: Scenario, built: Built, workload: Workload, limits: Sequence[_Limit]) -> Bound | None:
    """Whether too many requests must wait for their adapter to be read, because host memory holds too few adapters.

    The host caches of all replicas together are granted as one, run by Belady's MIN, which knows the future and has the
    fewest misses of any cache that is filled on demand. A request that arrives while its adapter is being read waits
    less than a whole read, so it is not counted. Schedulers that hold requests back can have fewer misses than MIN over
    the order of arrival, so a candidate is discarded only where there are half as many again as the target allows.
    """
    hops = [tier for tier in HOPS if tier != "host"]
    adapters = {adapter.name: adapter for adapter in built.adapters if not adapter.pinned}
    slowest = {
        name: sum(built.cost.load_seconds(adapter, tier) for tier in (hops if adapter.tier == "remote" else hops[1:]))
        for name, adapter in adapters.items()
    }
    places = built.engine.host_slots * scenario.cluster.count
    for limit in limits:
        slow = {index for index, name in enumerate(workload.adapters) if slowest.get(name, 0.0) > limit.most_s}
        if limit.metric != "ttft" or len(slow) <= places:
            continue
        read_s = max(slowest.values())
        late = _waits_for_reads(workload, slow, places, read_s)
        if late > 1.5 * limit.may_be_late + 20:
            return Bound(
                "adapter reads",
                f"host memory holds {places} of {len(slow)} adapters, so that at least {late / len(workload):.0%} of "
                f"the requests wait for one to be read, which takes longer than {limit.label} {seconds(limit.most_s)}",
                limit.key,
                True,
            )
    return None


def _waits_for_reads(workload: Workload, slow: Collection[int], places: int, read_s: float) -> int:
    """Misses of Belady's MIN over the requests for ``slow`` adapters, with ``places``, those during a read left out."""
    asked = [(i, int(each)) for i, each in enumerate(workload.adapter.tolist()) if each in slow]
    arrival = workload.arrival.tolist()
    following, last = [inf] * len(asked), dict[int, int]()
    for place in range(len(asked) - 1, -1, -1):
        following[place] = last.get(asked[place][1], inf)
        last[asked[place][1]] = place
    held: dict[int, float] = {}
    furthest: list[tuple[float, int]] = []
    read_at: dict[int, float] = {}
    misses = 0
    for place, (index, adapter) in enumerate(asked):
        if adapter not in held:
            if arrival[index] - read_at.get(adapter, -inf) >= read_s:
                misses += 1
                read_at[adapter] = arrival[index]
            while len(held) >= places:
                use, other = heappop(furthest)
                if held.get(other) == -use:
                    del held[other]
        held[adapter] = following[place]
        heappush(furthest, (-following[place], adapter))
    return misses
