"""measured_cost: what a candidate cost in its runs, in GPU hours and their price, also where its size changes."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from loratory.plan.outcome import Tried
from loratory.reports.stats import half_width
from loratory.scenarios.plan_spec import PlanSpec


@dataclass(frozen=True, slots=True)
class Saving:
    """How much less one candidate cost than another, as a share: the mean over seeds, and its 95 % interval."""

    mean: float
    low: float | None = None
    high: float | None = None


def gpu_hours(tried: Tried) -> float | None:
    """Mean GPU hours of a run; None of a candidate whose runs were stopped."""
    value = tried.judgement.value("gpu_hours")
    return None if value == inf else value


def run_cost(tried: Tried, spec: PlanSpec) -> float:
    """What candidates with several sizes are compared by: the price of a run's GPU hours, or without prices the hours;
    inf where that is not known."""
    hours, price = gpu_hours(tried), _of_a_gpu(tried, spec)
    return inf if hours is None else hours * (1.0 if price is None else price)


def gpus_mean(tried: Tried) -> float | None:
    """GPUs that are held on average; None where it is not known."""
    if tried.candidate.scenario.cluster.autoscale is None:
        return float(tried.candidate.gpus)
    mean = tried.judgement.value("replicas_mean")
    return None if mean == inf else mean * tried.candidate.gpus / tried.candidate.replicas


def price_per_hour(tried: Tried, spec: PlanSpec) -> float | None:
    """What an hour costs: of an autoscaled fleet on average, as its runs had it; None where it is not known."""
    if tried.candidate.scenario.cluster.autoscale is None:
        return tried.candidate.price_per_hour(spec.prices)
    price, gpus = _of_a_gpu(tried, spec), gpus_mean(tried)
    return None if price is None or gpus is None else price * gpus


def saving(tried: Tried, than: Tried, spec: PlanSpec) -> Saving:
    """How much less a candidate cost than another under the same seeds."""
    share = [1 - one / two for one, two in _pairs(tried, than, spec) if two > 0]
    mean = sum(share) / len(share) if share else 0.0
    half = half_width(share)
    return Saving(mean) if half is None else Saving(mean, mean - half, mean + half)


def may_be_cheaper(tried: Tried, than: Tried, spec: PlanSpec) -> bool:
    """Whether a candidate, which cost more in the mean, did not do so for certain: its differences hold 0."""
    more = [one - two for one, two in _pairs(tried, than, spec)]
    half = half_width(more)
    return bool(more) and sum(more) / len(more) <= (half or 0.0)


def _pairs(tried: Tried, than: Tried, spec: PlanSpec) -> list[tuple[float, float]]:
    """The cost of each seed that both have run with."""
    prices = [_of_a_gpu(each, spec) or 1.0 for each in (tried, than)]
    runs = zip(tried.judgement.runs, than.judgement.runs, strict=False)
    hours = [(one.values.get("gpu_hours"), two.values.get("gpu_hours")) for one, two in runs]
    return [(one * prices[0], two * prices[1]) for one, two in hours if one is not None and two is not None]


def _of_a_gpu(tried: Tried, spec: PlanSpec) -> float | None:
    """The price of one GPU for an hour; None without one, and where the replicas are of several kinds."""
    return None if tried.candidate.mixed else (spec.prices or {}).get(tried.candidate.gpu)
