"""autoscale_answer: what an autoscaled fleet held and cost, beside the fleet that stays, as values and in words."""

from __future__ import annotations

from typing import Any

from loratory.plan.measured_cost import gpu_hours, price_per_hour, saving
from loratory.plan.outcome import PlanOutcome, Tried
from loratory.reports.number_text import count, percent, percent_between, plural
from loratory.scenarios.plan_spec import PlanSpec


def autoscale_of(outcome: PlanOutcome, spec: PlanSpec) -> dict[str, Any] | None:
    """``autoscale`` of plan.json; None where a plan asks for something else, or nothing meets the SLO."""
    best, fixed = outcome.best, outcome.fixed
    if best is None or fixed is None:
        return None
    cluster = best.candidate.scenario.cluster
    scale = cluster.autoscale
    share = saving(best, fixed, spec)
    return {
        **{key: None if scale is None else getattr(scale, key) for key in ("least", "most", "by", "target")},
        "start": cluster.count,
        **_held(best, spec),
        "fixed": {"label": fixed.candidate.label, "replicas": fixed.candidate.replicas, **_held(fixed, spec)},
        "saved": {"mean": share.mean, "low": share.low, "high": share.high},
    }


def _held(tried: Tried, spec: PlanSpec) -> dict[str, Any]:
    values = {name: tried.judgement.value(name) for name in ("replicas_mean", "replicas_peak")}
    return {**values, "gpu_hours": gpu_hours(tried), "price_per_hour": price_per_hour(tried, spec)}


def held_words(tried: Tried, spec: PlanSpec) -> str:
    """``2.3 replicas on average and 4 at most, 0.39 GPU hours, 6.93 USD an hour``; the last with prices."""
    mean, peak = (tried.judgement.value(name) for name in ("replicas_mean", "replicas_peak"))
    return f"{count(mean)} replicas on average and {count(peak)} at most, {_cost_words(tried, spec)}"


def autoscale_words(outcome: PlanOutcome, spec: PlanSpec, fewest: int) -> str:
    """What the best candidate held and cost, and what that saves of the fleet that stays; ``fewest``: the least that an
    autoscaler may go down to."""
    best, fixed = outcome.best, outcome.fixed
    assert best is not None and fixed is not None
    if best.candidate.scenario.cluster.autoscale is None:
        scaled = [each for each in outcome.tried if each.candidate.scenario.cluster.autoscale is not None]
        met = [each for each in scaled if each.judgement.verdict == "met"]
        if not scaled and fixed.candidate.replicas > fewest:
            return f"{_cost_words(best, spec)}: no bounds of an autoscaler were tried"
        if not met:
            why = "none of the bounds tried meets the SLO" if scaled else "cluster.autoscale allows no fewer replicas"
            return f"{_cost_words(best, spec)}: autoscaling saves nothing, as {why}"
        least = min(met, key=lambda each: gpu_hours(each) or 0.0)
        return (
            f"{_cost_words(best, spec)}: autoscaling saves nothing, as {least.candidate.label} takes "
            f"{_cost_words(least, spec)}"
        )
    share = saving(best, fixed, spec)
    if share.low is None or share.high is None:
        less = percent(share.mean)
    else:
        less = percent_between(share.mean, share.low, share.high)
    stays = f"{plural(fixed.candidate.replicas, 'replica')} that stay"
    other = ", ".join([stays, *fixed.candidate.label.split(", ")[1:]])
    return f"{held_words(best, spec)}: {less} less than {other}, with {_cost_words(fixed, spec)}"


def money(price: float, spec: PlanSpec) -> str:
    """``6.93 USD an hour``."""
    return f"{price:,.2f} {spec.currency or ''}".rstrip() + " an hour"


def _cost_words(tried: Tried, spec: PlanSpec) -> str:
    hours, price = gpu_hours(tried), price_per_hour(tried, spec)
    words = "GPU hours not known" if hours is None else f"{count(hours)} GPU hours"
    return words if price is None else f"{words}, {money(price, spec)}"
