"""Capacity use: how full the slots, KV blocks, seats and steps of a run were, and what its requests waited for."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from loratory.reports.fleet_life import open_replicas, replica_seconds
from loratory.reports.outcomes import NO_REPLICA
from loratory.reports.run_columns import Flags, RunColumns
from loratory.reports.stats import areas
from loratory.serving.workload import Floats

WaitCause = Literal["seqs", "kv_blocks", "slots", "tokens", "loads", "policy"]

LIMITS: tuple[WaitCause, ...] = ("seqs", "kv_blocks", "slots", "tokens", "loads", "policy")
"""What a waiting request can wait for, in the order in which `waiting` checks."""

NEGLIGIBLE = 0.05
"""Below this share of their time, the time that requests wait is negligible."""

STALLED = 0.25
"""From this share of step time on, loads limit a run."""

SEEN = 0.1
"""A replica that was open for less than this share of the time is not called the busiest."""

CEILING = 0.85
"""From this share of the cost model's ceiling on, the GPU's compute limits a run."""


class Steps:
    """The steps of a run that ended after its warm-up, as columns; ``seconds``: the part of each after it."""

    def __init__(self, run: RunColumns) -> None:
        end = run.step("end")
        self._run = run
        self._late = end > run.warmup
        self.seconds: Floats = (end - np.maximum(run.step("start"), run.warmup))[self._late]

    def __getitem__(self, column: str) -> Floats:
        values: Floats = self._run.step(column)[self._late]
        return values


def usage(run: RunColumns, steps: Steps) -> dict[str, Any]:
    """The ``usage`` object: for each limit of one replica, the amount in use, over step time and all replicas.

    Where that limit differs between kinds of replicas, ``limit`` is None, and ``kinds`` has the same of each kind.
    """
    info, found = run.info, {}
    used = {
        "slots": steps["distinct_adapters"],
        "kv_blocks": steps["kv_blocks"],
        "seqs": steps["running"],
        "tokens": steps["prefill_tokens"] + steps["decode_seqs"],
    }
    of_kind = _of_kinds(run, steps)
    for name, values in used.items():
        limits = {each.kind: getattr(each, _KEYS[name]) for each in info.each}
        same = len(set(limits.values())) < 2
        limit = next(iter(limits.values()), getattr(info, _KEYS[name])) if same else None
        found[name] = _used(limit, values, steps.seconds)
        if name == "slots":
            found[name]["held"] = int((steps["resident"] + steps["loading"]).max(initial=0))
        if not same:
            found[name]["kinds"] = {
                kind: _used(limits[kind], values[here], steps.seconds[here]) for kind, here in of_kind.items()
            }
    return found


def _of_kinds(run: RunColumns, steps: Steps) -> dict[str, Flags]:
    """Which steps are of each kind of replica; empty where all are of one kind."""
    kinds = np.array([each.kind for each in run.info.each])
    where = steps["replica"].astype(np.int64)
    return {kind: kinds[where] == kind for kind in dict.fromkeys(kinds.tolist())}


def waiting(run: RunColumns, steps: Steps) -> dict[str, Any]:
    """The ``waiting`` object: request-seconds of waiting, as a share of all request-seconds, and by limit.

    A step counts for the first limit in `LIMITS` that left no room in it: as many running requests as ``max_num_seqs``;
    fewer free KV blocks than a mean prompt needs, beside those that ``engine.watermark`` keeps free; every slot held by
    an adapter in the batch or being loaded; as many tokens as ``max_num_batched_tokens``; an adapter being loaded. If
    there was room, the policy let them wait. Of a fleet of several kinds, ``kinds``: its share by kind of replica.
    """
    waited = steps["waiting"] * steps.seconds
    total, served = float(waited.sum()), float((steps["running"] * steps.seconds).sum())
    left = waited
    by: dict[str, float] = {}
    for limit in LIMITS:
        full = _full(run, steps, limit)
        by[limit] = float(left[full].sum()) / total if total else 0.0
        left = np.where(full, 0.0, left)
    found: dict[str, Any] = {
        "request_s": total,
        "share": total / (total + served) if total + served else 0.0,
        "by": by,
    }
    if len(kinds := _of_kinds(run, steps)) > 1:
        found["kinds"] = {kind: float(waited[here].sum()) / total if total else 0.0 for kind, here in kinds.items()}
    return found


def loading_share(run: RunColumns) -> float:
    """Share of the measured time in which a load to the GPU was under way, mean over replicas."""
    span = replica_seconds(run)
    busy = 0.0
    for replica in range(run.info.replicas):
        times, change = run.loads_under_way(replica)
        inside = np.clip(np.append(times, run.duration), run.warmup, run.duration)
        busy += float((np.diff(inside) * (np.cumsum(change) > 0)).sum()) if len(times) else 0.0
    return busy / span if span > 0 else 0.0


def imbalance(run: RunColumns, steps: Steps) -> float:
    """Request-seconds, waiting and running, on the busiest replica, over what it would have had if at each moment all
    open replicas had as many; 1 is even.

    Where replicas come and go, only the time in which a replica is open counts, and those that were open for less than
    `SEEN` of the measured time are left out: chance decides what these had.
    """
    held = (steps["waiting"] + steps["running"]).astype(np.float64)
    where = steps["replica"].astype(np.int64)
    if run.info.fleet is None:
        mine = np.bincount(where, held * steps.seconds, run.info.replicas)
        even = np.full(len(mine), mine.mean())
    else:
        edges, opened = open_replicas(run)
        order = np.argsort(where, kind="stable")
        each = np.split(order, np.searchsorted(where[order], np.arange(1, len(opened))))
        start, end = steps["start"], steps["end"]
        had = np.array([areas(start[mine], end[mine], held[mine], edges) for mine in each]) * opened
        even = (opened * (had.sum(axis=0) / np.maximum(opened.sum(axis=0), 1))).sum(axis=1)
        even[opened @ np.diff(edges) < SEEN * (edges[-1] - edges[0])] = 0.0
        mine = had.sum(axis=1)
    some = even > 0
    return float((mine[some] / even[some]).max(initial=0.0)) if some.any() else 1.0


def bottleneck(run: dict[str, Any]) -> str:
    """The limit of a run, from its ``run`` object: one of `LIMITS`, or of the five below.

    ``replicas``: 5 % of the requests or more were never served because no replica was open, or fewer while all others
    got their tokens and hardly waited.
    ``none``: requests wait less than 5 % of their time, loads stall steps for less than 25 % of theirs, and every
    request got its tokens. ``context``, ``rejected``: requests wait as little, and some were rejected, most of them
    because they exceed ``max_model_len``, or for another reason. ``compute``: output tokens/s reach 85 % of the
    cost model's ceiling.
    """
    by, never = run["waiting"]["by"], run["never_served"]
    nowhere = sum(number for why, number in never["why"].items() if NO_REPLICA in why)
    few = nowhere < NEGLIGIBLE * run["requests"]["submitted"]
    if nowhere and (not few or (nowhere == never["count"] and run["waiting"]["share"] < NEGLIGIBLE)):
        return "replicas"
    if run["adapters"]["stall_share"] >= STALLED:
        return "loads"
    if run["waiting"]["share"] < NEGLIGIBLE and run["rejected"]["count"]:
        return "context" if "max_model_len" in next(iter(run["rejected"]["why"]), "") else "rejected"
    if run["waiting"]["share"] < NEGLIGIBLE and not run["never_served"]["count"]:
        return "none"
    ceiling = run["throughput"]["ceiling_share"]
    if ceiling is not None and ceiling >= CEILING:
        return "compute"
    largest = max(by, key=lambda limit: by[limit])
    return largest if by[largest] > 0 else "policy"


def _used(limit: int | None, values: Floats, seconds: Floats) -> dict[str, Any]:
    """``limit``, and the median over step time and the maximum of what was in use."""
    if not len(values):
        return {"limit": limit, "p50": 0, "max": 0}
    share = np.cumsum(np.bincount(values.astype(np.int64), weights=seconds))
    return {
        "limit": limit,
        "p50": int(np.searchsorted(share, share[-1] / 2)),
        "max": int(values.max()),
    }


_KEYS: dict[str, str] = {
    "seqs": "max_num_seqs",
    "kv_blocks": "num_gpu_blocks",
    "slots": "max_loras",
    "tokens": "max_num_batched_tokens",
}
"""The field of `RunInfo` that each limit is."""


def _each(run: RunColumns, steps: Steps, key: str) -> Any:
    """A setting in each step: one number, or where replicas differ one for each step; None where it is not known."""
    if not run.info.each:
        return getattr(run.info, key)
    values = np.array([getattr(each, key) for each in run.info.each])
    return values[steps["replica"].astype(np.int64)]


def _full(run: RunColumns, steps: Steps, limit: WaitCause) -> Flags:
    """In which steps a limit left no room for a waiting request."""
    if limit == "policy":
        return np.ones(len(steps.seconds), bool)
    if limit == "loads":
        return np.asarray(steps["loading"] > 0)
    most = _each(run, steps, _KEYS[limit])
    if most is None:
        return np.zeros(len(steps.seconds), bool)
    if limit == "seqs":
        return np.asarray(steps["running"] >= most)
    if limit == "kv_blocks":
        prompts = run.number("prompt_tokens")
        mean = float(prompts.mean()) if len(prompts) else 0.0
        kept = np.where(steps["running"] > 0, _each(run, steps, "watermark_blocks"), 0)
        wanted = mean / np.asarray(_each(run, steps, "block_size"))
        return np.asarray(most - kept - steps["kv_blocks"] < np.maximum(1.0, wanted))
    if limit == "slots":
        return np.asarray(steps["distinct_adapters"] + steps["loading"] >= most)
    return np.asarray(steps["prefill_tokens"] + steps["decode_seqs"] >= most)
