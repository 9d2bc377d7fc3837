"""Verdict: whether a candidate meets its SLO, from the values that its seeds gave, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf, isfinite
from typing import Any, Literal

from loratory.plan.measure import Measured
from loratory.reports.slo_target import SloTarget, value_words
from loratory.reports.stats import half_width

Verdict = Literal["met", "missed", "too_close"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric over seeds: its mean, and the 95 % interval of the mean (None with one seed).

    ``mean`` is None where it is not known, inf where requests never ended; ``at_least``: what is known of a target of
    runs that were stopped early. ``limit`` and ``met`` are of targets; ``met`` is None while the interval holds the
    limit.
    """

    mean: float | None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    met: bool | None = None
    at_least: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For plan.json."""
        mean = self.mean if self.mean is not None and isfinite(self.mean) else None
        found: dict[str, Any] = {"mean": mean, "low": self.low, "high": self.high}
        if self.limit is not None:
            found |= {"limit": self.limit, "met": self.met}
        if self.at_least is not None:
            found["at_least"] = self.at_least
        return found


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the seeds of a candidate say.

    ``reason``: why it misses the SLO, or why that is open; ``first_missed``: the target that is missed by most;
    ``margin``: the worst value over its limit, below 1 where the SLO is met; ``more_seeds``: about how many more seeds
    would decide; ``unsteady``: in how many runs the number of requests in the system still grew at the end.
    """

    verdict: Verdict
    metrics: Mapping[str, Estimate]
    seeds: int
    reason: str = ""
    first_missed: str | None = None
    margin: float = inf
    more_seeds: int | None = None
    stopped: bool = False
    unsteady: int = 0
    runs: Sequence[Measured] = field(default=(), repr=False)

    def value(self, name: str) -> float:
        """The mean of a metric; inf where it is not known."""
        estimate = self.metrics.get(name)
        return inf if estimate is None or estimate.mean is None else estimate.mean


def judge(runs: Sequence[Measured], targets: Sequence[SloTarget]) -> Judgement:
    """The verdict of a candidate's runs, one a seed: met or missed where every interval says so.

    A target is missed where the runs of all seeds were stopped because they missed it, or where its interval is beyond
    the limit; one missed target is enough. Runs that were stopped have no values, so a candidate with some of them and
    others that ran to the end is open until those are run in full (`loratory.plan.lab`).
    """
    full = [run for run in runs if not run.stopped]
    stopped = len(full) < len(runs)
    names = list(dict.fromkeys(name for run in full for name in run.values))
    limits = {target.name: target for target in targets}
    metrics = {name: _estimate([run.values.get(name) for run in full], limits.get(name)) for name in names}
    for name, target in limits.items():
        if stopped and runs and all(name in run.missed for run in runs):
            metrics[name] = Estimate(None, limit=target.limit, met=False, at_least=target.limit)
        elif name not in metrics:
            metrics[name] = Estimate(None, limit=target.limit)
    over = {name: _over(metrics[name], target) for name, target in limits.items()}
    missed = [name for name in limits if metrics[name].met is False]
    open_ = [name for name in limits if metrics[name].met is None]
    worst = max(over, key=lambda name: over[name], default=None)
    margin = over[worst] if worst is not None else 0.0
    unsteady = sum(run.steady == "no steady state" for run in runs)
    common = {"metrics": metrics, "seeds": len(runs), "margin": margin, "stopped": stopped, "unsteady": unsteady}
    if missed or (stopped and all(run.stopped for run in runs)):
        most = max(missed, key=lambda name: over[name]) if missed else _most_often(runs)
        reason = _reason(metrics[most], limits[most]) if missed else _stopped_reason(limits[most], runs)
        return Judgement("missed", reason=reason, first_missed=most, runs=runs, **common)  # type: ignore[arg-type]
    if open_:
        more = max((_more_seeds(metrics[name], len(full)) for name in open_), default=None, key=lambda n: n or 0)
        first = max(open_, key=lambda name: over[name])
        reason = _reason(metrics[first], limits[first])
        return Judgement("too_close", reason=reason, first_missed=first, more_seeds=more, runs=runs, **common)  # type: ignore[arg-type]
    return Judgement("met", runs=runs, **common)  # type: ignore[arg-type]


def _most_often(runs: Sequence[Measured]) -> str:
    """The target that stopped most of the runs."""
    names = [name for run in runs for name in run.missed]
    return max(dict.fromkeys(names), key=names.count)


def _estimate(values: Sequence[float | None], target: SloTarget | None) -> Estimate:
    known = [value for value in values if value is not None]
    limit = None if target is None else target.limit
    if not known:
        return Estimate(None, limit=limit)
    if any(not isfinite(value) for value in known):
        return Estimate(inf, limit=limit, met=None if target is None else False)
    mean = sum(known) / len(known)
    half = half_width(known)
    low, high = (None, None) if half is None else (max(0.0, mean - half), mean + half)
    if target is None:
        return Estimate(mean, low, high)
    if target.unit == "share" and high is not None:
        high = min(1.0, high)
    worst, best = (high, low) if target.sense == "at_most" else (low, high)
    keeps = [target.met_by(mean if value is None else value) for value in (worst, best)]
    return Estimate(mean, low, high, limit, keeps[0] if keeps[0] == keeps[1] else None)


def _over(estimate: Estimate, target: SloTarget) -> float:
    """How far beyond its limit a target is: 1 at the limit. Shares count what is missing from 1."""
    if estimate.mean is None:
        return inf if estimate.met is False else 0.0
    if target.sense == "at_most":
        return estimate.mean / target.limit
    return (1 - estimate.mean) / (1 - target.limit) if target.limit < 1 else 1 + (1 - estimate.mean)


def _more_seeds(estimate: Estimate, seeds: int) -> int | None:
    """About how many more seeds decide: the interval's width falls with the square root of their number."""
    if estimate.mean is None or estimate.high is None or estimate.limit is None:
        return None
    half, apart = estimate.high - estimate.mean, abs(estimate.mean - estimate.limit)
    if apart <= 0:
        return None
    return max(1, ceil(seeds * (half / apart) ** 2) - seeds)


def _stopped_reason(target: SloTarget, runs: Sequence[Measured]) -> str:
    """Why runs miss the SLO of which not all were stopped by the same target."""
    some, limit = sum(target.name in run.missed for run in runs), value_words(target.limit, target.unit)
    beyond = "above" if target.sense == "at_most" else "below"
    return (
        f"{target.label} is {beyond} {limit} in {some} of {len(runs)} runs, and other targets are missed in the rest: "
        "the runs were stopped when that was certain"
    )


def _reason(estimate: Estimate, target: SloTarget) -> str:
    def show(value: float) -> str:
        return value_words(value, target.unit)

    limit = f"the limit is {show(target.limit)}"
    if estimate.at_least is not None:
        beyond = "above" if target.sense == "at_most" else "below"
        return f"{target.label} is {beyond} {show(estimate.at_least)}: the runs were stopped when that was certain"
    if estimate.mean is None:
        return f"{target.label} was not measured; {limit}"
    if not isfinite(estimate.mean):
        return f"{target.label} has no end, as requests were not served; {limit}"
    if estimate.low is None or estimate.high is None:
        return f"{target.label} is {show(estimate.mean)}; {limit}"
    return f"{target.label} is {show(estimate.mean)} [{show(estimate.low)}, {show(estimate.high)}]; {limit}"
