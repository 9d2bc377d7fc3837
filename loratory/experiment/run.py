"""run: a scenario under each of its policies and seeds, on one backend, into one result folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from loratory.errors import InputError
from loratory.experiment.backend import Backend, Simulation, Task
from loratory.experiment.clairvoyant import CLAIRVOYANT
from loratory.experiment.cores import sensible_jobs
from loratory.experiment.interruption import interruptible
from loratory.experiment.notes.run_description import setup
from loratory.experiment.notes.seeds import disagreements
from loratory.experiment.prepare import Prepared, prepare
from loratory.experiment.runner import Runner, Share, identities, reports_of
from loratory.reports.folder import ResultFolder
from loratory.reports.regret import regret_of
from loratory.reports.summary import RunReport, summary_of
from loratory.scenarios.load import dump
from loratory.scenarios.schema import Scenario
from loratory.serving.policy_watch import POLICY_TIMEOUT_S

TIMELINE_EVENTS = 20_000
"""About how many trace events timeline.json keeps, shared among the runs."""

Progress = Callable[[str, int, int], None]


def run_scenario(
    scenario: Scenario,
    out: Path | str | None = None,
    *,
    jobs: int | None = 1,
    decisions: bool = True,
    progress: Progress | None = None,
    policy_timeout_s: float = POLICY_TIMEOUT_S,
    source: str | None = None,
    regret: bool = False,
) -> dict[str, Any]:
    """Simulate every policy and seed of a scenario; returns the summary (docs/reports.md).

    With ``out`` the result folder is written there, whole or not at all. ``jobs`` processes share the runs, None for as
    many as save time on this machine (`loratory.experiment.cores`); the results do not depend on it.
    ``progress(policy, done, total)`` is called after each run. ``source`` names the scenario's file in errors. With
    ``regret`` each seed is also run under a policy that knows the future, and the summary says how far the others are
    from it. Raises `InputError` for a scenario that cannot run and a folder that cannot be written, `PolicyError` when
    a policy fails, exits, or takes longer than ``policy_timeout_s`` for one answer (see
    `loratory.serving.policy_watch`), and `KeyboardInterrupt` on Ctrl-C; in each case nothing is left over.
    """
    out = None if out is None else Path(out)
    prepared = prepare(scenario, policy_timeout_s, source)
    return run_prepared(prepared, out, jobs=jobs, decisions=decisions, progress=progress, regret=regret)


def run_prepared(
    prepared: Prepared,
    out: Path | ResultFolder | None = None,
    *,
    jobs: int | None = 1,
    decisions: bool = True,
    progress: Progress | None = None,
    backend: Backend | None = None,
    regret: bool = False,
) -> dict[str, Any]:
    """`run_scenario` for a scenario that has been prepared, on ``backend``: by default the simulator.

    ``out`` may be a result folder that has been entered; then its caller leaves it.
    """
    backend = backend or Simulation()
    if regret and prepared.built.mixed:
        raise InputError(
            "--regret needs replicas of one kind, because what knows the future reckons with one cost model: leave it "
            "out, or give cluster.replicas as a number"
        )
    with ExitStack() as stack:
        stack.enter_context(interruptible())
        folder = stack.enter_context(ResultFolder(out)) if isinstance(out, Path) else out
        shares = shares_of(prepared, folder, decisions, regret)
        runner = Runner(prepared.policies, backend, () if folder is None else folder.leavings)
        reports: dict[int, RunReport] = {}
        for place, report in reports_of(shares, runner, sensible_jobs([prepared.scenario]) if jobs is None else jobs):
            reports[place] = report
            if progress is not None:
                progress(report.info.policy, len(reports), len(shares))
        return conclude(prepared, [reports[place] for place in range(len(shares))], folder, backend)


def shares_of(
    prepared: Prepared, folder: ResultFolder | None, decisions: bool = True, regret: bool = False
) -> list[Share]:
    """The runs of a scenario, each policy with each seed, which write into ``folder``.

    With ``regret`` the clairvoyant's runs follow, which write nothing.
    """
    scenario = prepared.scenario
    decided_by = [policy.decides_by for policy in prepared.policies.values()]
    events = TIMELINE_EVENTS // len(scenario.policies)
    timeout_s = prepared.policy_timeout_s
    tasks = [
        Task(
            scenario,
            policy,
            seed,
            None if folder is None else folder.run_folder(policy, seed),
            decisions,
            0 if folder is None or seed != scenario.seeds[0] else events,
            timeout_s,
            regret,
        )
        for policy in scenario.policies
        for seed in scenario.seeds
    ]
    if regret:
        tasks += [Task(scenario, CLAIRVOYANT, seed, None, False, 0, timeout_s, True) for seed in scenario.seeds]
    return [Share(task, prepared.built, decided_by) for task in tasks]


def conclude(
    prepared: Prepared, every: Sequence[RunReport], folder: ResultFolder | None, backend: Backend
) -> dict[str, Any]:
    """Write what the runs of a scenario, in the order of `shares_of`, leave beside their records; returns the summary.

    Raises `InputError` for a folder that cannot be written.
    """
    scenario, built = prepared.scenario, prepared.built
    own = len(scenario.policies) * len(scenario.seeds)
    reports, clairvoyant = every[:own], every[own:]
    distance = regret_of([r.run for r in reports], [r.run for r in clairvoyant]) if clairvoyant else None
    for policy, sentence in disagreements([report.run for report in reports]).items():
        for report in reports:
            if report.run["policy"] == policy:
                report.run["warnings"].append(sentence)
    facts = setup(prepared, None if backend.name == "sim" else backend.about)
    if folder is None:
        return summary_of([report.run for report in reports], facts, distance)
    return folder.write(
        reports,
        title=scenario.name,
        description=scenario.description,
        setup=facts,
        scenario_yaml=dump(scenario),
        run_info={
            "memory": None if built.memory is None else built.memory.items(),
            "cost": "; ".join(dict.fromkeys(kind.cost.source for kind in built.kinds)),
            "adapters": [{"adapter": name, **identity} for name, identity in identities(built).items()],
            **backend.about,
        },
        regret=distance,
    )
