"""Fleet life: how many replicas there were over time, and what they cost, from what became of each."""

from __future__ import annotations

from typing import Any

import numpy as np

from loratory.reports.roll_outs import roll_outs_object
from loratory.reports.run_columns import Flags, RunColumns
from loratory.serving.workload import Floats

STATES = ("open", "starting", "draining", "failed")
PAID = ("open", "starting", "draining")
"""States of a replica that has its GPUs."""


def over_time(run: RunColumns) -> list[dict[str, float]]:
    """How many replicas were in each of `STATES` from second ``at_s`` on, in order of time."""
    fleet = run.info.fleet
    assert fleet is not None
    now: dict[int, str] = {}
    rows: list[dict[str, float]] = []
    for at_s, replica, state in fleet.changes:
        now[replica] = state
        counts = list(now.values())
        row: dict[str, float] = {"at_s": at_s - run.info.start_s, **{state: counts.count(state) for state in STATES}}
        if rows and rows[-1]["at_s"] == row["at_s"]:
            rows.pop()
        if not rows or any(rows[-1][state] != row[state] for state in STATES):
            rows.append(row)
    return rows


def replica_seconds(run: RunColumns) -> float:
    """Seconds that replicas were there after the warm-up: that they started, were open, or drained."""
    if run.info.fleet is None:
        return (run.duration - run.warmup) * run.info.replicas
    return float(_paid_seconds(run, run.warmup).sum())


def seconds_there(run: RunColumns) -> Floats:
    """The same of each replica."""
    if run.info.fleet is None:
        return np.full(run.info.replicas, run.duration - run.warmup)
    return _paid_seconds(run, run.warmup)


def open_replicas(run: RunColumns) -> tuple[Floats, Flags]:
    """Seconds at which the measured part of a run, or a part of it with the same open replicas, begins or ends; and
    for each replica (a row) in which of these parts it was open."""
    fleet, start_s = run.info.fleet, run.info.start_s
    changes = [] if fleet is None else fleet.changes
    inside = {at for each in changes if run.warmup < (at := each.at_s - start_s) < run.duration}
    edges = np.array(sorted({run.warmup, *inside, max(run.warmup, run.duration)}))
    found = np.full((run.info.replicas, len(edges) - 1), fleet is None)
    for each in changes:
        found[each.replica, np.searchsorted(edges[:-1], each.at_s - start_s) :] = each.state == "open"
    return edges, found


def closed(run: RunColumns) -> list[tuple[float, float]]:
    """From when until when no replica took requests, in order."""
    if run.info.fleet is None:
        return []
    rows = over_time(run)
    edges = [*(row["at_s"] for row in rows), run.duration]
    return [(edges[place], edges[place + 1]) for place, row in enumerate(rows) if not row["open"]]


def slots_over_time(run: RunColumns) -> tuple[Floats, Floats] | None:
    """The adapter slots of the replicas that are open or drain: (from second, number); None where not known."""
    info = run.info
    if info.slots is None:
        return None
    if info.fleet is None:
        return np.zeros(1), np.array([float(info.slots)])
    each = [one.max_loras for one in info.each] or [info.max_loras or 0] * info.replicas
    now: dict[int, int] = {}
    found: dict[float, float] = {}
    for at_s, replica, state in info.fleet.changes:
        now[replica] = each[replica] if state in ("open", "draining") else 0
        found[at_s - info.start_s] = float(sum(now.values()))
    return np.array(list(found)), np.array(list(found.values()))


def gpu_seconds(run: RunColumns) -> float:
    """The same of GPUs."""
    return float((_paid_seconds(run, run.warmup) * _gpus(run)).sum())


def _gpus(run: RunColumns) -> Floats:
    """The GPUs of each replica."""
    info = run.info
    return np.array(info.replica_gpus or [info.gpus / info.replicas] * info.replicas, dtype=np.float64)


def _paid_seconds(run: RunColumns, since: float) -> Floats:
    """Of each replica, the seconds from ``since`` on in which it had its GPUs."""
    fleet = run.info.fleet
    assert fleet is not None
    found = np.zeros(run.info.replicas)
    began: dict[int, float] = {}
    for at_s, replica, state in fleet.changes:
        if state in PAID:
            began.setdefault(replica, at_s)
        elif replica in began:
            found[replica] += _within(run, began.pop(replica), at_s, since)
    for replica, at_s in began.items():
        found[replica] += _within(run, at_s, run.duration + run.info.start_s, since)
    return found


def _within(run: RunColumns, begin: float, end: float, since: float) -> float:
    return max(0.0, min(end - run.info.start_s, run.duration) - max(begin - run.info.start_s, since))


def fleet_object(run: RunColumns) -> dict[str, Any]:
    """``fleet`` of a ``run`` object: of the whole run, the warm-up included."""
    fleet, info = run.info.fleet, run.info
    assert fleet is not None
    rows = over_time(run)
    seconds, opened = _seconds(run, rows, 0.0), _counts(rows, ("open",))
    paid, prices = _paid_seconds(run, 0.0), info.replica_prices
    during = opened[seconds > 0]
    return {
        "replica_s": float(paid.sum()),
        "gpu_hours": float((paid * _gpus(run)).sum()) / 3600,
        "cost": None if prices is None else float((paid * np.array(prices)).sum()) / 3600,
        "currency": None if prices is None else info.currency,
        "prices": dict(info.prices) or None,
        "open": {
            "mean": float((seconds * opened).sum()) / run.duration if run.duration > 0 else None,
            "min": int(during.min(initial=info.replicas)),
            "max": int(during.max(initial=0)),
        },
        "failures": sum(change.state == "failed" for change in fleet.changes),
        "resent": fleet.resent,
        "homes_mean": fleet.homes_mean,
        "homes_moved": fleet.homes_moved,
        "over_time": rows,
        **roll_outs_object(run),
    }


def _seconds(run: RunColumns, rows: list[dict[str, float]], since: float) -> Floats:
    """How long each row holds, from second ``since`` on."""
    edges = np.clip([*(row["at_s"] for row in rows), run.duration], since, max(since, run.duration))
    return np.diff(edges)


def _counts(rows: list[dict[str, float]], states: tuple[str, ...]) -> Floats:
    return np.array([sum(row[state] for state in states) for row in rows], dtype=np.float64)
