"""searched: the setup of a plan in words: its answer's, what that was chosen from, and the seeds that ran."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from loratory.errors import InputError, several
from loratory.experiment.notes.run_description import cost_words, known_error_words, setup
from loratory.experiment.policy_spec import policy_factory
from loratory.experiment.prepare import Prepared
from loratory.plan.candidate import PLACEMENT, REPLICAS, Candidate, placement_words
from loratory.plan.evaluate import built_of
from loratory.plan.lab import Lab
from loratory.plan.outcome import PlanOutcome
from loratory.plan.space import Base, space_of
from loratory.scenarios.schema import Scenario
from loratory.sim.cost import CostModel

_MODELS = {"model", "gpu", "engine", "cost", "memory", "tiers"}
"""Sections of a scenario on which cost models depend, besides the kinds of its replicas."""


def searched(base: Base, prepared: Prepared, lab: Lab, outcome: PlanOutcome) -> dict[str, str]:
    """`setup` of the answer, or else of the nearest candidate or the scenario, with what a plan adds to it.

    ``searched``: what varied. Cost models, their known errors and policies are those of all candidates, and seeds those
    that ran. Traffic and adapters are as the scenario gives them, whatever load the answer bears.
    """
    chosen = outcome.best or outcome.nearest
    shown = prepared if chosen is None else _prepared(prepared, chosen.candidate)
    candidates = [*_candidates(base, outcome)]
    policies = dict.fromkeys(each.policy for each in candidates) or prepared.policies
    made = {spec: prepared.policies.get(spec) or policy_factory(spec, base.policy_timeout_s) for spec in policies}
    seeds = seeds_run(lab, outcome)
    scenario = shown.scenario.model_copy(update={"seeds": seeds})
    facts = setup(replace(shown, scenario=scenario, policies=made))
    if len(seeds) > lab.first:
        facts["seeds"] += f"; {lab.first} of each candidate, and more while its verdict was open"
    costs = [*_costs([each.scenario for each in candidates] or [scenario])]
    facts |= {"cost model": cost_words(scenario, costs), "known error": known_error_words(costs)}
    varied = _varied(base)
    return {**({"searched": varied} if varied else {}), **{label: text for label, text in facts.items() if text}}


def seeds_run(lab: Lab, outcome: PlanOutcome) -> list[int]:
    """The seeds that candidates were run with."""
    return list(lab.seeds[: max((tried.judgement.seeds for tried in outcome.tried), default=lab.first)])


def _prepared(prepared: Prepared, candidate: Candidate) -> Prepared:
    """A candidate as what is described, under the load of the scenario."""
    scenario, built = candidate.scenario, built_of(candidate.scenario)
    if candidate.load != 1.0:
        given = prepared.scenario
        scenario = scenario.model_copy(update={"workload": given.workload, "adapters": given.adapters})
        built = replace(built, adapters=prepared.built.adapters)
    return replace(prepared, scenario=scenario, built=built)


def _candidates(base: Base, outcome: PlanOutcome) -> Iterator[Candidate]:
    """Those that were simulated; where none was, those that a calculation ruled out."""
    chosen = [each for each in (outcome.best, outcome.nearest, outcome.fixed) if each is not None]
    if simulated := [*chosen, *outcome.tried]:
        yield from (each.candidate for each in simulated)
        return
    for each in outcome.discarded:
        try:
            candidate = base.candidate(each.settings)
            built_of(candidate.scenario)
        except InputError:
            continue
        yield candidate


def _costs(scenarios: Sequence[Scenario]) -> Iterator[CostModel]:
    """The cost models of all kinds of replicas; scenarios that have the same are built once."""
    different = {}
    for scenario in scenarios:
        kinds = [group.model_dump(mode="json", exclude={"count"}) for group in scenario.cluster.groups]
        different[json.dumps([scenario.model_dump(mode="json", include=_MODELS), kinds])] = scenario
    for scenario in different.values():
        yield from (kind.cost for kind in built_of(scenario).kinds)


def _varied(base: Base) -> str:
    """``gpu h100-80gb, l40s; max_loras 16, 32; 1 to 8 replicas, also of two GPU types``; empty where nothing does."""
    spec = base.scenario.plan
    if spec.ask == "sensitivity":
        return ""
    parts = [f"{_short(key)} {several(map(_text, values), 12)}" for key, values in _several_values(base)]
    if spec.ask == "fleet":
        counts = spec.replica_counts()
        run = counts == tuple(range(counts[0], counts[-1] + 1)) and len(counts) > 2
        words = f"{counts[0]} to {counts[-1]}" if run else several(counts, 12)
        within = spec.budget.gpus is not None or spec.budget.price_per_hour is not None
        also = ", also of two GPU types" if spec.mixed else ""
        parts.append(f"{words} replicas{also}{', within the budget' if within else ''}")
    elif spec.ask == "autoscale" and (scale := base.scenario.cluster.autoscale) is not None:
        parts.append(f"{scale.least} to {scale.most} replicas")
    return "; ".join(parts)


def _several_values(base: Base) -> Iterator[tuple[str, list[Any]]]:
    for key, values in space_of(base).items():
        if len(values) > 1 and key != REPLICAS:
            yield key, [placement_words(value) for value in values] if key == PLACEMENT else values


def _short(key: str) -> str:
    return key.removeprefix("engine.").removeprefix("cluster.").removeprefix("autoscale.")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
