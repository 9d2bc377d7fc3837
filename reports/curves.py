"""Curves: what the figures of a report draw of one run, downsampled so that the run's records can be released."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loratory.reports.fleet_life import closed, slots_over_time
from loratory.reports.run_columns import WAITS, RunColumns, present
from loratory.reports.stats import areas, grouped_percentiles
from loratory.reports.tenant_service import service_curve, service_of
from loratory.serving.workload import Floats, Ints

LEVELS = 400
TIME_POINTS = 240
CACHE_BINS = 60
RANK_BINS = 24
TENANTS = 6


@dataclass(frozen=True, slots=True)
class Curves:
    """Arrays for figures; times in seconds from the run's start.

    ``quantiles``: ttft, tpot and e2e at `levels` (shares). ``waits_s``: mean seconds by cause. ``ranks`` (adapter
    popularity, 1 is the most requested) with ``rank_ttft_s``: rows p50 and p99. ``series``: waiting, running, resident,
    kv_blocks as averages over ``times``' cells, all replicas together. ``slots``: the adapter slots of the replicas
    that are open or drain, as (seconds from which on, number); None where they are not known. ``cache``: loads,
    evictions, hits, misses in the cells that begin at ``cache_times``. ``service``: weighted tokens of the largest
    tenants over ``service_times``; ``gap`` likewise.
    """

    levels: Floats
    quantiles: dict[str, Floats]
    waits_s: dict[str, float]
    ranks: Floats
    rank_ttft_s: Floats
    times: Floats
    series: dict[str, Floats]
    slots: tuple[Floats, Floats] | None
    cache_times: Floats
    cache: dict[str, Floats]
    service_times: Floats
    service: dict[str, Floats]
    gap: Floats


def curves_of(run: RunColumns) -> Curves:
    """The curves of one run."""
    levels = 1 - np.concatenate((np.linspace(1, 0.05, LEVELS // 2), np.geomspace(0.05, 1e-3, LEVELS // 2)[1:], [0.0]))
    chosen = run.completed & run.counted
    quantiles = {}
    for name, values in (("ttft", run.ttft), ("tpot", run.tpot), ("e2e", run.e2e)):
        measured = present(values[run.counted])
        quantiles[name] = np.quantile(measured, levels) if len(measured) else np.zeros(0)
    ranks, rank_ttft = _by_rank(run)
    edges = np.linspace(0.0, max(run.duration, 1e-9), TIME_POINTS + 1)
    cache_edges = np.linspace(0.0, max(run.duration, 1e-9), CACHE_BINS + 1)
    service_times = np.linspace(0.0, max(run.duration, 1e-9), TIME_POINTS)
    return Curves(
        levels=levels,
        quantiles=quantiles,
        waits_s={name: float(run.number(name)[chosen].mean()) if chosen.any() else 0.0 for name in WAITS},
        ranks=ranks,
        rank_ttft_s=rank_ttft,
        times=(edges[:-1] + edges[1:]) / 2,
        series={name: _time_average(run, name, edges) for name in ("waiting", "running", "resident", "kv_blocks")},
        slots=slots_over_time(run),
        cache_times=cache_edges[:-1],
        cache=_cache(run, cache_edges),
        service_times=service_times,
        service=_service(run, service_times),
        gap=_gap(run, service_times),
    )


def _by_rank(run: RunColumns) -> tuple[Floats, Floats]:
    """TTFT p50 and p99 against adapter popularity: adapters grouped by rank, groups growing geometrically."""
    code, names = run.named("adapter")
    keep = (code >= 0) & run.counted & ~np.isnan(run.ttft)
    if not keep.any():
        return np.zeros(0), np.zeros((2, 0))
    requests = np.bincount(code[code >= 0], minlength=len(names))
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(-requests, kind="stable")] = np.arange(len(names))
    asked = int((requests > 0).sum())
    edges = np.unique(np.round(np.geomspace(1, asked + 1, min(RANK_BINS, asked) + 1)).astype(np.int64))
    group = np.searchsorted(edges, rank[code[keep]] + 1, side="right") - 1
    marks = grouped_percentiles(group, run.ttft[keep], len(edges) - 1, (50, 99))
    return np.sqrt(edges[:-1] * np.maximum(edges[1:] - 1, edges[:-1])).astype(np.float64), marks


def _time_average(run: RunColumns, column: str, edges: Floats) -> Floats:
    """Average over each cell of a count that holds during each step, over all replicas.

    Between steps an engine is idle: nothing waits or runs then, but adapters stay resident until its next step, or
    until the replica fails or goes, which has no adapters from then on. While no replica is open, the requests that
    wait at the gateway wait as well.
    """
    start, end, value = run.step("start"), run.step("end"), run.step(column).astype(np.float64)
    if column == "resident" and len(start):
        order = run.by_replica
        start, value, replica = start[order], value[order], run.step("replica")[order].astype(np.int64)
        end = _until_gone(run, replica, start, end[order], edges[-1])
    held = areas(start, end, value, edges)
    if column == "waiting":
        held = held + areas(*_at_gateway(run), edges)
    return np.maximum(held / np.diff(edges), 0.0)


def _until_gone(run: RunColumns, replica: Ints, start: Floats, end: Floats, last: float) -> Floats:
    """For each step, in order by replica and time, until when its replica has its adapters: at most until ``last``."""
    until = np.append(np.where(replica[1:] == replica[:-1], start[1:], last), last)
    for each in np.unique(replica):
        gone = np.sort(run.gone(int(each)))
        if len(gone):
            mine = replica == each
            place = np.searchsorted(gone, end[mine])  # a step that its replica had ended before it failed
            until[mine] = np.minimum(until[mine], np.append(gone, last)[place])
    return until


def _at_gateway(run: RunColumns) -> tuple[Floats, Floats, Floats]:
    """From when until when each request waits while no replica is open, and 1 for each."""
    arrival, admitted = run.arrival, run.number("admitted")
    left = np.where(np.isnan(admitted), run.finish, admitted)
    starts, ends = [np.zeros(0)], [np.zeros(0)]
    for begin, end in closed(run):
        start, until = np.maximum(arrival, begin), np.minimum(left, end)
        here = (until > start) & ~(admitted < end)  # others were admitted by a replica that drains
        starts.append(start[here])
        ends.append(until[here])
    start = np.concatenate(starts)
    return start, np.concatenate(ends), np.ones(len(start))


def _cache(run: RunColumns, edges: Floats) -> dict[str, Floats]:
    hit, admitted = run.number("hit"), run.number("admitted")
    known = ~np.isnan(hit) & ~np.isnan(admitted)

    def per_cell(times: Floats) -> Floats:
        return np.histogram(times, edges)[0].astype(np.float64)

    return {
        "loads": per_cell(run.event_times("load")),
        "evictions": per_cell(run.event_times("evicted")),
        "hits": per_cell(admitted[known & (hit > 0)]),
        "misses": per_cell(admitted[known & (hit == 0)]),
    }


def _service(run: RunColumns, times: Floats) -> dict[str, Floats]:
    """Cumulative service of the tenants that received most."""
    names = run.named("tenant")[1]
    totals = np.bincount(run.demand.tenant, service_of(run.demand), len(names))
    largest = [int(t) for t in np.argsort(-totals, kind="stable")[:TENANTS] if totals[t] > 0]
    return {names[t]: service_curve(run.demand.of(t), times) for t in largest}


def _gap(run: RunColumns, times: Floats) -> Floats:
    """The largest gap in the cell that ends at each time."""
    at, gap = run.gap
    result = np.zeros(len(times))
    np.maximum.at(result, np.minimum(np.searchsorted(times, at), len(times) - 1), gap)
    return result
