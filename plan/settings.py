"""settings: the best settings for a given fleet, by a goal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from loratory.errors import InputError, did_you_mean, several
from loratory.plan.candidate import Candidate
from loratory.plan.lab import Lab
from loratory.plan.measure import HIGHER_IS_BETTER, METRICS
from loratory.plan.outcome import Discarded, PlanOutcome, Tried
from loratory.plan.prospects import Prospects
from loratory.plan.sampler import Sampler
from loratory.plan.space import Base, Settings, check_size, combinations, possible, space_of
from loratory.plan.verdict import Judgement
from loratory.reports.number_text import plural
from loratory.reports.slo_target import SloTarget
from loratory.reports.stats import half_width

MOST_COMBINATIONS = 100_000
"""Combinations of a space from which a sampler may choose."""

BATCH = 8
"""Combinations that are tried together where not all are: the same whatever the number of processes."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What is best: the least ``name``, or with ``more`` the most; without a name the least distance from the SLO."""

    name: str | None
    more: bool = False

    def value(self, judgement: Judgement) -> float:
        """What a judgement is compared by: less is better."""
        if self.name is None:
            return judgement.margin
        value = judgement.value(self.name)
        return -value if self.more and value != inf else value

    @property
    def words(self) -> str:
        """``the least ttft_p99_s``."""
        return (
            "the least distance from the SLO"
            if self.name is None
            else f"the {'most' if self.more else 'least'} {self.name}"
        )


def goal_of(base: Base, targets: Sequence[SloTarget]) -> Goal:
    """The goal of ``plan.goal``. Raises `InputError` for an unknown one, or none without an SLO."""
    name = base.scenario.plan.goal
    if name is None:
        if not targets:
            raise InputError(
                "plan.goal is missing, and there is no SLO to come near to: add plan.goal, such as ttft_p99_s or "
                "output_tokens_per_s, or a slo section"
            )
        return Goal(None)
    shares = [target.name for target in targets if target.sense == "at_least"]
    known = [*dict.fromkeys([*(target.name for target in targets), *METRICS])]
    if name not in known:
        raise InputError(f"plan.goal is {name!r}; {did_you_mean(name, known, f'choose one of {several(known)}')}")
    return Goal(name, name in HIGHER_IS_BETTER or name in shares)


def settings(base: Base, lab: Lab, prospects: Prospects, goal: Goal) -> PlanOutcome:
    """The combination that is best by the goal, of those that meet the SLO if any do.

    All combinations of the space are tried, or where there are more than ``plan.budget.candidates`` as many as that,
    which Optuna's TPE sampler proposes. They run with the first seeds; those that common random numbers do not show to
    be worse than the best get more, up to the most, until one is left.
    """
    space = space_of(base)
    check_size(space, MOST_COMBINATIONS, "a sampler can choose from", "take values out")
    every = list(combinations(space))
    most = base.scenario.plan.budget.candidates
    good, refused = possible(base, every)
    outcome = PlanOutcome(
        None, discarded=[Discarded(each.settings, each.label, "settings", each.why) for each in refused]
    )
    found: dict[int, Tried] = {}
    sampler = None if len(good) <= most else Sampler(space_of(base), good)
    proposals = [list(range(len(good)))] if sampler is None else sampler.batches(most, BATCH)
    for batch in proposals:
        candidates = [(index, candidate) for index in batch if (candidate := _check(good[index], prospects, outcome))]
        judged = lab.judge_all("settings", [candidate for _, candidate in candidates], stop_early=False, decide=False)
        for (index, candidate), judgement in zip(candidates, judged, strict=True):
            found[index] = Tried(candidate, judgement)
        if sampler is not None:
            sampler.learn({index: goal.value(found[index].judgement) for index in batch if index in found})
    if sampler is not None:
        outcome.notes.append(
            f"{len(found)} of {len(good):,} combinations were tried, as Optuna's TPE sampler proposed them "
            f"(plan.budget.candidates {most})"
        )
    if found:
        outcome.tried = list(found.values())
        _race(outcome, lab, goal)
    elif outcome.discarded:
        outcome.binding = outcome.discarded[0].reason
    return outcome


def _check(settings: Settings, prospects: Prospects, outcome: PlanOutcome) -> Candidate | None:
    candidate, discarded, _ = prospects.check(settings)
    if discarded is not None:
        outcome.discarded.append(discarded)
    return candidate


def _race(outcome: PlanOutcome, lab: Lab, goal: Goal) -> None:
    """Choose the best, adding seeds while others may be as good: those whose paired difference holds 0."""
    order = _by(goal)
    in_race = outcome.tried
    seeds = max(each.judgement.seeds for each in in_race)
    while True:
        best = min(in_race, key=order)
        rivals = [each for each in in_race if each is not best and not _worse(best, each, goal)]
        if not rivals or seeds >= lab.most or seeds < 2:
            break
        seeds = min(lab.most, 2 * seeds)
        again = [best, *rivals]
        judged = lab.judge_with("settings", [each.candidate for each in again], seeds)
        renewed = {id(each): Tried(each.candidate, judgement) for each, judgement in zip(again, judged, strict=True)}
        outcome.tried = [renewed.get(id(each), each) for each in outcome.tried]
        in_race = list(renewed.values())
    best = min(in_race, key=order)
    rivals = [each for each in in_race if each is not best and not _worse(best, each, goal)]
    equal = [each for each in rivals if _same(best, each, goal)]
    for each in rivals:
        if each not in equal:
            outcome.notes.append(f"too close to call: {each.candidate.label} may be as good as {best.candidate.label}")
    if equal:
        words = plural(len(equal), "other combination")
        outcome.notes.append(f"equal by the goal: {words}, such as {equal[0].candidate.label}")
    if lab.targets and best.judgement.verdict != "met":
        outcome.nearest, outcome.binding = best, best.judgement.reason
        outcome.too_close = best.judgement.verdict == "too_close"
    else:
        outcome.best = best


def _by(goal: Goal) -> Callable[[Tried], tuple[int, float]]:
    rank = {"met": 0, "too_close": 1, "missed": 2}
    return lambda each: (rank[each.judgement.verdict], goal.value(each.judgement))


def _paired(best: Tried, other: Tried, goal: Goal) -> list[float] | None:
    """The goal's difference in each seed; None where a value is missing."""
    if goal.name is None:
        return None
    pairs = zip(best.judgement.runs, other.judgement.runs, strict=False)
    values = [(one.values.get(goal.name), two.values.get(goal.name)) for one, two in pairs]
    differences = [two - one for one, two in values if one is not None and two is not None and inf not in (one, two)]
    return differences if len(differences) == len(values) else None


def _worse(best: Tried, other: Tried, goal: Goal) -> bool:
    """Whether the other is worse for certain: by its verdict, or by the 95 % interval of the difference over seeds."""
    if other.judgement.verdict != best.judgement.verdict:
        return True
    differences = _paired(best, other, goal)
    if differences is None:
        return goal.value(other.judgement) > goal.value(best.judgement)
    half = half_width(differences)
    mean = sum(differences) / len(differences) * (-1 if goal.more else 1)
    return mean > (half or 0.0)


def _same(best: Tried, other: Tried, goal: Goal) -> bool:
    return goal.value(best.judgement) == goal.value(other.judgement)
