"""Verdicts: what a report says first, computed from its runs, in sentences with numbers and units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from reports.outcomes import reason_of
from reports.slo import ATTAINMENT, Limit, read_slo
from reports.summary import over_seeds
from reports.warmup import warmup_notes
from reports.words import change, count, listed, percent, plural, seconds

STARVED = 5.0
"""A tenant or adapter whose p99 TTFT is so many times the median one's is said to starve."""

MATTERS = 0.01
"""From this share of the requests on, those rejected or cut short are marked as bad."""

_FEW = 5
"""Tenants and adapters with fewer measured requests are left out of comparisons of percentiles."""

_DETAILED = 3
"""So many policies that miss the SLO get a sentence each, those that come closest."""

Mood = Literal["good", "bad", "note"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence or two on a topic; ``mood`` chooses its mark."""

    topic: str
    mood: Mood
    text: str


@dataclass(frozen=True, slots=True)
class PolicyRuns:
    """A policy's runs, one a seed, and the mean over seeds of each scalar."""

    name: str
    runs: list[Mapping[str, Any]]
    mean: dict[str, float]

    def get(self, metric: str) -> float | None:
        """Mean over seeds of a dotted metric, None where no run has it."""
        return self.mean.get(metric)


def by_policy(runs: Sequence[Mapping[str, Any]]) -> list[PolicyRuns]:
    """The policies of these runs, in the order first run."""
    return [
        PolicyRuns(
            item["policy"],
            [run for run in runs if run["policy"] == item["policy"]],
            {name: value["mean"] for name, value in item["metrics"].items()},
        )
        for item in over_seeds(runs)
    ]


def verdicts(runs: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """All verdicts on these runs, the most important first."""
    policies = by_policy(runs)
    found = [*_slo(policies), *_starving(policies), *_unserved(policies), *_cache(policies), *_fairness(policies)]
    return found + _cautions(policies)


def _slo(policies: list[PolicyRuns]) -> list[Verdict]:
    slo = policies[0].runs[0]["slo"]["limits"]
    limits, wanted = read_slo(slo), slo.get(ATTAINMENT)
    if not limits:
        best = _lowest(policies, "ttft_s.p99")
        if best is None:
            return [Verdict("SLO", "bad", "No request got a token, so there is no latency to judge.")]
        text = f"The scenario sets no SLO. Lowest TTFT p99: {best.name} with {seconds(best.get('ttft_s.p99'))}."
        return [Verdict("SLO", "note", text)]
    goals = [limit.words for limit in limits]
    goal = listed(goals if wanted is None else [*goals, f"all of these for {percent(wanted)} of requests"])
    met = [p for p in policies if all(run["slo"]["met"] for run in p.runs)]
    if met:
        names = listed([f"{p.name} ({percent(p.get('slo.attainment'))} of requests)" for p in met])
        text = f"{names} {'meet' if len(met) > 1 else 'meets'} the SLO ({goal})."
        found = [Verdict("SLO", "good", text)]
    else:
        found = [Verdict("SLO", "bad", f"No policy here meets the SLO ({goal}).")]
    missed = sorted((p for p in policies if p not in met), key=lambda p: -(p.get("slo.attainment") or 0.0))
    found += [Verdict("SLO", "bad", _missed(policy, limits)) for policy in missed[:_DETAILED]]
    if rest := missed[_DETAILED:]:
        names = listed([f"{p.name} ({percent(p.get('slo.attainment'))} of requests)" for p in rest])
        found.append(Verdict("SLO", "bad", f"Farther from it: {names}."))
    return found


def _missed(policy: PolicyRuns, limits: list[Limit]) -> str:
    """By how much a policy misses the SLO."""
    failing = []
    for limit in limits:
        values = [run["slo"]["values"].get(limit.key) for run in policy.runs]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            failing.append(f"too many requests did not complete for a {limit.label}")
        elif max(known) > limit.most_s:
            failing.append(f"{limit.label} {seconds(sum(known) / len(known))} against {seconds(limit.most_s)}")
    seeds = sum(not run["slo"]["met"] for run in policy.runs)
    often = "" if len(policy.runs) == 1 else f" in {seeds} of {len(policy.runs)} seeds"
    reasons = f": {listed(failing)};" if failing else ":"
    share = percent(policy.get("slo.attainment"))
    return f"{policy.name} misses the SLO{often}{reasons} {share} of requests kept every limit."


def _starving(policies: list[PolicyRuns]) -> list[Verdict]:
    """Who waits longest under each policy, against the median tenant or adapter: the worst policy and the best."""
    spreads = []
    found: list[Verdict] = []
    for policy in policies:
        for unit in ("tenant", "adapter"):
            spread = _spread(policy, unit)
            if spread is not None:
                spreads.append((spread[0], unit, policy, spread))
    for unit in ("tenant", "adapter"):
        mine = sorted((s for s in spreads if s[1] == unit), key=lambda s: -s[0])
        if not mine or (unit == "adapter" and found and same_units(policies[0].runs[0])):
            continue
        ratio, _, policy, (_, name, worst, median) = mine[0]
        starved = ratio >= STARVED
        text = (
            f"Under {policy.name}, {unit} {name} waits longest: TTFT p99 {seconds(worst)}, {ratio:.1f} times the "
            f"median {unit}'s {seconds(median)}."
        )
        if len(mine) > 1:
            least, _, kind, (_, other, low, _) = mine[-1]
            text += (
                f" {kind.name} is the most even: its worst, {other}, has {seconds(low)}, {least:.1f} times the median."
            )
        found.append(Verdict("Starvation", "bad" if starved else "good", text))
    return found


def _spread(policy: PolicyRuns, unit: str) -> tuple[float, str, float, float] | None:
    """(ratio, name, worst p99 TTFT, median p99 TTFT) of the seed with the largest ratio; None below two groups."""
    best: tuple[float, str, float, float] | None = None
    for run in policy.runs:
        rows = [
            (row["ttft_p99_s"], row[unit] or "base model")
            for row in run[f"per_{unit}"]
            if row["ttft_p99_s"] is not None and row["requests"] >= _FEW
        ]
        if len(rows) < 2:
            continue
        worst, name = max(rows)
        median = float(np.median([value for value, _ in rows]))
        ratio = worst / median if median > 0 else 1.0
        if best is None or ratio > best[0]:
            best = (ratio, name, worst, median)
    return best


def same_units(run: Mapping[str, Any]) -> bool:
    """Whether tenants and adapters are the same groups of requests, so that one table or verdict says it."""
    return sorted(r["requests"] for r in run["per_tenant"]) == sorted(r["requests"] for r in run["per_adapter"])


def _unserved(policies: list[PolicyRuns]) -> list[Verdict]:
    """Requests that were never served, turned away or cut short: of the worst policy with the reason, then the rest."""
    found = []
    for kind, topic, words in (
        ("never_served", "Never served", "{} never got a token"),
        ("rejected", "Rejected", "{} turned away"),
        ("truncated", "Truncated", "{} cut short"),
    ):
        counts = [(sum(run[kind]["count"] for run in p.runs), p) for p in policies]
        hit = sorted((item for item in counts if item[0]), key=lambda item: -item[0])
        if not hit:
            continue
        total, worst = hit[0]
        share = total / max(sum(run["requests"]["submitted"] for run in worst.runs), 1)
        requests = plural(total, "request") + ("" if kind == "never_served" else " was" if total == 1 else " were")
        text = f"Under {worst.name}, {words.format(requests)}, {percent(share)} of all: {reason_of(worst.runs, kind)}."
        if kind == "never_served":
            adapters = next(run[kind]["adapters"] for run in worst.runs if run[kind]["count"])
            text += f" {next(iter(adapters))} was hit hardest."
        if len(hit) > 1:
            text += f" Others: {listed([f'{count(number)} under {other.name}' for number, other in hit[1:]])}."
        mood: Mood = "bad" if kind == "never_served" or share >= MATTERS else "note"
        found.append(Verdict(topic, mood, text))
    return found


def _cache(policies: list[PolicyRuns]) -> list[Verdict]:
    known = [p for p in policies if p.get("adapters.hit_rate") is not None]
    if not known:
        return [Verdict("Adapter cache", "note", "No request that ran used an adapter.")]
    ordered = sorted(known, key=lambda p: -p.mean["adapters.hit_rate"])
    alike = ordered[0].mean["adapters.hit_rate"] - ordered[-1].mean["adapters.hit_rate"] < 0.0005
    shown = [ordered[0]] if alike else [ordered[0], ordered[-1]]
    parts = [
        f"{p.name} finds the adapter on the GPU for {percent(p.get('adapters.hit_rate'))} of adapter requests "
        f"({count(p.get('adapters.loads'))} loads, {count(p.get('adapters.evictions'))} evictions, "
        f"{percent(_load_share(p))} of end-to-end time spent waiting for loads)"
        for p in shown
    ]
    text = "; ".join(parts) + (". The other policies find it as often." if alike and len(ordered) > 1 else ".")
    return [Verdict("Adapter cache", "note", text)]


def _load_share(policy: PolicyRuns) -> float | None:
    wait, total = policy.get("waits_s.load_wait_s"), policy.get("e2e_s.mean")
    return None if wait is None or not total else wait / total


def _fairness(policies: list[PolicyRuns]) -> list[Verdict]:
    if max(len(run["per_tenant"]) for p in policies for run in p.runs) < 2:
        return [Verdict("Fairness", "note", "There is one tenant, so there is no fairness between tenants to judge.")]
    found = []
    gap: Callable[[PolicyRuns], float] = lambda p: p.mean["fairness.max_service_gap"]  # noqa: E731
    reference = next((p for p in policies if p.name == "fifo"), policies[0])
    fairest = min(policies, key=gap)
    if fairest is not reference and gap(fairest) < gap(reference):
        costs = [
            f"{label} {change(value, base)}"
            for label, metric in (
                ("mean TTFT", "ttft_s.mean"),
                ("TTFT p99", "ttft_s.p99"),
                ("output throughput", "throughput.output_tokens_per_s"),
                ("adapter loads", "adapters.loads"),
            )
            if (value := fairest.get(metric)) is not None and (base := reference.get(metric)) is not None
        ]
        text = (
            f"{fairest.name} has the smallest service gap between backlogged tenants: {count(gap(fairest))} weighted "
            f"tokens against {count(gap(reference))} under {reference.name}. Against {reference.name}: "
            f"{', '.join(costs)}."
        )
        found.append(Verdict("Fairness", "note", text))
    elif len(policies) > 1:
        text = f"No policy narrows the service gap of {reference.name}, {count(gap(reference))} weighted tokens."
        found.append(Verdict("Fairness", "note", text))
    for policy in policies:
        bound = policy.get("fairness.bound")
        if bound is not None:
            worst = max(run["fairness"]["max_service_gap"] for run in policy.runs)
            kept = worst <= bound
            text = (
                f"{policy.name} promises a service gap of at most {count(bound)} weighted tokens; the largest measured "
                f"is {count(worst)}."
            )
            found.append(Verdict("Fairness", "good" if kept else "bad", text))
    return found


def _cautions(policies: list[PolicyRuns]) -> list[Verdict]:
    found = []
    oracles = [p.name for p in policies if any(run["oracle"] for run in p.runs)]
    if oracles:
        verb = "was" if len(oracles) == 1 else "were"
        text = f"{listed(oracles)} {verb} told true output lengths (an oracle): no policy knows them in production."
        found.append(Verdict("Caution", "bad", text))
    found += [Verdict("Warm-up", "note", text) for text in warmup_notes([r for p in policies for r in p.runs])]
    warnings: dict[str, list[str]] = {}
    for policy in policies:
        for run in policy.runs:
            for warning in run["warnings"]:
                names = warnings.setdefault(warning, [])
                if policy.name not in names:
                    names.append(policy.name)
    for warning, names in warnings.items():
        whose = "" if len(names) == len(policies) else f" ({listed(names)})"
        found.append(Verdict("Caution", "note", warning + whose))
    return found


def _lowest(policies: list[PolicyRuns], metric: str) -> PolicyRuns | None:
    known = [p for p in policies if p.get(metric) is not None]
    return min(known, key=lambda p: p.mean[metric]) if known else None
