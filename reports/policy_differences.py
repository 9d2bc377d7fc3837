"""Policy differences: whether policies differ in these runs by more than the noise, and why where they do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from loratory.reports.number_text import change, listed, percent, plural
from loratory.reports.stats import half_width
from loratory.reports.summary import scalars
from loratory.reports.verdict_types import PolicyRuns, Verdict

SLIGHT = 0.01
"""A smaller relative difference does not count, however many seeds confirm it."""

NARROW = 0.05
"""Policies are called equal where the intervals of all differences lie within this share of the reference."""

COMPARED: Mapping[str, str] = {
    "ttft_s.mean": "mean TTFT",
    "ttft_s.p99": "TTFT p99",
    "tpot_s.p99": "TPOT p99",
    "e2e_s.mean": "mean end-to-end time",
    "throughput.output_tokens_per_s": "output tokens/s",
    "requests.completed": "requests completed",
    "adapters.loads": "adapter loads",
    "fairness.max_service_gap": "largest service gap",
}
"""The metrics that policies are compared by, with their names."""


def sameness(policies: list[PolicyRuns]) -> list[Verdict]:
    """Policies that do not differ from the first policy, or from fifo if it is among them, and those of which the seeds
    do not tell whether they do; none if all differ."""
    if len(policies) < 2:
        return []
    reference = next((p for p in policies if p.name == "fifo"), policies[0])
    same: list[PolicyRuns] = []
    unclear: list[PolicyRuns] = []
    open_ones: list[str] = []
    for policy in policies:
        if policy is reference:
            continue
        found = differences(reference, policy)
        if any(each.clear for each in found.values()):
            continue
        metric = max(found, key=lambda name: found[name].reach, default=None)
        if metric is None or found[metric].reach <= NARROW:
            same.append(policy)
        else:
            unclear.append(policy)
            open_ones.append(f"{COMPARED[metric]} under {policy.name}, {found[metric].words}")
    told, seeds = [], plural(len(reference.runs), "seed")
    if same:
        verb = "does" if len(same) == 1 else "do"
        text = f"{listed([p.name for p in same])} {verb} not differ from {reference.name} here"
        text += f": all of {', '.join(COMPARED.values())} are within " + (
            f"{percent(NARROW)}, by the intervals over {seeds}."
            if len(reference.runs) > 1
            else "1 % of each other (one seed)."
        )
        told.append(Verdict("No difference", "note", f"{text} {_why(reference, same)}".strip()))
    if unclear:
        text = f"{listed([p.name for p in unclear])} cannot be told apart from {reference.name} with {seeds}: no "
        text += f"difference exceeds the noise, but the noise is large ({'; '.join(open_ones)}). "
        text += "More seeds would decide."
        told.append(Verdict("Undecided", "note", f"{text} {_why(reference, unclear)}".strip()))
    return told


@dataclass(frozen=True, slots=True)
class MetricChange:
    """The relative difference of a metric between two policies, half its 95 % interval (0 with one seed), and whether
    it is clear."""

    relative: float
    half: float
    clear: bool

    @property
    def reach(self) -> float:
        """The largest difference that the interval holds, in absolute value."""
        return abs(self.relative) + self.half

    @property
    def words(self) -> str:
        """``+28.3 % ± 900 %``."""
        if not isfinite(self.reach):
            return "up from 0"
        return f"{self.relative * 100:+,.1f} % ± {self.half * 100:,.1f} %"


def differences(reference: PolicyRuns, other: PolicyRuns) -> dict[str, MetricChange]:
    """How each compared metric that both have changes.

    A difference is clear if it is 1 % or more and the 95 % interval of the differences in equal seeds excludes 0; with
    one seed, if it is 1 % or more. Service gaps smaller than the service of one request are ignored.
    """
    before, after = ({run["seed"]: scalars(run) for run in p.runs} for p in (reference, other))
    found = {}
    for metric in COMPARED:
        pairs = [
            (before[seed][metric], after[seed][metric])
            for seed in before
            if seed in after and metric in before[seed] and metric in after[seed]
        ]
        if not pairs:
            continue
        if metric == "fairness.max_service_gap" and max(map(max, pairs)) < one_request(reference):
            continue
        base = sum(a for a, _ in pairs) / len(pairs)
        gain = sum(b - a for a, b in pairs) / len(pairs)
        relative = gain / abs(base) if base else (0.0 if gain == 0 else float("inf"))
        half = half_width([b - a for a, b in pairs]) or 0.0
        spread = half / abs(base) if base else (0.0 if half == 0 else float("inf"))
        found[metric] = MetricChange(relative, spread, abs(relative) >= SLIGHT and abs(gain) > half)
    return found


def differ(reference: PolicyRuns, other: PolicyRuns, metric: str) -> bool:
    """Whether two policies differ clearly in one of the compared metrics."""
    found = differences(reference, other).get(metric)
    return found is not None and found.clear


def one_request(policy: PolicyRuns) -> float:
    """Mean service of a completed request, weighted tokens: a smaller service gap is not unfair."""
    rows = [row for run in policy.runs for row in run["per_tenant"]]
    done = sum(row["completed"] for row in rows)
    return sum(row["service"] for row in rows) / done if done else 0.0


def costs(reference: PolicyRuns, other: PolicyRuns, metrics: Mapping[str, str]) -> list[str]:
    """``mean TTFT +8.2 %`` for each metric both have."""
    return [
        f"{label} {change(value, base)}"
        for metric, label in metrics.items()
        if (value := other.get(metric)) is not None and (base := reference.get(metric)) is not None
    ]


def _why(reference: PolicyRuns, same: list[PolicyRuns]) -> str:
    """Why a policy had nothing to decide, if that is the reason."""
    every = [reference, *same]
    share = max(p.get("waiting.share") or 0.0 for p in every)
    if share == 0:
        return "No request ever waited, so there was nothing to order."
    slots = max((p.get("waiting.share") or 0.0) * (p.get("waiting.by.slots") or 0.0) for p in every)
    if slots == 0:
        return "No request ever waited for a slot."
    if share < SLIGHT:
        return f"Requests waited for {percent(share)} of their time at most, so their order hardly matters."
    return ""
