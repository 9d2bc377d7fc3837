"""autoscale: the cheapest bounds of an autoscaler that meet the SLO, beside the cheapest fleet that stays."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from functools import partial
from math import ceil

from loratory.errors import InputError
from loratory.plan.bounds import Bound
from loratory.plan.candidate import GPU, REPLICAS, Candidate, hardware_words, words_of
from loratory.plan.evaluate import built_of, workload_of
from loratory.plan.fleet import (
    Race,
    check_prices,
    equal,
    limits_of,
    search,
    stands_in_the_way,
    starts,
    too_close_words,
)
from loratory.plan.lab import Lab
from loratory.plan.measured_cost import may_be_cheaper, run_cost
from loratory.plan.outcome import Discarded, PlanOutcome, Tried
from loratory.plan.prospects import Prospects, beyond_budget
from loratory.plan.space import TARGET, Base, Settings, check_size, combinations, possible, space_of
from loratory.plan.verdict import Judgement
from loratory.reports.number_text import plural
from loratory.scenarios.plan_spec import AUTOSCALE, BOUNDS, PlanSpec

LARGER = (1.0, 1.5, 2.0)
"""How many times the fixed fleet's replicas an autoscaled one may have: more catch up with a burst."""


def autoscale(base: Base, lab: Lab, prospects: Prospects) -> PlanOutcome:
    """The least cost, in GPU hours or their price, over the bounds within ``cluster.autoscale``'s least and most.

    First the fewest replicas are found that meet the SLO without an autoscaler, for each combination of settings. A
    smaller ``most`` is not tried: more replicas are taken to be no worse. For that many and for up to twice as many the
    smallest ``least`` is found that meets the SLO, by halves; a smaller one is taken to cost no more. What a candidate
    costs is measured: the fixed fleet is the answer where no bounds cost less.
    """
    spec, scale = base.scenario.plan, base.scenario.cluster.autoscale
    assert scale is not None
    if not isinstance(base.scenario.cluster.replicas, int):
        raise InputError(
            "cluster.replicas is a list of kinds, but ask: autoscale chooses the replicas: give a number there, and "
            "the GPU types in plan.space.gpu"
        )
    numbers = list(range(scale.least, scale.most + 1))
    space = space_of(base)
    check_prices(base, space.get(GPU, [base.scenario.gpu]), compared=True)
    check_size(space, spec.budget.candidates)
    good, refused = possible(base, list(combinations(space)))
    outcome = PlanOutcome(
        None, discarded=[Discarded(each.settings, each.label, "settings", each.why) for each in refused]
    )
    fixed, bounds = _fixed(base, lab, prospects, good, numbers, outcome)
    met = [each for each in fixed.values() if each is not None]
    if not met:
        limits = limits_of(spec, f"{plural(scale.most, 'replica')}, the most that cluster.autoscale allows")
        stands_in_the_way(outcome, bounds, limits)
        return outcome
    outcome.fixed = min(met, key=lambda each: (run_cost(each, spec), each.judgement.margin))
    race = Race(run_cost(outcome.fixed, spec))
    searches = {}
    for index, each in enumerate(good):
        found = fixed[_key(each)]
        if found is not None:
            searches[index] = _bounds(base, each, numbers, found, race, _hours(base, lab))
        elif fixed_seen := [tried for tried in outcome.tried if _key(tried.candidate.chosen) == _key(each)]:
            outcome.discarded.append(_hopeless(base, each, fixed_seen))
    scaled = [tried for some in lab.drive("bounds", searches).values() for tried in some]
    outcome.tried += race.tried
    _choose(outcome, [*met, *scaled], spec, space.get(TARGET, []))
    return outcome


def _fixed(
    base: Base,
    lab: Lab,
    prospects: Prospects,
    settings: Sequence[Settings],
    numbers: Sequence[int],
    outcome: PlanOutcome,
) -> tuple[dict[str, Tried | None], list[Bound]]:
    """By `_key` of settings, the fewest replicas that meet the SLO without an autoscaler; None where none do."""
    plain = {_key(each): _without_scale(each) for each in settings}
    found: dict[str, Tried | None] = dict.fromkeys(plain)
    begins, bounds = starts(base, prospects, plain, numbers, outcome)
    races = {key: Race() for key in begins}  # one each: a fleet that is dearer may be cheaper with an autoscaler
    searches = {
        key: search(base, partial(equal, plain[key]), affordable, start, races[key])
        for key, (affordable, start) in begins.items()
    }
    found |= lab.drive("fixed fleets", searches)
    every = [tried for race in races.values() for tried in race.tried]
    outcome.tried = list({tried.candidate.label: tried for tried in every}.values())  # one replica needs no router
    return found, bounds


def _without_scale(settings: Settings) -> Settings:
    """The settings of a fleet that stays."""
    return {AUTOSCALE: None} | {key: value for key, value in settings.items() if not key.startswith(AUTOSCALE)}


def _key(settings: Settings) -> str:
    """Settings that differ in the autoscaler alone have the same fixed fleet."""
    return json.dumps({key: value for key, value in _without_scale(settings).items() if key != REPLICAS})


def _hours(base: Base, lab: Lab) -> float:
    """Hours that every run takes at least, which are those of its arrivals; of the shortest seed."""
    built = built_of(base.scenario)
    loads = [workload_of(base.scenario, seed, built) for seed in lab.seeds[: lab.first]]
    moved = any(load.concurrency is not None or load.after is not None for load in loads)
    return 0.0 if moved else min(float(load.arrival[-1]) for load in loads) / 3600


def _scaled(base: Base, settings: Settings, least: int, most: int) -> Candidate:
    """A candidate within such bounds; it begins with ``cluster.replicas``, or with the bound next to it."""
    begin = min(max(base.scenario.cluster.count, least), most)
    return base.candidate({**settings, **dict(zip(BOUNDS, (least, most), strict=True)), REPLICAS: begin})


def _bounds(
    base: Base, settings: Settings, numbers: Sequence[int], fixed: Tried, race: Race, hours: float
) -> Generator[Candidate, Judgement, list[Tried]]:
    """For each ``most`` the smallest ``least`` that meets the SLO; a larger ``most`` only for a smaller ``least``."""
    spec, fewest = base.scenario.plan, fixed.candidate.replicas
    price = (spec.prices or {}).get(fixed.candidate.gpu, 1.0) if spec.prices else 1.0
    floor = price * fixed.candidate.gpus / fewest * hours
    smaller = [number for number in numbers if number < fewest]
    found: list[Tried] = []
    for most in dict.fromkeys(min(ceil(fewest * times), numbers[-1]) for times in LARGER):
        low, high = 0, len(smaller)
        clipped = False
        if beyond_budget(_scaled(base, settings, numbers[0], most), spec):
            break
        while low < high and smaller[high - 1] * floor >= race.least:
            high -= 1  # so many replicas alone cost more than what was found
        place = low
        while low < high:
            candidate = _scaled(base, settings, smaller[place], most)
            judgement = yield candidate
            tried = Tried(candidate, judgement)
            race.tried.append(tried)
            clipped = clipped or _reached(judgement, most)
            if judgement.verdict == "met":
                found.append(tried)
                race.least = min(race.least, run_cost(tried, spec))
                high = place
            else:
                low = place + 1
            place = (low + high) // 2
        smaller = smaller[:high]
        if not clipped:
            break  # with a larger ``most`` the runs would be the same
    return found


def _reached(judgement: Judgement, most: int) -> bool:
    """Whether ``most`` may have bounded a run; of one that was stopped that is not known."""
    peaks = [run.values.get("replicas_peak") for run in judgement.runs]
    return any(peak is None or peak >= most for peak in peaks)


def _hopeless(base: Base, settings: Settings, fixed: Sequence[Tried]) -> Discarded:
    """Settings whose largest fixed fleet misses the SLO."""
    largest = max(fixed, key=lambda tried: tried.candidate.replicas)
    label = ", ".join([hardware_words(base.with_settings(settings)), *words_of(settings, largest.candidate.replicas)])
    why = (
        f"{plural(largest.candidate.replicas, 'replica')} that stay do not meet the SLO, and fewer at times are taken "
        f"to be no better: {largest.judgement.reason}"
    )
    return Discarded(settings, label, "fixed fleet", why)


def _choose(outcome: PlanOutcome, met: Sequence[Tried], spec: PlanSpec, targets: Sequence[float]) -> None:
    """The cheapest of those that meet the SLO, and notes on those that may be as cheap."""
    best = outcome.best = min(met, key=lambda each: (run_cost(each, spec), each.judgement.margin))
    rivals = [each for each in met if each is not best and may_be_cheaper(each, best, spec)]
    if rivals:
        outcome.notes.append(
            f"too close to call by cost: {rivals[0].candidate.label}"
            f"{f' and {len(rivals) - 1} others' if len(rivals) > 1 else ''} may cost as little"
        )
    chosen = best.candidate.chosen.get(TARGET)
    if len(targets) > 1 and best is not outcome.fixed and chosen in (min(targets), max(targets)):
        end = "least" if chosen == min(targets) else "largest"
        outcome.notes.append(
            f"target {chosen:g} is the {end} that was tried: others may cost less (plan.space has {TARGET})"
        )
    open_ = [each for each in outcome.tried if each.judgement.verdict == "too_close"]
    cheaper = sorted(
        (each for each in open_ if run_cost(each, spec) < run_cost(best, spec)), key=lambda each: run_cost(each, spec)
    )
    if cheaper:
        more = f"; so are {len(cheaper) - 1} others" if len(cheaper) > 1 else ""
        words = too_close_words(cheaper[0].judgement)
        outcome.notes.append(f"{cheaper[0].candidate.label} is cheaper and {words}{more}")
