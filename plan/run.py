"""run: plan_scenario, from a scenario to the answer and its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loratory.errors import InputError
from loratory.experiment.interruption import interruptible
from loratory.experiment.prepare import prepare
from loratory.plan.answer import answer
from loratory.plan.autoscale import autoscale
from loratory.plan.candidate import GPU, stays
from loratory.plan.capacity import capacity
from loratory.plan.details import Details, details
from loratory.plan.evaluate import built_of
from loratory.plan.flags import flags
from loratory.plan.fleet import check_prices, fleet
from loratory.plan.lab import BudgetSpentError, Lab, Progress
from loratory.plan.measure import targets_of
from loratory.plan.outcome import PlanOutcome
from loratory.plan.page import page
from loratory.plan.pools import pool
from loratory.plan.prospects import Prospects
from loratory.plan.regret import regret
from loratory.plan.searched import searched
from loratory.plan.sensitivity import sensitivity
from loratory.plan.settings import Goal, goal_of, settings
from loratory.plan.space import Base, space_of
from loratory.plan.store import EVALUATIONS, LOCK, Store
from loratory.plan.unfinished import unfinished
from loratory.reports.slo_target import SloTarget
from loratory.reports.stats import cleaned
from loratory.scenarios.load import dump
from loratory.scenarios.plan_spec import AUTOSCALE, PlanSpec
from loratory.scenarios.schema import Scenario
from loratory.sim.catalogue import gpu

PLAN, PAGE, BEST = "plan.json", "plan.html", "best.yaml"
FILES = (PLAN, PAGE, BEST, EVALUATIONS, LOCK)
"""What a plan's folder holds."""


def plan_scenario(
    scenario: Scenario | Base,
    out: Path | str | None = None,
    *,
    jobs: int = 1,
    ray: str | None = None,
    discard: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Answer the question of ``scenario.plan`` by simulation; returns what plan.json holds (docs/planning.md).

    With ``out``, that folder gets plan.json, plan.html, best.yaml, and evaluations.jsonl with the result of each run. A
    plan that was interrupted there goes on where it was. ``jobs`` processes share the runs, or with ``ray`` (``auto``
    or an address) the workers of a Ray cluster; the plan is the same but for ``cpu_s``. Without ``discard``, candidates
    that cannot meet the SLO by calculation are simulated nevertheless. Raises `InputError` for a scenario that cannot
    be planned and a folder that cannot be written, and what a run raises (`loratory.run_scenario`).
    """
    base = scenario if isinstance(scenario, Base) else Base.of(scenario)
    _check_changes(base)
    folder = None if out is None else Path(out)
    if folder is not None:
        check_plan_folder(folder)
    prepared = prepare(base.scenario, base.policy_timeout_s, base.source)
    targets = targets_of(base.scenario, prepared.built)
    if not targets and base.scenario.plan.ask != "settings":
        raise InputError(
            f"{base.source}: plan.ask is {base.scenario.plan.ask}, which needs an SLO: add one, such as "
            "slo: {ttft_p99_s: 2.0}"
        )
    goal = goal_of(base, targets) if base.scenario.plan.ask == "settings" else Goal(None)
    with interruptible(), Store.at(folder) as store, pool(jobs, ray) as workers:
        lab = _lab(base, targets, store, workers, progress)
        outcome, around = _ask(base, lab, goal, discard)
        found = answer(base, lab, outcome, around, goal.words, searched(base, prepared, lab, outcome))
        best = None if outcome.best is None else outcome.best.candidate.scenario
        if best is not None and stays(best) and base.scenario.plan.details and not lab.spent:
            policies = dict.fromkeys([best.policies[0], *base.scenario.policies])
            found["regret"] = cleaned(regret(best, policies, lab.seeds[: lab.first], 1 if ray else jobs))
        found["flags"] = {} if best is None else flags(best, built_of(best))
        if folder is not None:
            _write(folder, found, best)
    return found


def _check_changes(base: Base) -> None:
    """Raises `InputError` for a cluster that changes in a way that the question cannot be asked of."""
    cluster, plan, name = base.scenario.cluster, base.scenario.plan, base.source
    scaled = [key for key in plan.space or () if key.startswith(f"{AUTOSCALE}.")]
    if cluster.autoscale is None:
        if plan.ask == "autoscale":
            raise InputError(
                f"{name}: plan.ask is autoscale, but there is no cluster.autoscale: add it, such as "
                "{least: 1, most: 8, target: 20}"
            )
        if scaled:
            raise InputError(f"{name}: plan.space has {scaled[0]}, but there is no cluster.autoscale: add it")
    elif cluster.replica_events:
        raise InputError(
            f"{name}: cluster.events has replicas beside cluster.autoscale, but whether an event changes anything then "
            "depends on the candidate, so that they cannot be compared: remove one of the two"
        )
    elif plan.ask == "fleet":
        raise InputError(
            f"{name}: cluster.autoscale is given, but plan.ask is fleet, which is of fleets that stay: set plan.ask to "
            "autoscale, or remove cluster.autoscale"
        )


def _lab(base: Base, targets: Sequence[SloTarget], store: Store, workers: Any, progress: Progress | None) -> Lab:
    spec, seeds = base.scenario.plan.seeds, base.scenario.seeds
    following = iter(range(max(seeds) + 1, max(seeds) + 1 + spec.most))
    return Lab(
        workers,
        store,
        targets,
        [*seeds, *following][: max(spec.most, 1)],
        spec.first,
        spec.most,
        base.policy_timeout_s,
        base.scenario.plan.budget.requests,
        progress or (lambda what, done, total: None),
    )


def _ask(base: Base, lab: Lab, goal: Goal, discard: bool) -> tuple[PlanOutcome, Details]:
    for name in base.scenario.plan.prices or ():
        try:
            gpu(name)
        except InputError as error:
            raise InputError(f"plan.prices: {error}") from error
    check_prices(base, space_of(base).get(GPU, [base.scenario.gpu]))
    prospects = Prospects(base, lab.seeds[: lab.first], discard)
    questions: Mapping[str, Callable[[], PlanOutcome]] = {
        "fleet": lambda: fleet(base, lab, prospects),
        "autoscale": lambda: autoscale(base, lab, prospects),
        "capacity": lambda: capacity(base, lab, prospects),
        "settings": lambda: settings(base, lab, prospects, goal),
        "sensitivity": lambda: sensitivity(base, lab, prospects),
    }
    try:
        outcome = questions[base.scenario.plan.ask]()
    except BudgetSpentError as error:
        return unfinished(base.scenario.plan, lab, goal, str(error)), Details()
    around = Details()
    if base.scenario.plan.details:
        try:
            around = details(base, lab, outcome)
        except BudgetSpentError as error:
            outcome.notes.append(f"{error}: curves, heat map and what-ifs are left out")
    return outcome, around


def check_plan_folder(folder: Path) -> None:
    """Raises `InputError` for a folder that holds anything that no plan wrote."""
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file: name a folder with --out")
        foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in FILES) if folder.exists() else []
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): name another folder with --out") from error
    if foreign:
        raise InputError(
            f"{folder} holds {foreign[0]!r}, which no plan wrote there: name another folder with --out, or move it away"
        )


def _write(folder: Path, found: dict[str, Any], best: Scenario | None) -> None:
    """The files of a plan, each whole or not at all."""
    texts = {PLAN: json.dumps(found, indent=1) + "\n", PAGE: page(found)}
    if best is not None:
        texts[BEST] = dump(best.model_copy(update={"plan": PlanSpec()}))
    else:
        (folder / BEST).unlink(missing_ok=True)
    for name, text in texts.items():
        staged = folder / f".{name}"
        staged.write_text(text, encoding="utf-8")
        os.replace(staged, folder / name)
