"""per_replica: what each replica of a fleet served, and how it was used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loratory.reports.capacity_use import Steps
from loratory.reports.fleet_life import seconds_there
from loratory.reports.run_columns import RunColumns
from loratory.reports.stats import grouped_percentiles, grouped_sum
from loratory.serving.workload import Floats

_MEANS = ("requests", "completed", "output_tokens", "loads")
"""Of several seeds, these are means over all of them."""


def per_replica(run: RunColumns, steps: Steps) -> list[dict[str, Any]]:
    """One row for each replica, by index: requests that ended there, and averages over the measured time.

    ``busy_share``: the time of its steps over the time that the replica was there (`seconds_there`); ``running``,
    ``waiting``, ``resident``: requests and adapters, averages over the time of its steps.
    """
    count, info = run.info.replicas, run.info
    place = run.places
    there, ones = place >= 0, np.ones(run.count)
    requests, completed = (grouped_sum(place[some], ones[some], count) for some in (there, there & run.completed))
    output = grouped_sum(place[there], run.output[there], count)
    ttft, tpot = (_marks(run, values, place, count) for values in (run.ttft, run.tpot))
    hit = run.number("hit")
    known = ~np.isnan(hit)
    hits, tries = grouped_sum(place[known], hit[known], count), grouped_sum(place[known], ones[known], count)
    where = steps["replica"].astype(np.int64)
    busy = grouped_sum(where, steps.seconds, count)
    means = {
        key: grouped_sum(where, steps[key] * steps.seconds, count) / np.where(busy > 0, busy, 1.0)
        for key in ("running", "waiting", "resident")
    }
    loads = run.loads_by_replica()
    present = seconds_there(run)
    return [
        {
            "replica": index,
            "kind": info.each[index].kind if info.each else None,
            "requests": int(requests[index]),
            "completed": int(completed[index]),
            "output_tokens": int(output[index]),
            "ttft_p50_s": float(ttft[0, index]),
            "ttft_p99_s": float(ttft[1, index]),
            "tpot_p99_s": float(tpot[1, index]),
            "hit_rate": float(hits[index] / tries[index]) if tries[index] else None,
            "loads": int(loads[index]),
            "busy_share": min(1.0, float(busy[index] / present[index])) if present[index] > 0 else 0.0,
            **{key: float(values[index]) for key, values in means.items()},
        }
        for index in range(count)
    ]


def _marks(run: RunColumns, values: Floats, place: Any, count: int) -> Floats:
    keep = run.counted & ~np.isnan(values)
    return grouped_percentiles(place[keep], values[keep], count, (50, 99))


def replicas_over_seeds(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each replica of a policy's runs, one run per seed: means over the seeds in which it has a value."""
    rows = []
    for same in zip(*(run["per_replica"] for run in runs), strict=True):
        row: dict[str, Any] = {"replica": same[0]["replica"], "kind": same[0]["kind"]}
        for key in same[0]:
            if key not in row:
                values = [each[key] for each in same if each[key] is not None]
                row[key] = sum(values) / (len(same) if key in _MEANS else len(values)) if values else None
        rows.append(row)
    return rows
