"""Metrics: from one run's records to its ``run`` object in summary.json. Every key is defined in docs/reports.md."""

from __future__ import annotations

from typing import Any

import numpy as np

from loratory.reports.capacity_use import Steps, bottleneck, imbalance, loading_share, usage, waiting
from loratory.reports.fitted_ranges import beyond_fit, sentences
from loratory.reports.fleet_life import fleet_object, gpu_seconds, replica_seconds
from loratory.reports.outcomes import outcomes
from loratory.reports.per_replica import per_replica
from loratory.reports.run_columns import WAITS, RunColumns, present
from loratory.reports.slo import judge, unjudged
from loratory.reports.stats import cleaned, describe, describe_weighted, grouped_percentiles, grouped_sum
from loratory.reports.tenant_service import jain, service_of
from loratory.serving.workload import Floats

STATUSES = ("completed", "rejected", "aborted", "failed")


def run_object(run: RunColumns) -> dict[str, Any]:
    """The ``run`` object of one run, not yet rounded.

    Raises `AssertionError` if the records do not conserve requests, which is a bug in Loratory.
    """
    requests = _counts(run)
    gaps = inter_token(run)
    latency = {
        "ttft_s": describe(present(run.ttft[run.counted])),
        "tpot_s": describe(present(run.tpot[run.counted])),
        "itl_s": describe_weighted(*gaps),
        "e2e_s": describe(present(run.e2e[run.counted])),
        "queue_s": describe(present(run.number("queue_s")[run.counted])),
    }
    _, gap = run.gap
    per_tenant = _per_tenant(run)
    share = np.array([row["service"] / row["weight"] for row in per_tenant])
    steps = Steps(run)
    beyond = cleaned(beyond_fit(run))
    slo = judge(run, gaps)
    found = {
        "scenario": run.info.scenario,
        "policy": run.info.policy,
        "backend": run.info.backend,
        "seed": run.info.seed,
        "replicas": run.info.replicas,
        "gpus": run.info.gpus,
        "oracle": run.info.oracle,
        "requests": requests,
        **outcomes(run),
        "refusals": {action: dict(words) for action, words in run.info.refusals.items()},
        "duration_s": run.duration,
        "warmup_s": run.warmup,
        "warmup": {
            "state": run.settles.state,
            "detected_s": run.settles.end_s,
            "auto": run.info.warmup_s == "auto",
        },
        "throughput": _throughput(run),
        **latency,
        "waits_s": _waits(run),
        "adapters": _adapters(run),
        "fairness": {
            "jain": jain(share),
            "max_service_gap": float(gap.max()) if len(gap) else 0.0,
            "bound": run.info.bound,
        },
        "engine": _engine(run, steps),
        "usage": usage(run, steps),
        "waiting": waiting(run, steps),
        "bottleneck": "none",
        "advice": [],
        "slo": slo,
        "warnings": [*run.info.warnings, *sentences(beyond), *unjudged(slo)],
        "beyond_fit": beyond,
        "per_tenant": per_tenant,
        "per_adapter": _per_adapter(run),
        **({"per_replica": per_replica(run, steps)} if run.info.replicas > 1 else {}),
    }
    if run.info.fleet is not None:
        found["fleet"] = fleet_object(run)
    return found | {"bottleneck": bottleneck(found)}


def inter_token(run: RunColumns) -> tuple[Floats, Floats]:
    """(seconds, number of tokens): the gaps between successive output tokens, from the steps.

    In a step every decoding sequence gets a token, so the gap is the step's duration, and for the sequences that were
    decoding before also the time since the last step that decoded (a prefill-only step of ``batching: separate``).
    """
    order = run.by_replica
    decodes = run.step("decode_seqs")[order]
    some: Any = decodes > 0
    prefilled = np.cumsum(np.where(some, 0, run.step("prefill_seqs")[order]))
    some = slice(None) if some.all() else some
    start, end = np.array(run.step("start")[order][some]), run.step("end")[order][some]
    decodes, prefilled, replica = decodes[some], prefilled[some], run.step("replica")[order][some]
    late = np.flatnonzero((start[1:] - end[:-1] > 1e-9) & (replica[1:] == replica[:-1])) + 1
    stall = start[late] - end[late - 1]
    older = np.maximum(decodes[late] - (prefilled[late] - prefilled[late - 1]), 0).astype(np.float64)
    steps = run.step("steps")[order][some]
    seconds = np.subtract(end, start, out=start)
    seconds /= steps
    tokens = np.multiply(decodes, steps, dtype=np.float64)
    tokens[late] -= older
    if run.warmup > 0:
        early = end <= run.warmup
        tokens[early], older[early[late]] = 0.0, 0.0
    if not len(late):
        return seconds, tokens
    return np.concatenate((seconds, seconds[late] + stall)), np.concatenate((tokens, older))


def _counts(run: RunColumns) -> dict[str, int]:
    code, names = run.named("status")
    found = dict(zip(names, np.bincount(code, minlength=len(names)).tolist(), strict=True))
    counts = {status: found.get(status, 0) for status in STATUSES}
    submitted = run.count if run.info.submitted is None else run.info.submitted
    if sum(counts.values()) != submitted or run.count != submitted:
        raise AssertionError(
            f"{run.info.policy}: {submitted} requests were submitted, but the records hold {run.count}: {found}; "
            "this is a bug in Loratory, please report it"
        )
    return {"submitted": submitted, **counts, "measured": int(run.counted.sum())}


def _throughput(run: RunColumns) -> dict[str, float | None]:
    span = run.duration - run.warmup
    late = run.finish >= run.warmup
    output = float(run.output[late].sum())
    prompt = float(run.number("prompt_tokens")[late & ~np.isnan(run.first)].sum())
    per_s = 1.0 / span if span > 0 else 0.0
    ceiling = run.info.ceiling_tokens_per_s
    if run.info.fleet is None:
        per_gpu = output * per_s / run.info.gpus
    else:
        seconds = gpu_seconds(run)
        per_gpu = output / seconds if seconds > 0 else 0.0
    ceiling = ceiling if ceiling is not None and np.isfinite(ceiling) else None
    return {
        "requests_per_s": float((run.completed & late).sum()) * per_s,
        "output_tokens_per_s": output * per_s,
        "total_tokens_per_s": (output + prompt) * per_s,
        "output_tokens_per_s_per_gpu": per_gpu,
        "ceiling_tokens_per_s_per_gpu": ceiling,
        "ceiling_share": per_gpu / ceiling if ceiling else None,
    }


def _waits(run: RunColumns) -> dict[str, float | None]:
    """Mean seconds of a completed request's e2e time by cause; they sum to the mean of e2e_s."""
    chosen = run.completed & run.counted
    some = bool(chosen.any())
    return {name: float(run.number(name)[chosen].mean()) if some else None for name in WAITS}


def _adapters(run: RunColumns) -> dict[str, Any]:
    adapter = run.named("adapter")[0]
    hit = present(run.number("hit")[run.counted])
    lora = run.counted & (adapter >= 0) & ~np.isnan(run.number("admitted"))
    late = run.step("end") > run.warmup
    busy = float((run.step("end") - run.step("start"))[late].sum())
    stall = float(run.step("load_s")[late].sum())
    tiers = run.loads_by_tier()
    return {
        "seen": len(np.unique(adapter[adapter >= 0])),
        "loads": len(run.event_times("load")),
        "loads_from_host": tiers["host"],
        "prefetches": len(run.event_times("prefetch")),
        "evictions": len(run.event_times("evicted")),
        "hit_rate": float(hit.mean()) if len(hit) else None,
        "load_wait_s": float(run.number("load_wait_s")[lora].mean()) if lora.any() else None,
        "stall_s": stall,
        "stall_share": stall / busy if busy > 0 else 0.0,
        "loading_share": loading_share(run),
    }


def _engine(run: RunColumns, steps: Steps) -> dict[str, Any]:
    late = run.step("end") > run.warmup
    times = run.step("steps")[late].astype(np.float64)
    batch = (run.step("prefill_seqs") + run.step("decode_seqs"))[late]
    total = float(times.sum())
    span = replica_seconds(run)
    busy = float((run.step("end") - np.maximum(run.step("start"), run.warmup))[late].sum())
    return {
        "steps": int(total),
        "preemptions": len(run.event_times("preempted")),
        "mean_batch": float((batch * times).sum()) / total if total else None,
        "busy_share": min(1.0, busy / span) if span > 0 else 0.0,
        "imbalance": imbalance(run, steps),
        "max_kv_blocks": int(run.step("kv_blocks").max(initial=0)),
        "max_waiting": int(run.step("waiting").max(initial=0)),
    }


def _per_tenant(run: RunColumns) -> list[dict[str, Any]]:
    """One row per tenant, the one with the most service first."""
    code, names = run.named("tenant")
    n = len(names)
    ones = np.ones(run.count)
    service = grouped_sum(code, service_of(run.demand), n)
    ttft, queue = _marks(run, run.ttft, code, n), _marks(run, run.number("queue_s"), code, n)
    requests, completed = grouped_sum(code, ones, n), grouped_sum(code[run.completed], ones[run.completed], n)
    output = grouped_sum(code, run.output, n)
    return [
        {
            "tenant": names[t],
            "requests": int(requests[t]),
            "completed": int(completed[t]),
            "weight": float(run.weights[t]),
            "service": float(service[t]),
            "output_tokens": int(output[t]),
            "ttft_p50_s": float(ttft[0, t]),
            "ttft_p99_s": float(ttft[1, t]),
            "queue_p99_s": float(queue[1, t]),
        }
        for t in sorted((t for t in range(n) if requests[t]), key=lambda t: (-service[t], names[t]))
    ]


def _per_adapter(run: RunColumns) -> list[dict[str, Any]]:
    """One row per requested adapter (the base model's ``adapter`` is null), the most popular first."""
    code, names = run.named("adapter")[0] + 1, ["", *run.named("adapter")[1]]
    n = len(names)
    ones = np.ones(run.count)
    hit = run.number("hit")
    known = ~np.isnan(hit)
    ttft, queue = _marks(run, run.ttft, code, n), _marks(run, run.number("queue_s"), code, n)
    requests, completed = grouped_sum(code, ones, n), grouped_sum(code[run.completed], ones[run.completed], n)
    hits, tries = grouped_sum(code[known], hit[known], n), grouped_sum(code[known], ones[known], n)
    output, load_wait = grouped_sum(code, run.output, n), grouped_sum(code, run.number("load_wait_s"), n)
    loads = run.loads_by_adapter()
    return [
        {
            "adapter": names[a] if a else None,
            **(run.info.identities.get(names[a], {}) if a else {}),
            "requests": int(requests[a]),
            "completed": int(completed[a]),
            "output_tokens": int(output[a]),
            "ttft_p50_s": float(ttft[0, a]),
            "ttft_p99_s": float(ttft[1, a]),
            "queue_p99_s": float(queue[1, a]),
            "hit_rate": float(hits[a] / tries[a]) if tries[a] else None,
            "loads": loads[names[a]] if a else 0,
            "load_wait_s": float(load_wait[a] / requests[a]),
        }
        for a in sorted((a for a in range(n) if requests[a]), key=lambda a: (-requests[a], names[a]))
    ]


def _marks(run: RunColumns, values: Floats, code: Any, groups: int) -> Floats:
    keep = run.counted & ~np.isnan(values)
    return grouped_percentiles(code[keep], values[keep], groups, (50, 99))
