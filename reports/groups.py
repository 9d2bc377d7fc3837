"""Groups: the tenants or adapters of a policy, means over its seeds: for the tables and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loratory.reports.number_text import seconds
from loratory.reports.run_info import IDENTITY
from loratory.reports.slo import further_targets, read_slo
from loratory.reports.verdict_types import Mood, PolicyRuns, Verdict

STARVED = 5.0
"""A tenant or adapter starves if its p99 TTFT is this multiple of the median one's."""

LONG_S = 10.0
"""Without a limit on TTFT, a p99 TTFT above this is not a good sign, however evenly spread."""

TOO_LONG_S = 60.0
"""Without a limit on TTFT, a p99 TTFT above this is a bad sign."""

FEW = 5
"""Tenants and adapters with fewer requests per seed are excluded from comparisons of percentiles."""


def groups(runs: Sequence[Mapping[str, Any]], unit: str) -> list[dict[str, Any]]:
    """One row per tenant or adapter of a policy's runs, one run per seed: means over the seeds in which it has a value.

    Order: those without any token, then by p99 TTFT from the longest; last those with too few requests for a p99.
    """
    found: dict[str | None, list[Mapping[str, Any]]] = {}
    for run in runs:
        for row in run[f"per_{unit}"]:
            found.setdefault(row[unit], []).append(row)
    rows = [{unit: name} | _mean(mine, unit, len(runs)) for name, mine in found.items()]
    rows.sort(key=lambda row: (row["few"], row["ttft_p99_s"] is not None, -(row["ttft_p99_s"] or 0.0)))
    return rows


def same_units(run: Mapping[str, Any]) -> bool:
    """Whether tenants and adapters are the same groups of requests, so that one table or verdict covers both."""
    return sorted(r["requests"] for r in run["per_tenant"]) == sorted(r["requests"] for r in run["per_adapter"])


def starving(policies: list[PolicyRuns]) -> list[Verdict]:
    """Which tenant or adapter waits longest under each policy, against the median one: worst and best policy."""
    found: list[Verdict] = []
    for unit in ("tenant", "adapter"):
        if unit == "adapter" and found and same_units(policies[0].runs[0]):
            continue
        spreads = [(spread, p) for p in policies if (spread := _spread(p, unit)) is not None]
        if not spreads:
            continue
        spreads.sort(key=lambda item: -item[0][0])
        (ratio, name, worst, median), policy = spreads[0]
        text = (
            f"Under {policy.name}, {unit} {name} waits longest: TTFT p99 {seconds(worst)}, {ratio:.1f} times the "
            f"median {unit}'s {seconds(median)}."
        )
        limit = _limit(policies)
        if limit is not None and worst > limit:
            text += f" That exceeds the SLO's {seconds(limit)}."
        (least, other, low, _), kind = spreads[-1]
        if least < 0.95 * ratio:
            even = f"its worst, {other}, has {seconds(low)}, {least:.1f} times the median"
            text += f" {kind.name} is the most even: {even}."
        (_, whose, longest, _), slow = max(spreads, key=lambda item: item[0][2])
        if longest > 1.5 * worst and (slow is not kind or least >= 0.95 * ratio):
            text += f" The longest wait of all: {seconds(longest)}, {whose} under {slow.name}."
        found.append(Verdict("Starvation", _mood(policies, ratio, max(s[2] for s, _ in spreads)), text))
    return found


def _mood(policies: list[PolicyRuns], ratio: float, worst: float) -> Mood:
    """Bad if one waits longer than the SLO's TTFT limit, or starves without a limit; good if waits are short."""
    limit = _limit(policies)
    if worst > (TOO_LONG_S if limit is None else limit) or (ratio >= STARVED and limit is None):
        return "bad"
    return "note" if ratio >= STARVED or worst > LONG_S or any(p.missed for p in policies) else "good"


def _limit(policies: list[PolicyRuns]) -> float | None:
    """The SLO's largest limit on TTFT, seconds."""
    slo = policies[0].runs[0]["slo"]
    limits = [limit.most_s for limit in read_slo(slo["limits"]) if limit.metric == "ttft"]
    limits += [t["limit"] for t in further_targets(slo) if t["unit"] == "s" and t["metrics"] == ["ttft"]]
    return max(limits, default=None)


def _spread(policy: PolicyRuns, unit: str) -> tuple[float, str, float, float] | None:
    """(ratio, name, worst p99 TTFT, median p99 TTFT), means over seeds; None below two groups."""
    rows = [row for row in groups(policy.runs, unit) if row["ttft_p99_s"] is not None and not row["few"]]
    if len(rows) < 2:
        return None
    worst = float(rows[0]["ttft_p99_s"])
    median = float(np.median([row["ttft_p99_s"] for row in rows]))
    return worst / median if median > 0 else 1.0, rows[0][unit] or "base model", worst, median


def _mean(rows: list[Mapping[str, Any]], unit: str, seeds: int) -> dict[str, Any]:
    """One row from several: counts over all seeds, other numbers over the seeds that have them."""
    mean: dict[str, Any] = {}
    for key in rows[0]:
        if key in IDENTITY:  # an adapter's identity is the same for every seed
            mean[key] = rows[0][key]
        elif key != unit:
            values = [row[key] for row in rows if row[key] is not None]
            whole = key in ("requests", "completed", "output_tokens", "loads", "service")
            mean[key] = sum(values) / (seeds if whole else len(values)) if values else None
    return mean | {"few": mean["requests"] < FEW}
