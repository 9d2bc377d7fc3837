"""details: what a plan shows around its best candidate: a curve, a heat map, what-ifs, how far the load can grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loratory.errors import InputError
from loratory.plan.candidate import POLICY, REPLICAS, ROUTER, Candidate
from loratory.plan.capacity import load_of, loaded, unit_of
from loratory.plan.evaluate import built_of
from loratory.plan.growth import CannotGrowError, grown
from loratory.plan.lab import Lab
from loratory.plan.outcome import Growth, LoadCurve, PlanOutcome, Tried
from loratory.plan.sensitivity import growth
from loratory.plan.space import Base
from loratory.scenarios.plan_spec import BOUNDS, FACTORS

LOADS = (0.5, 0.75, 1.0, 1.25, 1.5)
"""Factors on the traffic at which the best candidate's curve is drawn."""

SLOTS = "engine.max_loras"


@dataclass(slots=True)
class Heat:
    """Candidates over numbers of slots (xs) and adapters (ys). A cell is None where the two cannot be combined."""

    xs: list[int] = field(default_factory=list)
    ys: list[int] = field(default_factory=list)
    cells: list[list[Tried | None]] = field(default_factory=list)


@dataclass(slots=True)
class Details:
    """What was tried around the best candidate."""

    curve: LoadCurve | None = None
    heat: Heat | None = None
    what_if: list[tuple[str, Tried]] = field(default_factory=list)
    growth: list[Growth] = field(default_factory=list)


def details(base: Base, lab: Lab, outcome: PlanOutcome) -> Details:
    """Try what lies around the best candidate, or without one around the nearest. Nothing here changes the answer."""
    found, centre = Details(), outcome.best or outcome.nearest
    if centre is None:
        return found
    candidate = centre.candidate
    asked: list[Candidate] = []
    curve = [(x, each) for x, each in _curve(candidate, lab.seeds)]
    heat = _heat(base, candidate)
    whats = list(_what_ifs(base, candidate))
    asked += [each for _, each in curve]
    asked += [each for row in heat.candidates for each in row if each is not None]
    asked += [each for _, each in whats]
    known = {
        t.candidate.label: t.judgement for t in outcome.tried if not t.judgement.stopped and t.candidate.load == 1.0
    }
    new = lab.judge_all("details", asked, stop_early=False, decide=False)
    judged = iter([known.get(a.label, j) if _as_planned(base, a) else j for a, j in zip(asked, new, strict=True)])
    points = [(load_of(each, "traffic", lab.seeds[0]), Tried(each, next(judged))) for _, each in curve]
    if len(points) > 1:
        found.curve = _with_largest(LoadCurve(candidate.label, unit_of(candidate, lab.seeds[0]), points))
    cells = [[None if each is None else Tried(each, next(judged)) for each in row] for row in heat.candidates]
    if cells:
        found.heat = Heat(heat.xs, heat.ys, cells)
    found.what_if = [(words, Tried(each, next(judged))) for words, each in whats]
    if outcome.best is not None and not outcome.growth and lab.targets:
        found.growth = growth(candidate, lab, base.scenario.plan.factors or FACTORS)
    return found


def _as_planned(base: Base, candidate: Candidate) -> bool:
    """Whether a candidate serves the traffic and adapters that the plan is about, as those of its label do."""
    same = candidate.scenario.workload == base.scenario.workload
    return same and candidate.scenario.adapters == base.scenario.adapters


def _with_largest(curve: LoadCurve) -> LoadCurve:
    """The curve with the largest load that meets the SLO, and the smallest above it that does not."""
    met = [x for x, tried in curve.points if tried.judgement.verdict == "met"]
    largest = max(met, default=None)
    beyond = [x for x, tried in curve.points if tried.judgement.verdict != "met" and x > (largest or 0.0)]
    return replace(curve, largest=largest, missed_at=min(beyond, default=None))


def _curve(candidate: Candidate, seeds: Sequence[int]) -> Iterator[tuple[float, Candidate]]:
    """The candidate under less and more traffic."""
    at = loaded(candidate, "traffic", seeds)
    for x in LOADS:
        try:
            yield x, at(x)
        except InputError:
            continue


@dataclass(slots=True)
class _Grid:
    xs: list[int] = field(default_factory=list)
    ys: list[int] = field(default_factory=list)
    candidates: list[list[Candidate | None]] = field(default_factory=list)


def _heat(base: Base, candidate: Candidate) -> _Grid:
    """Half, as many and twice as many slots and adapters as the candidate has."""
    engine, count = candidate.scenario.engine, len(built_of(candidate.scenario).adapters)
    if engine.memory != "slots" or not count:
        return _Grid()
    now = engine.max_loras
    slots = sorted({max(1, now // 2), now, 2 * now})
    rows: list[tuple[int, list[Candidate | None]]] = []
    for times in (0.5, 1.0, 2.0):
        row: list[Candidate | None] = []
        for each in slots:
            try:
                chosen = base.candidate({**candidate.chosen, REPLICAS: fleet_of(candidate), SLOTS: each})
                made = chosen.scenario if times == 1.0 else grown(chosen.scenario, "adapters", times)
                built_of(made)
                row.append(replace(chosen, scenario=made))
            except CannotGrowError:
                return _Grid()
            except InputError:
                row.append(None)
        rows.append((max(1, round(count * times)), row))
    rows = list(dict(rows).items())
    return _Grid(slots, [count for count, _ in rows], [row for _, row in rows])


def fleet_of(candidate: Candidate) -> Any:
    """A candidate's ``cluster.replicas`` as a setting."""
    return candidate.scenario.cluster.model_dump(exclude_unset=True).get("replicas", candidate.replicas)


def _what_ifs(base: Base, candidate: Candidate) -> Iterator[tuple[str, Candidate]]:
    """The best candidate with one thing changed: a policy, the router, a replica more or less, slots."""
    scenario, chosen = candidate.scenario, {**candidate.chosen, REPLICAS: fleet_of(candidate)}
    for policy in base.scenario.policies:
        if policy != candidate.policy:
            yield from _changed(base, chosen, {POLICY: policy}, f"policy {policy} instead of {candidate.policy}")
    yield from _bounds(base, candidate, chosen)
    for replicas in (
        () if candidate.mixed or scenario.cluster.autoscale else (candidate.replicas - 1, candidate.replicas + 1)
    ):
        if replicas >= 1:
            yield from _changed(
                base, chosen, {REPLICAS: replicas}, f"{replicas} replicas instead of {candidate.replicas}"
            )
    if candidate.replicas > 1:
        other = "lora_affinity" if scenario.cluster.router != "lora_affinity" else "least_loaded"
        yield from _changed(base, chosen, {ROUTER: other}, f"router {other} instead of {scenario.cluster.router}")
    if scenario.engine.memory == "slots" and scenario.adapters.known_count != 0:
        now = scenario.engine.max_loras
        for slots in (now // 2, now * 2):
            if slots >= 1:
                yield from _changed(base, chosen, {SLOTS: slots}, f"max_loras {slots} instead of {now}")


def _bounds(base: Base, candidate: Candidate, chosen: dict[str, Any]) -> Iterator[tuple[str, Candidate]]:
    """One replica more or less at one end of an autoscaler's bounds."""
    cluster = candidate.scenario.cluster
    if cluster.autoscale is None or candidate.mixed:
        return
    ends = (cluster.autoscale.least, cluster.autoscale.most)
    for place, step in ((0, -1), (0, 1), (1, -1), (1, 1)):
        least, most = changed = [end + step * (at == place) for at, end in enumerate(ends)]
        if 1 <= least <= most:
            begin = min(max(cluster.count, least), most)
            change = {**dict(zip(BOUNDS, changed, strict=True)), REPLICAS: begin}
            words = f"{('least', 'most')[place]} {changed[place]} instead of {ends[place]}"
            yield from _changed(base, chosen, change, words)


def _changed(base: Base, chosen: dict[str, Any], change: dict[str, Any], words: str) -> Iterator[tuple[str, Candidate]]:
    try:
        made = base.candidate({**chosen, **change})
        built_of(made.scenario)
    except InputError:
        return
    yield words, made
