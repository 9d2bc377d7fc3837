"""capacity: the largest traffic, or number of adapters, at which a given fleet meets the SLO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from loratory.plan.candidate import Candidate
from loratory.plan.climb import Climb, climb
from loratory.plan.evaluate import built_of, check_workloads, workload_of
from loratory.plan.growth import grown, ladder, requests_per_s
from loratory.plan.lab import Lab
from loratory.plan.outcome import Discarded, LoadCurve, PlanOutcome, Tried
from loratory.plan.prospects import Prospects
from loratory.plan.space import Base, check_size, combinations, possible, space_of

_UP = tuple(2.0**k for k in range(1, 11))
"""Factors at which a load is tried while the SLO is met: up to 1,024 times the scenario's."""


def capacity(base: Base, lab: Lab, prospects: Prospects) -> PlanOutcome:
    """The combination of settings with the largest load that meets the SLO, and the curve of each.

    The load is multiplied by powers of two until the SLO is missed, then bisected to 5 %.
    """
    spec = base.scenario.plan
    factor: Literal["traffic", "adapters"] = spec.grow or "traffic"
    space = space_of(base)
    check_size(space, spec.budget.candidates)
    settings = list(combinations(space))
    good, refused = possible(base, settings)
    outcome = PlanOutcome(
        None, discarded=[Discarded(each.settings, each.label, "settings", each.why) for each in refused]
    )
    tolerance = ladder(base.scenario, factor).tolerance
    searches = {}
    for index, each in enumerate(good):
        candidate, discarded, _ = prospects.check(each)
        if candidate is None:
            assert discarded is not None
            outcome.discarded.append(discarded)
            continue
        searches[index] = climb(loaded(candidate, factor, lab.seeds), 1.0, _UP, tolerance, True, down=True)
    climbs = [each for each in lab.drive("loads", searches).values() if each.points]
    for found in climbs:
        outcome.tried += [tried for _, tried in found.points]
    outcome.curves = [curve_of(found, factor, lab) for found in climbs]
    _choose(outcome, climbs)
    return outcome


def loaded(
    candidate: Candidate, factor: Literal["traffic", "adapters"], seeds: Sequence[int]
) -> Callable[[float], Candidate]:
    """The candidate at a factor on its traffic or adapters; it raises `InputError` for one that cannot run."""

    def at(x: float) -> Candidate:
        if x == 1.0:
            return candidate
        made = grown(candidate.scenario, factor, x)
        check_workloads(made, seeds)
        return replace(candidate, scenario=made, load=x)

    return at


def curve_of(found: Climb, factor: str, lab: Lab) -> LoadCurve:
    """The points in requests a second, or in adapters."""
    points = [(load_of(tried.candidate, factor, lab.seeds[0]), tried) for _, tried in found.points]
    at = {x: load for (x, _), (load, _) in zip(found.points, points, strict=True)}
    label = found.points[0][1].candidate.label
    return LoadCurve(
        label,
        "adapters" if factor == "adapters" else unit_of(found.points[0][1].candidate, lab.seeds[0]),
        points,
        None if found.holds_to is None else at[found.holds_to],
        None if found.breaks_at is None else at[found.breaks_at],
    )


def unit_of(candidate: Candidate, seed: int) -> str:
    """What the traffic of a candidate is counted in."""
    workload = workload_of(candidate.scenario, seed, built_of(candidate.scenario))
    return "requests/s" if workload.concurrency is None else "clients"


def load_of(candidate: Candidate, factor: str, seed: int) -> float:
    """The load of a candidate: requests a second of its first seed, or the number of its adapters."""
    built = built_of(candidate.scenario)
    if factor == "adapters":
        return float(len(built.adapters))
    workload = workload_of(candidate.scenario, seed, built)
    if workload.concurrency is not None:
        return float(workload.concurrency)
    return requests_per_s(candidate.scenario, len(workload), float(workload.arrival[-1]))


def _choose(outcome: PlanOutcome, found: list[Climb]) -> None:
    def largest(each: Climb) -> tuple[float, float]:
        at = each.holds_to or 0.0
        tried = next((tried for x, tried in each.points if x == at), None)
        return at, -(tried.judgement.margin if tried is not None else 0.0)

    held = [each for each in found if each.holds_to is not None]
    if not held:
        every = [tried for each in found for _, tried in each.points]
        outcome.nearest = min(every, key=lambda tried: tried.judgement.margin, default=None)
        outcome.too_close = any(tried.judgement.verdict == "too_close" for tried in every)
        outcome.binding = outcome.nearest.judgement.reason if outcome.nearest is not None else None
        if outcome.binding is None and outcome.discarded:
            outcome.binding = outcome.discarded[0].reason
        return
    best = max(held, key=largest)
    outcome.best = next(Tried(t.candidate, t.judgement) for x, t in best.points if x == best.holds_to)
    beyond = next((tried for x, tried in best.points if x == best.breaks_at), None)
    if beyond is not None:
        outcome.binding = beyond.judgement.reason
    elif best.end:
        outcome.binding = best.end
    else:
        outcome.notes.append(f"the SLO is met at {best.holds_to:g} times the load, the most that is tried")
