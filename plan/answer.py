"""answer: what a plan found, as plan.json and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from loratory.plan.answer_notes import answer_notes
from loratory.plan.autoscale_answer import autoscale_of, autoscale_words, held_words, money
from loratory.plan.candidate import ALONE, REPLICAS, Candidate, hardware_words, placement_words
from loratory.plan.details import Details
from loratory.plan.evaluate import built_of, workload_of
from loratory.plan.fleet import too_close_words
from loratory.plan.fleet_events import events_words
from loratory.plan.growth import requests_per_s
from loratory.plan.lab import Lab
from loratory.plan.measured_cost import gpus_mean, price_per_hour
from loratory.plan.outcome import Discarded, Growth, LoadCurve, PlanOutcome, Tried
from loratory.plan.searched import seeds_run
from loratory.plan.space import Base
from loratory.plan.verdict import Estimate, Judgement
from loratory.reports.number_text import count, plural, seconds
from loratory.reports.slo_target import SloTarget, value_words
from loratory.reports.stats import cleaned
from loratory.scenarios.plan_spec import PlanSpec

QUESTIONS = {
    "fleet": "the cheapest fleet that meets the SLO",
    "autoscale": "the cheapest bounds of an autoscaler that meet the SLO",
    "capacity": "the largest {grow} that meets the SLO",
    "settings": "the settings with {goal}",
    "sensitivity": "what breaks first when the load grows",
}

ENGINE_KEYS = ("max_loras", "max_cpu_loras", "max_lora_rank", "max_num_seqs", "max_num_batched_tokens")
"""Engine settings that a best candidate always names."""


def answer(
    base: Base, lab: Lab, outcome: PlanOutcome, around: Details, goal: str, setup: Mapping[str, str]
) -> dict[str, Any]:
    """The plan as plain values (docs/planning.md has the keys); floats are rounded to nine digits.

    ``goal``: of a plan that asks for settings, in words. ``setup``: facts by label (`loratory.plan.searched`).
    """
    scenario, spec = base.scenario, base.scenario.plan
    ids = {id(tried): index for index, tried in enumerate(outcome.tried)}
    best = outcome.best
    verdict = "met" if best is not None else "too_close" if outcome.too_close else "missed"
    if not lab.targets and best is not None:
        verdict = "met"
    question = QUESTIONS[spec.ask].format(
        grow="number of adapters" if spec.grow == "adapters" else "traffic", goal=goal
    )
    if happens := events_words(scenario):
        question += f", through {happens}"
    found = {
        "loratory": version("loratory"),
        "name": scenario.name,
        "ask": spec.ask,
        "goal": spec.goal,
        "question": f"{question}: {slo_words(lab.targets)}" if lab.targets else question,
        "answer": _sentence(base, lab, outcome, goal),
        "currency": spec.currency if spec.prices else None,
        "verdict": verdict,
        "feasible": {"met": True, "missed": False}.get(verdict),
        "binding": outcome.binding,
        "slo": [
            {"name": each.name, "words": each.words, "limit": each.limit, "sense": each.sense} for each in lab.targets
        ],
        "workload": _workload(base, lab),
        "setup": dict(setup),
        "best": None if best is None else _best(best, outcome, ids, spec),
        "autoscale": autoscale_of(outcome, spec),
        "candidates": [_candidate(index, tried, spec) for index, tried in enumerate(outcome.tried)],
        "discarded": [_discarded(each) for each in outcome.discarded],
        "curves": [_curve(each) for each in (*outcome.curves, *([around.curve] if around.curve else []))],
        "heat": _heat(around, lab),
        "sensitivity": [_growth(each) for each in (*outcome.growth, *around.growth)],
        "what_if": [
            {"label": words, "verdict": tried.judgement.verdict, "metrics": metrics_of(tried.judgement)}
            for words, tried in around.what_if
        ],
        "regret": None,
        "notes": [*outcome.notes, *answer_notes(base, lab, outcome)],
        "seeds": seeds_run(lab, outcome),
        **lab.facts,
    }
    result: dict[str, Any] = cleaned(found)
    return result


def slo_words(targets: Sequence[SloTarget]) -> str:
    """``TTFT p99 at most 2 s, TPOT p99 at most 50 ms``."""
    return ", ".join(target.words for target in targets)


def metrics_of(judgement: Judgement) -> dict[str, Any]:
    """The metrics of plan.json."""
    return {name: estimate.as_dict() for name, estimate in judgement.metrics.items()}


def _workload(base: Base, lab: Lab) -> dict[str, Any]:
    built = built_of(base.scenario)
    workload = workload_of(base.scenario, lab.seeds[0], built)
    last = float(workload.arrival[-1]) if len(workload) else 0.0
    if workload.concurrency is not None:
        return {"requests_per_s": None, "clients": workload.concurrency, "requests": len(workload)} | {
            "adapters": len(built.adapters),
            "duration_s": None,
        }
    return {
        "requests_per_s": requests_per_s(base.scenario, len(workload), last),
        "requests": len(workload),
        "adapters": len(built.adapters),
        "duration_s": base.scenario.workload.duration_s or last,
    }


def _best(best: Tried, outcome: PlanOutcome, ids: Mapping[int, int], spec: PlanSpec) -> dict[str, Any]:
    candidate = best.candidate
    engine = candidate.scenario.engine
    chosen = {key.removeprefix("engine."): value for key, value in candidate.settings if key.startswith("engine.")}
    place = next((index for index, tried in enumerate(outcome.tried) if _same(tried, best)), None)
    return {
        "candidate": ids.get(id(best), place),
        "replicas": candidate.replicas,
        "gpu": candidate.gpu,
        "gpus": candidate.gpus,
        "hardware": hardware_words(candidate.scenario),
        "engine": {key: getattr(engine, key) for key in ENGINE_KEYS} | chosen,
        "policy": candidate.policy,
        "router": candidate.scenario.cluster.router if candidate.replicas > 1 else None,
        "placement": _placement(candidate),
        "load": candidate.load,
        "gpus_mean": gpus_mean(best),
        "price_per_hour": price_per_hour(best, spec),
        "currency": spec.currency if spec.prices else None,
        "metrics": metrics_of(best.judgement),
    }


def _same(one: Tried, other: Tried) -> bool:
    return one.candidate is other.candidate or (
        one.candidate.scenario == other.candidate.scenario and one.candidate.policy == other.candidate.policy
    )


def _candidate(index: int, tried: Tried, spec: PlanSpec) -> dict[str, Any]:
    candidate, judgement = tried.candidate, tried.judgement
    return {
        "id": index,
        "set": candidate.chosen,
        "label": candidate.label,
        "replicas": candidate.replicas,
        "gpus": candidate.gpus,
        "gpu": candidate.gpu,
        "policy": candidate.policy,
        "router": candidate.scenario.cluster.router if candidate.replicas > 1 else None,
        "placement": _placement(candidate),
        "gpus_mean": gpus_mean(tried),
        "price_per_hour": price_per_hour(tried, spec),
        "load": candidate.load,
        "verdict": judgement.verdict,
        "margin": judgement.margin,
        "reason": judgement.reason,
        "first_missed": judgement.first_missed,
        "seeds": judgement.seeds,
        "stopped_early": judgement.stopped,
        "more_seeds": judgement.more_seeds,
        "metrics": metrics_of(judgement),
    }


def _placement(candidate: Candidate) -> str | None:
    placement = candidate.scenario.cluster.placement
    return None if placement is None or candidate.replicas == 1 else placement_words(placement.model_dump())


def _discarded(each: Discarded) -> dict[str, Any]:
    return {"label": each.label, "set": each.settings, "by": each.by, "reason": each.reason}


def _curve(curve: LoadCurve) -> dict[str, Any]:
    return {
        "label": curve.label,
        "x": curve.x,
        "largest": curve.largest,
        "missed_at": curve.missed_at,
        "points": [_point(x, tried) for x, tried in curve.points],
    }


def _point(x: float, tried: Tried) -> dict[str, Any]:
    return {"x": x, "verdict": tried.judgement.verdict, "metrics": metrics_of(tried.judgement)}


def _heat(around: Details, lab: Lab) -> dict[str, Any] | None:
    heat = around.heat
    if heat is None:
        return None
    return {
        "x": "engine.max_loras",
        "y": "adapters",
        "xs": heat.xs,
        "ys": heat.ys,
        "metric": lab.targets[0].name if lab.targets else "ttft_p99_s",
        "cells": [
            [
                None if tried is None else {"verdict": tried.judgement.verdict, "metrics": metrics_of(tried.judgement)}
                for tried in row
            ]
            for row in heat.cells
        ],
    }


def _growth(each: Growth) -> dict[str, Any]:
    return {
        "factor": each.factor,
        "now": each.now,
        "holds_to": each.holds_to,
        "breaks_at": each.breaks_at,
        "unit": each.unit,
        "breaks_first": each.breaks_first,
        "note": each.note,
        "points": [_point(x, tried) for x, tried in each.points],
    }


def _sentence(base: Base, lab: Lab, outcome: PlanOutcome, goal: str) -> str:
    """The answer in one sentence."""
    spec, best = base.scenario.plan, outcome.best
    if best is None:
        return _without(spec, outcome)
    candidate, judgement = best.candidate, best.judgement
    values = [
        _value(judgement.metrics[target.name], target) for target in lab.targets if target.name in judgement.metrics
    ]
    if spec.goal is not None and spec.goal not in {target.name for target in lab.targets} and values:
        values.insert(0, _metric_words(judgement, goal))
    load = _load_words(best, lab)
    said = f"{candidate.label}: {', '.join(values) or _metric_words(judgement, goal)} at {load}"
    if spec.ask == "autoscale" and (scale := base.scenario.cluster.autoscale) is not None:
        return f"{said}; {autoscale_words(outcome, spec, scale.least)}"
    if candidate.scenario.cluster.autoscale is not None:
        said += f", {held_words(best, spec)}"
    elif (price := candidate.price_per_hour(spec.prices)) is not None:
        said += f", {money(price, spec)}"
    if spec.ask == "fleet" and (lost := smaller(outcome, best)):
        said += f"; {lost}"
    if spec.ask == "capacity" and outcome.curves:
        curve = max(outcome.curves, key=lambda each: each.largest or 0.0)
        if curve.missed_at is not None:
            beyond = next(tried.judgement.verdict for x, tried in curve.points if x == curve.missed_at)
            verb = "missed" if beyond == "missed" else "too close to call"
            unit = " adapters" if curve.x == "adapters" else ""
            said += f"; {verb} at {count(curve.missed_at)}{unit}: {outcome.binding}"
    if spec.ask == "sensitivity" and outcome.binding:
        said += f"; {outcome.binding}"
    return said


def _without(spec: PlanSpec, outcome: PlanOutcome) -> str:
    if outcome.binding is not None and outcome.binding.startswith("plan.budget.requests"):
        return f"not known: {outcome.binding}"
    if outcome.too_close and outcome.nearest is not None:
        return f"{outcome.nearest.candidate.label}: {too_close_words(outcome.nearest.judgement)}"
    if spec.ask == "sensitivity" and outcome.nearest is not None:
        less = [f"{each.holds_to:.3g} {each.unit} the {each.factor}" for each in outcome.growth if each.holds_to]
        return f"the SLO is missed as it is: {outcome.binding}" + (
            f"; it is met at {' or '.join(less)}" if less else ""
        )
    near = "" if outcome.nearest is None else f"; nearest is {outcome.nearest.candidate.label}"
    return f"no candidate meets the SLO: {outcome.binding or 'none can run'}{near}"


def _value(estimate: Estimate, target: SloTarget) -> str:
    """``TTFT p99 1.4 s [1.2, 1.6]``."""
    said = f"{target.label} {value_words(estimate.mean, target.unit)}"
    if estimate.low is None or estimate.high is None:
        return said
    return f"{said} [{value_words(max(0.0, estimate.low), target.unit)}, {value_words(estimate.high, target.unit)}]"


def _metric_words(judgement: Judgement, goal: str) -> str:
    name = goal.rpartition(" ")[2]
    value = judgement.value(name) if name in judgement.metrics else judgement.value("ttft_p99_s")
    label = name if name in judgement.metrics else "ttft_p99_s"
    return f"{label} {seconds(value) if label.endswith('_s') and 'per_s' not in label else count(value)}"


def _load_words(best: Tried, lab: Lab) -> str:
    scenario = best.candidate.scenario
    built = built_of(scenario)
    workload = workload_of(scenario, lab.seeds[0], built)
    adapters = f" over {plural(len(built.adapters), 'adapter')}" if built.adapters else ""
    if workload.concurrency is not None:
        return f"{workload.concurrency:,} clients{adapters}"
    last = float(workload.arrival[-1]) if len(workload) else 0.0
    return f"{count(requests_per_s(scenario, len(workload), last))} requests/s{adapters}"


def smaller(outcome: PlanOutcome, best: Tried) -> str:
    """Why a fleet that is one replica smaller does not do: ``with 1 replica the SLO is missed: TTFT p99 ...``."""
    fewer = [
        tried
        for tried in outcome.tried
        if tried.candidate.replicas == best.candidate.replicas - 1 and tried.candidate.gpu == best.candidate.gpu
    ]
    same = [tried for tried in fewer if _without_size(tried.candidate) == _without_size(best.candidate)]
    nearest = min(same or fewer, key=lambda tried: tried.judgement.margin, default=None)
    if nearest is None:
        return ""
    small = nearest.candidate
    # with other settings than the answer's, the whole candidate is named
    fleet = hardware_words(small.scenario) if small.mixed else plural(small.replicas, "replica")
    verdict = "the SLO is missed" if nearest.judgement.verdict == "missed" else "it is too close to call"
    return f"with {fleet if same else small.label} {verdict}: {nearest.judgement.reason}"


def _without_size(candidate: Candidate) -> list[tuple[str, Any]]:
    """What a candidate sets of its engine and policy: a smaller fleet may have another router or placement, or none."""
    return [(key, value) for key, value in candidate.settings if key not in (REPLICAS, *ALONE)]
