"""fleet: the cheapest fleet that meets the SLO, over GPU types, numbers of replicas, settings, routers and policies."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations as pairs_of
from itertools import product
from math import inf
from typing import Any, TypeVar

from loratory.errors import InputError, several
from loratory.plan.bounds import Bound
from loratory.plan.candidate import GPU, REPLICAS, Candidate
from loratory.plan.fleet_events import too_few
from loratory.plan.lab import Lab
from loratory.plan.outcome import Discarded, PlanOutcome, Tried
from loratory.plan.prospects import Prospects, beyond_budget
from loratory.plan.space import Base, Settings, check_size, combinations, possible, space_of
from loratory.plan.verdict import Judgement
from loratory.scenarios.plan_spec import PlanSpec

K = TypeVar("K")


@dataclass(slots=True)
class Race:
    """What searches know of each other: the least cost at which the SLO is met so far, and what was tried."""

    least: float = inf
    tried: list[Tried] = field(default_factory=list)


def fleet(base: Base, lab: Lab, prospects: Prospects) -> PlanOutcome:
    """The cheapest fleet of the space that meets the SLO; among equally cheap ones that with the largest margin.

    Each combination of settings is a search over the number of replicas: up from the first number with a chance, in
    steps that double, then by halves; more replicas are taken to be no worse. A combination is left as soon as its next
    fleet would cost more than one that meets the SLO. With ``plan.mixed``, fleets of two GPU types follow.
    """
    spec = base.scenario.plan
    if not isinstance(base.scenario.cluster.replicas, int):
        raise InputError(
            "cluster.replicas is a list of kinds, but ask: fleet chooses the replicas: give a number there, and the "
            "GPU types in plan.space.gpu (with plan.mixed also for fleets of two types)"
        )
    if spec.mixed and base.scenario.cluster.replica_events:
        raise InputError(
            "plan.mixed is true, but cluster.events has replicas by number, which does not say of which GPU type they "
            "are: remove one of the two"
        )
    replicas, few = _enough(base, spec.replica_counts())
    space = space_of(base)
    check_prices(base, space.get(GPU, [base.scenario.gpu]), compared=True)
    check_size(space, spec.budget.candidates)
    settings = list(combinations(space))
    good, refused = possible(base, settings)
    outcome = PlanOutcome(
        None, discarded=[Discarded(each.settings, each.label, "settings", each.why) for each in refused]
    )
    if few:
        outcome.discarded.append(few)
    if not replicas:
        outcome.binding = few.reason if few else None
        return outcome
    race = Race()
    begins, bounds = starts(base, prospects, dict(enumerate(good)), replicas, outcome)
    searches = {
        index: search(base, partial(equal, good[index]), affordable, start, race)
        for index, (affordable, start) in begins.items()
    }
    found = list(lab.drive("fleets", searches).values())
    if spec.mixed:
        found += lab.drive("mixed fleets", _mixed_searches(base, good, replicas, race)).values()
    outcome.tried = list({tried.candidate.label: tried for tried in race.tried}.values())  # one replica needs no router
    met = [each for each in found if each is not None]
    if met:
        outcome.best = min(met, key=lambda tried: (cost_of(tried.candidate, spec), tried.judgement.margin))
        lowest = cost_of(outcome.best.candidate, spec)
        for tried in outcome.tried:
            if tried.judgement.verdict == "too_close" and cost_of(tried.candidate, spec) < lowest * (1 - 1e-9):
                outcome.notes.append(f"{tried.candidate.label} is cheaper and {too_close_words(tried.judgement)}")
    else:
        limits = limits_of(spec, f"{replicas[-1]} replicas, the most that plan.replicas allows")
        stands_in_the_way(outcome, bounds, limits)
    return outcome


def starts(
    base: Base, prospects: Prospects, settings: Mapping[K, Settings], replicas: Sequence[int], outcome: PlanOutcome
) -> tuple[dict[K, tuple[list[int], int]], list[Bound]]:
    """For each settings with a chance, the numbers of replicas within the budget, and the place of the first with a
    chance; and what stands in the way of the others. ``outcome`` is told what is not simulated."""
    found: dict[K, tuple[list[int], int]] = {}
    bounds: list[Bound] = []
    for key, each in settings.items():
        affordable = _affordable(base, each, replicas)
        if not affordable:
            least = base.candidate({**each, REPLICAS: replicas[0]})
            why = beyond_budget(least, base.scenario.plan)
            outcome.discarded.append(Discarded(each, least.label, "budget", why))
            continue
        start, discarded, bound = prospects.fewest(each, affordable)
        outcome.discarded += discarded
        if start is not None:
            found[key] = affordable, start
        elif bound is not None:
            bounds.append(bound)
    return found, bounds


def _enough(base: Base, replicas: Sequence[int]) -> tuple[list[int], Discarded | None]:
    """The numbers of replicas that the scenario's events allow; with the reason for which others are left out."""
    enough = [count for count in replicas if not too_few(base.scenario, count)]
    fewer = [count for count in replicas if count not in enough]
    if not fewer:
        return enough, None
    words = f"{fewer[-1]} replicas" if len(fewer) == 1 else f"{fewer[0]} to {fewer[-1]} replicas"
    return enough, Discarded({}, words, "settings", too_few(base.scenario, fewer[-1]))


def check_prices(base: Base, gpus: Sequence[str], compared: bool = False) -> None:
    """Raises `InputError` for a GPU without a price where the plan needs one: to compare GPUs, or for its budget."""
    spec = base.scenario.plan
    missing = [name for name in gpus if name not in (spec.prices or {})]
    if missing and compared and len(gpus) > 1:
        why = "several GPU types are compared by price"
    elif missing and (spec.budget.price_per_hour is not None or (compared and spec.prices)):
        why = "the plan goes by price"
    else:
        return
    raise InputError(f"plan.prices has no price for {several(missing)}: add it, because {why}")


def cost_of(candidate: Candidate, spec: PlanSpec) -> float:
    """What a fleet is compared by: its price an hour, or without prices its number of GPUs."""
    price = candidate.price_per_hour(spec.prices)
    return float(candidate.gpus) if price is None else price


def _affordable(base: Base, settings: Settings, replicas: Sequence[int]) -> list[int]:
    """The numbers of replicas within the budget."""
    budget, spec = base.scenario.plan.budget, base.scenario.plan
    some = base.candidate({**settings, REPLICAS: replicas[0]})
    each_gpus, price = some.gpus / some.replicas, some.price_per_hour(spec.prices)
    most_gpus = budget.gpus or inf
    most_price = inf if budget.price_per_hour is None or price is None else budget.price_per_hour * (1 + 1e-9)
    each_price = 0.0 if price is None else price / some.replicas
    return [count for count in replicas if count * each_gpus <= most_gpus and count * each_price <= most_price]


def equal(settings: Settings, count: int) -> Settings:
    """A fleet of so many equal replicas."""
    return {**settings, REPLICAS: count}


def _mixed(settings: Settings, first: Mapping[str, Any], other: str, count: int) -> Settings:
    """A fleet of a group of replicas and ``count`` of another GPU type."""
    return {**settings, REPLICAS: [dict(first), {"gpu": other, "count": count}]}


def _mixed_searches(
    base: Base, settings: Sequence[Settings], replicas: Sequence[int], race: Race
) -> dict[int, Generator[Candidate, Judgement, Tried | None]]:
    """For each pair of GPU types and each number of the first, a search over the number of the second.

    Only fleets that are no dearer than the cheapest of one type are tried.
    """
    spec = base.scenario.plan
    without = [{key: value for key, value in each.items() if key != GPU} for each in settings]
    plain = list({json.dumps(each): each for each in without}.values())
    gpus = list(dict.fromkeys(each[GPU] for each in settings))
    searches: dict[int, Generator[Candidate, Judgement, Tried | None]] = {}
    for each, (first, other) in product(plain, pairs_of(gpus, 2)):
        for count in replicas:
            fleets = partial(_mixed, each, {"gpu": first, "count": count}, other)
            least = base.candidate(fleets(replicas[0]))
            if cost_of(least, spec) > race.least * (1 + 1e-9) or beyond_budget(least, spec):
                break
            within = [many for many in replicas if not beyond_budget(base.candidate(fleets(many)), spec)]
            searches[len(searches)] = search(base, fleets, within, 0, race)
    return searches


def search(
    base: Base, fleets: Callable[[int], Settings], replicas: Sequence[int], start: int, race: Race
) -> Generator[Candidate, Judgement, Tried | None]:
    """The smallest of ``replicas`` at which the SLO is met, as long as that is no dearer than what others found."""
    spec = base.scenario.plan
    missed, met = start - 1, len(replicas)
    best: Tried | None = None
    step = 1
    while missed + 1 < met:
        cheap = [
            place
            for place in range(missed + 1, met)
            if cost_of(base.candidate(fleets(replicas[place])), spec) <= race.least * (1 + 1e-9)
        ]
        if not cheap:
            break
        place = min(missed + step, cheap[-1]) if best is None else min((missed + met) // 2, cheap[-1])
        step *= 2
        candidate = base.candidate(fleets(replicas[place]))
        judgement = yield candidate
        tried = Tried(candidate, judgement)
        race.tried.append(tried)
        if judgement.verdict == "met":
            best, met = tried, place
            race.least = min(race.least, cost_of(candidate, spec))
        else:
            missed = place
    return best


def stands_in_the_way(outcome: PlanOutcome, bounds: Sequence[Bound], limits: str) -> None:
    """Say of an outcome without a best what came nearest, and what binds; ``limits``: within which was looked."""
    outcome.nearest = min(
        outcome.tried, key=lambda each: (each.judgement.margin, -each.candidate.replicas), default=None
    )
    outcome.too_close = any(each.judgement.verdict == "too_close" for each in outcome.tried)
    never = [bound for bound in bounds if not bound.replicas_help]
    if outcome.nearest is not None:
        outcome.binding = f"{outcome.nearest.judgement.reason}, within {limits}"
    elif never:
        outcome.binding = never[0].reason
    elif bounds:
        outcome.binding = f"{bounds[0].reason}, within {limits}"
    elif outcome.discarded:
        outcome.binding = outcome.discarded[0].reason


def limits_of(spec: PlanSpec, most: str) -> str:
    """What bounds the fleets: the budget, or else ``most``."""
    budget = spec.budget
    if budget.price_per_hour is not None:
        return f"plan.budget.price_per_hour {budget.price_per_hour:g}"
    if budget.gpus is not None:
        return f"plan.budget.gpus {budget.gpus}"
    return most


def too_close_words(judgement: Judgement) -> str:
    """``too close to call: TTFT p99 is ...; about 9 more seeds would decide``."""
    many = judgement.more_seeds
    more = "" if many is None else f"; about {many} more seeds would decide" if many <= 100 else ", at the limit itself"
    return f"too close to call: {judgement.reason}{more}"
