"""answer_notes: what a reader must know of a plan's answer, in sentences."""

from __future__ import annotations

from loratory.experiment.notes.placement_notes import placement_notes
from loratory.experiment.notes.router_notes import METRICS, fleet_notes, router_notes
from loratory.experiment.router_spec import router_factory
from loratory.plan.candidate import Candidate, stays
from loratory.plan.lab import Lab
from loratory.plan.outcome import PlanOutcome, Tried
from loratory.plan.space import Base

_TIES = 12
"""Candidates equal to the answer that a note names."""

_TAKEN = {
    "fleet": "more replicas are taken to be no worse",
    "autoscale": "more replicas are taken to be no worse, and a smaller least to cost no more",
    "capacity": "more load is taken to be no better",
}
"""What a question assumes."""


def answer_notes(base: Base, lab: Lab, outcome: PlanOutcome) -> list[str]:
    """A sentence each, besides those that the outcome has."""
    notes = []
    best = outcome.best
    if best is not None and best.judgement.unsteady:
        claim = "the SLO is met" if lab.targets else "it is the best"
        notes.append(
            f"in {best.judgement.unsteady} of {best.judgement.seeds} runs of the best candidate the number of requests "
            f"in the system had not settled: {claim} for this length of traffic, and may not be for a longer one"
        )
    if best is not None and best.judgement.seeds == 1:
        drawn = "nothing in this scenario is drawn" if lab.most > 1 else "plan.seeds allows one"
        notes.append(f"each candidate ran with one seed, as {drawn}: there are no intervals")
    if (shown := best or outcome.nearest) is not None:
        notes += _of_its_cluster(shown.candidate)
    if best is not None and base.scenario.plan.ask != "settings" and (equal := _equal(best, outcome)):
        more = f"; and {len(equal) - _TIES:,} more" if len(equal) > _TIES else ""
        notes.append(
            f"equal to the answer in every metric: {'; '.join(each.candidate.label for each in equal[:_TIES])}{more}"
        )
    if base.scenario.plan.ask in _TAKEN and outcome.tried:
        notes.append(f"{_TAKEN[base.scenario.plan.ask]}: values between were bisected")
    if best is not None and not stays(best.candidate.scenario) and base.scenario.plan.details:
        notes.append("regret is left out, which is of fleets of equal replicas that stay")
    return notes


def _of_its_cluster(candidate: Candidate) -> list[str]:
    """What the scenario says of its cluster that changes nothing for this candidate; the router is the plan's own. And
    where its placement knows what is to come."""
    cluster = candidate.scenario.cluster
    lone = cluster.most_replicas == 1
    found = router_notes(cluster, lone or router_factory(cluster.router).reads_reports, METRICS)
    if lone and cluster.placement is not None:
        found.append("cluster.placement has no effect, as there is one replica")
    return [*found, *fleet_notes(cluster), *placement_notes(candidate.scenario)]


def _equal(best: Tried, outcome: PlanOutcome) -> list[Tried]:
    """The other candidates that cost as much, and whose runs had the same results."""
    hardware = best.candidate.scenario.hardware
    return [
        each
        for each in outcome.tried
        if each.candidate.label != best.candidate.label
        and each.candidate.load == best.candidate.load
        and each.candidate.scenario.hardware == hardware
        and each.judgement.verdict == best.judgement.verdict
        and each.judgement.metrics == best.judgement.metrics
    ]
