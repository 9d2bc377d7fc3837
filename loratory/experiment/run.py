"""run: a scenario under each of its policies and seeds, on one backend, into one result folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.errors import InputError, shortened
from loratory.experiment.backend import Backend, Simulation, Task
from loratory.experiment.clairvoyant import CLAIRVOYANT, ClairvoyantFactory
from loratory.experiment.interruption import interruptible
from loratory.experiment.lower_bound import lower_bound
from loratory.experiment.notes.advice import advise
from loratory.experiment.notes.decode_ceiling import ceiling
from loratory.experiment.notes.mismatches import lacking, unread, untimed
from loratory.experiment.notes.run_description import setup
from loratory.experiment.notes.seeds import disagreements
from loratory.experiment.policy_spec import PolicyFactory, policy_factory
from loratory.experiment.prepare import Prepared, prepare
from loratory.experiment.resolve import Built
from loratory.experiment.slo_targets import slo_targets
from loratory.experiment.workers import shared
from loratory.reports.folder import ResultFolder, writing
from loratory.reports.recorder import Recorder
from loratory.reports.regret import regret_of
from loratory.reports.run_columns import RunColumns
from loratory.reports.run_info import RunInfo
from loratory.reports.stats import cleaned
from loratory.reports.summary import RunReport, summarise, summary_of
from loratory.scenarios.build import build_workload
from loratory.scenarios.load import dump
from loratory.scenarios.schema import Scenario
from loratory.serving.fairness import FairnessLimits
from loratory.serving.policy_guard import Leavings
from loratory.serving.policy_members import members_of, promised
from loratory.serving.policy_watch import POLICY_TIMEOUT_S, PolicyWatch
from loratory.serving.run_end import RunEnd
from loratory.serving.workload import Workload
from loratory.sim.cost.base import fitted_ranges

TIMELINE_EVENTS = 20_000
"""About how many trace events timeline.json keeps, shared among the runs."""

Progress = Callable[[str, int, int], None]


def run_scenario(
    scenario: Scenario,
    out: Path | str | None = None,
    *,
    jobs: int = 1,
    decisions: bool = True,
    progress: Progress | None = None,
    policy_timeout_s: float = POLICY_TIMEOUT_S,
    source: str | None = None,
    regret: bool = False,
) -> dict[str, Any]:
    """Simulate every policy and seed of a scenario; returns the summary (docs/reports.md).

    With ``out`` the result folder is written there, whole or not at all. ``jobs`` processes share the runs; the
    results do not depend on it. ``progress(policy, done, total)`` is called after each run. ``source`` names the
    scenario's file in errors. With ``regret`` each seed is also run under a policy that knows the future, and the
    summary says how far the others are from it. Raises `InputError` for a scenario that cannot run and a folder that
    cannot be written, `PolicyError` when a policy fails, exits, or takes longer than ``policy_timeout_s`` for one
    answer (see `loratory.serving.policy_watch`), and `KeyboardInterrupt` on Ctrl-C; in each case nothing is left over.
    """
    out = None if out is None else Path(out)
    prepared = prepare(scenario, policy_timeout_s, source)
    return run_prepared(prepared, out, jobs=jobs, decisions=decisions, progress=progress, regret=regret)


def run_prepared(
    prepared: Prepared,
    out: Path | None = None,
    *,
    jobs: int = 1,
    decisions: bool = True,
    progress: Progress | None = None,
    backend: Backend | None = None,
    regret: bool = False,
) -> dict[str, Any]:
    """`run_scenario` for a scenario that has been prepared, on ``backend``: by default the simulator."""
    scenario, built, backend = prepared.scenario, prepared.built, backend or Simulation()
    with ExitStack() as stack:
        stack.enter_context(interruptible())
        folder = stack.enter_context(ResultFolder(out)) if out is not None else None
        runs = [(policy, seed) for policy in scenario.policies for seed in scenario.seeds]
        tasks = [
            Task(
                scenario,
                policy,
                seed,
                None if folder is None else folder.run_folder(policy, seed),
                decisions,
                0 if folder is None or seed != scenario.seeds[0] else TIMELINE_EVENTS // len(scenario.policies),
                prepared.policy_timeout_s,
                regret,
            )
            for policy, seed in runs
        ]
        if regret:
            timeout_s = prepared.policy_timeout_s
            tasks += [Task(scenario, CLAIRVOYANT, seed, None, False, 0, timeout_s, True) for seed in scenario.seeds]
        every = _run_all(tasks, prepared, backend, min(jobs, len(tasks)), progress, folder)
        reports, clairvoyant = every[: len(runs)], every[len(runs) :]
        distance = regret_of([r.run for r in reports], [r.run for r in clairvoyant]) if regret else None
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
                "cost": built.cost.source,
                "adapters": [{"adapter": name, **identity} for name, identity in identities(built).items()],
                **backend.about,
            },
            regret=distance,
        )


def _run_all(
    tasks: Sequence[Task],
    prepared: Prepared,
    backend: Backend,
    jobs: int,
    progress: Progress | None,
    folder: ResultFolder | None,
) -> list[RunReport]:
    report_progress = progress or (lambda policy, done, total: None)
    reports: dict[int, RunReport] = {}
    built = prepared.built
    decided_by = [policy.decides_by for policy in prepared.policies.values()]
    if jobs <= 1:
        workloads: dict[int, Workload] = {}
        leavings = () if folder is None else folder.leavings
        for place, task in enumerate(tasks):
            if task.seed not in workloads:
                workloads[task.seed] = build_workload(task.scenario, task.seed, built.adapters)
            policy, workload = prepared.policies.get(task.policy), workloads[task.seed]
            reports[place] = _run_one(task, built, workload, policy, decided_by, backend, leavings)
            report_progress(task.policy, len(reports), len(tasks))
    else:
        shares = [_Share(task, built, decided_by) for task in tasks]
        for place, report in shared(_run_share, shares, jobs, _name_of):
            reports[place] = report
            report_progress(tasks[place].policy, len(reports), len(tasks))
    return [reports[place] for place in range(len(tasks))]


DecidedBy = Sequence[Collection[str] | None]
"""What each policy of a scenario decides by."""


@dataclass(frozen=True, slots=True)
class _Share:
    """What another process needs for one run. A policy's class cannot be pickled: its spec is parsed there again."""

    task: Task
    built: Built
    decided_by: DecidedBy


def _name_of(share: _Share) -> str:
    return f"policy {shortened(share.task.policy, 100)}, seed {share.task.seed}"


def _run_share(share: _Share) -> RunReport:
    task = share.task
    policy = None if task.policy == CLAIRVOYANT else policy_factory(task.policy, task.policy_timeout_s)
    workload = build_workload(task.scenario, task.seed, share.built.adapters)
    return _run_one(task, share.built, workload, policy, share.decided_by, Simulation())


def _run_one(
    task: Task,
    built: Built,
    workload: Workload,
    policy: PolicyFactory | None,
    decided_by: DecidedBy,
    backend: Backend,
    leavings: Leavings = (),
) -> RunReport:
    """One policy and seed: run, record, measure. ``leavings`` are removed if the policy takes the process down.

    ``policy``: None for the clairvoyant.
    """
    if not len(workload):
        raise InputError(f"scenario {task.scenario.name!r} has no requests: raise workload.duration_s or the rate")
    make = policy or ClairvoyantFactory(workload, built.cost, built.engine)
    with writing(task.folder), Recorder(task.folder, decisions=task.decisions) as recorder:
        with PolicyWatch(task.policy, task.policy_timeout_s, leavings):
            end = backend.run(task, built, workload, make, recorder)
            bound = _bound(task, built, workload, make)
        notes = () if policy is None else (*lacking(policy, workload), *unread(decided_by, workload))
        info = run_info(task, built, workload, backend, end, bound, notes)
        records = recorder.close()
        report = summarise(records, info, task.timeline_events)
        if task.regret and built.noise is None:
            columns, open_loop = RunColumns(info, records), workload.concurrency is None and workload.after is None
            bounds = lower_bound(columns, built.cost, built.engine, built.adapters, open_loop)
            report.run["lower_bound"] = cleaned(bounds)
    if backend.name == "sim" and task.seed == task.scenario.seeds[0] and policy is not None:
        report.run["advice"] = advise(task.scenario, built, workload, report.run)
    return report


def _bound(task: Task, built: Built, workload: Workload, make: PolicyFactory | ClairvoyantFactory) -> float | None:
    """The service gap the policy promises, weighted tokens."""
    engine = built.engine
    promise = members_of(make(), task.policy).bound
    if task.scenario.cluster.replicas > 1 or promise is None:
        return None
    limits = FairnessLimits(
        int(workload.prompt_tokens.max()),
        int(workload.max_tokens.max()),
        engine.require_blocks() * engine.block_size,
        engine.max_num_seqs,
        engine.max_num_batched_tokens,
    )
    return promised(task.policy, promise, limits)


def run_info(
    task: Task,
    built: Built,
    workload: Workload,
    backend: Backend,
    end: RunEnd,
    bound: float | None = None,
    notes: Sequence[str] = (),
) -> RunInfo:
    """What a report needs to know of a run besides its records."""
    scenario, engine = task.scenario, built.engine
    return RunInfo(
        scenario=scenario.name,
        policy=task.policy,
        backend=backend.name,
        seed=task.seed,
        replicas=scenario.cluster.replicas,
        submitted=end.submitted,
        duration_s=end.end_s,
        warmup_s=scenario.warmup_s,
        slo=slo_limits(scenario),
        targets=slo_targets(scenario.slo, built.adapters),
        bound=bound,
        warnings=(
            *workload.notes,
            *built.notes,
            *built.cost.warnings,
            *notes,
            *(untimed(scenario, len(built.adapters)) if backend.name == "sim" else ()),
            *end.notes,
        ),
        oracle=scenario.workload.max_tokens == "exact" or task.policy == CLAIRVOYANT,
        max_loras=engine.max_loras,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        num_gpu_blocks=engine.require_blocks(),
        watermark_blocks=engine.watermark_blocks,
        max_model_len=engine.max_model_len,
        refusals=end.refusals,
        block_size=engine.block_size,
        gpus=scenario.cluster.replicas * engine.tensor_parallel_size,
        ceiling_tokens_per_s=ceiling(built, workload) if backend.name == "sim" else None,
        identities=identities(built),
        fitted=fitted_ranges(built.cost) if backend.name == "sim" else None,
    )


def identities(built: Built) -> dict[str, dict[str, str | int | None]]:
    """The identity of each adapter that exists, by name; adapters that a scenario makes up have none."""
    return {
        adapter.name: {"lora_int_id": adapter.lora.lora_int_id, "version": adapter.version, "digest": adapter.digest}
        for adapter in built.adapters
        if adapter.digest is not None or adapter.version is not None
    }


def slo_limits(scenario: Scenario) -> Mapping[str, float]:
    return scenario.slo.model_dump(exclude_none=True, exclude={"targets"})
