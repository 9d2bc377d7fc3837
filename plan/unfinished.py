"""unfinished: what can be said of a plan whose budget of simulated requests is spent before its end."""

from __future__ import annotations

from loratory.plan.fleet import cost_of
from loratory.plan.lab import Lab
from loratory.plan.measured_cost import run_cost
from loratory.plan.outcome import PlanOutcome, Tried
from loratory.plan.settings import Goal
from loratory.scenarios.plan_spec import PlanSpec


def unfinished(spec: PlanSpec, lab: Lab, goal: Goal, why: str) -> PlanOutcome:
    """The best of what was tried so far, or that nothing is known; ``why`` names the budget."""
    tried = [Tried(candidate, judgement) for candidate, judgement in lab.judged]
    met = [each for each in tried if each.judgement.verdict == "met"]
    outcome = PlanOutcome(None, tried=tried)
    if not met:
        outcome.nearest = min(tried, key=lambda each: each.judgement.margin, default=None)
        outcome.too_close = True
        outcome.binding = f"{why} before a candidate was found that meets the SLO: raise it"
    elif spec.ask == "capacity":
        outcome.best = max(met, key=lambda each: (each.candidate.load, -each.judgement.margin))
    elif spec.ask == "settings":
        outcome.best = min(met, key=lambda each: goal.value(each.judgement))
    elif spec.ask == "autoscale":
        # the fleets that stay come first, so that one of them meets the SLO where any bounds do
        stays = [each for each in met if each.candidate.scenario.cluster.autoscale is None]
        outcome.best = min(met, key=lambda each: run_cost(each, spec))
        outcome.fixed = min(stays, key=lambda each: run_cost(each, spec))
    else:
        outcome.best = min(met, key=lambda each: (cost_of(each.candidate, spec), each.judgement.margin))
    outcome.notes.append(f"{why} before the search was over: there may be a better answer")
    return outcome
