"""sensitivity: what breaks first when the load grows, and by how much it can grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from loratory.errors import InputError, several
from loratory.plan.candidate import POLICY, Candidate
from loratory.plan.climb import Climb, climb
from loratory.plan.evaluate import check_workloads
from loratory.plan.growth import CannotGrowError, Ladder, grown, ladder
from loratory.plan.lab import Lab
from loratory.plan.outcome import Growth, PlanOutcome
from loratory.plan.prospects import Prospects
from loratory.plan.space import Base
from loratory.scenarios.plan_spec import FACTORS, Factor

LESS: tuple[Factor, ...] = ("traffic", "adapters")
"""Factors that are also made smaller, where the SLO is missed as it is."""


def sensitivity(base: Base, lab: Lab, prospects: Prospects) -> PlanOutcome:
    """The scenario as it is, under its first policy, and how far each factor of its load can grow."""
    spec = base.scenario.plan
    candidate, discarded, _ = prospects.check({POLICY: base.scenario.policies[0]})
    outcome = PlanOutcome(None)
    if others := base.scenario.policies[1:]:
        outcome.notes.append(
            f"only the first policy is planned, {base.scenario.policies[0]}, and not {several(others)}"
        )
    if candidate is None:
        assert discarded is not None
        outcome.discarded, outcome.binding = [discarded], discarded.reason
        return outcome
    outcome.growth = growth(candidate, lab, spec.factors or FACTORS)
    now = [tried for each in outcome.growth for x, tried in each.points if x == each.now]
    outcome.tried = now[:1]
    if now:
        if now[0].judgement.verdict == "met":
            outcome.best = now[0]
        else:
            outcome.nearest, outcome.binding = now[0], now[0].judgement.reason
            outcome.too_close = now[0].judgement.verdict == "too_close"
        breaks = [each for each in outcome.growth if each.breaks_first is not None and each.breaks_at is not None]
        if outcome.best is not None and breaks:
            first = min(breaks, key=lambda each: _relative(each))
            outcome.binding = f"{first.factor} {first.breaks_at:.3g} {first.unit} breaks {first.breaks_first}"
    elif outcome.growth:
        outcome.notes += [f"{each.factor}: {each.note}" for each in outcome.growth if each.note]
    return outcome


def _relative(each: Growth) -> float:
    at = each.breaks_at or 0.0
    return at / each.now if each.now > 0 else 1.0 + at


def growth(candidate: Candidate, lab: Lab, factors: Sequence[Factor], stop_early: bool = True) -> list[Growth]:
    """How far each factor can grow while the candidate meets its SLO; a note for those that it does not have."""
    ladders: dict[Factor, Ladder] = {}
    notes: dict[Factor, str] = {}
    for factor in factors:
        try:
            ladders[factor] = ladder(candidate.scenario, factor)
        except CannotGrowError as error:
            notes[factor] = str(error)
        except InputError as error:
            notes[factor] = f"it cannot grow: {error}"
    searches = {
        factor: climb(
            _at(candidate, factor, steps.now, lab.seeds),
            steps.now,
            steps.up,
            steps.tolerance,
            steps.ratio,
            factor in LESS,
        )
        for factor, steps in ladders.items()
    }
    found = lab.drive("sensitivity", searches, stop_early=stop_early)
    return [
        _growth(factor, ladders[factor], found[factor])
        if factor in found
        else Growth(factor, 1.0, "", note=notes[factor])
        for factor in factors
    ]


def _at(candidate: Candidate, factor: Factor, now: float, seeds: Sequence[int]) -> Callable[[float], Candidate]:
    def make(x: float) -> Candidate:
        if x == now:
            return candidate
        made = grown(candidate.scenario, factor, x)
        check_workloads(made, seeds)
        return replace(candidate, scenario=made)

    return make


def _growth(factor: Factor, steps: Ladder, found: Climb) -> Growth:
    note = (
        ""
        if found.breaks_at is not None
        else f"no larger value was tried: {found.end}"
        if found.end
        else ("the SLO is met at every value that was tried")
    )
    return Growth(
        factor, steps.now, steps.unit, found.points, found.holds_to, found.breaks_at, found.first_missed, note
    )
