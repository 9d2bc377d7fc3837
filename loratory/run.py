"""run: a scenario under each of its policies and seeds, on one backend, into one result folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from loratory.advice import advise
from loratory.backend import Backend, Simulation, Task
from loratory.build import Built, build
from loratory.ceiling import ceiling
from loratory.setup import setup
from loratory.specs import policy_factory
from reports.folder import ResultFolder
from reports.info import RunInfo
from reports.recorder import Recorder
from reports.summary import RunReport, summarise, summary_of
from scenarios.build import build_workload
from scenarios.load import dump
from scenarios.schema import Scenario
from serving.errors import InputError
from serving.policy import Limits
from serving.workload import Workload
from sim.routers import router

TIMELINE_EVENTS = 20_000
"""About how many trace events timeline.json keeps, shared among the runs."""

Progress = Callable[[str, int, int], None]


def run_scenario(
    scenario: Scenario,
    out: Path | None = None,
    *,
    jobs: int = 1,
    decisions: bool = True,
    progress: Progress | None = None,
    backend: Backend | None = None,
) -> dict[str, Any]:
    """Run every policy and seed of a scenario, in simulation by default; returns the summary (docs/reports.md).

    With ``out`` the result folder is written there, whole or not at all. ``jobs`` processes share simulated runs; the
    results do not depend on it. ``progress(policy, done, total)`` is called after each run. Raises `InputError` for a
    scenario that cannot run, `PolicyError` when a policy fails.
    """
    built = build(scenario)
    backend = backend or Simulation()
    for spec in scenario.policies:
        policy_factory(spec)
    router(scenario.cluster.router)
    with ExitStack() as stack:
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
            )
            for policy, seed in runs
        ]
        reports = _run_all(tasks, built, backend, min(jobs, len(tasks)), progress)
        facts = setup(scenario, built, backend.name)
        if folder is None:
            return summary_of([report.run for report in reports], facts)
        return folder.write(
            reports,
            title=scenario.name,
            description=scenario.description,
            setup=facts,
            scenario_yaml=dump(scenario),
            run_info={
                "memory": None if built.memory is None else built.memory.items(),
                "cost": built.cost.source,
                "adapters": [{"adapter": name, **said} for name, said in identities(built).items()],
                **backend.about,
            },
        )


def _run_all(
    tasks: Sequence[Task], built: Built, backend: Backend, jobs: int, progress: Progress | None
) -> list[RunReport]:
    tell = progress or (lambda policy, done, total: None)
    reports: list[RunReport] = []
    if jobs <= 1:
        workloads: dict[int, Workload] = {}
        for task in tasks:
            if task.seed not in workloads:
                workloads[task.seed] = build_workload(task.scenario, task.seed, built.adapters)
            reports.append(_run_one(task, built, workloads[task.seed], backend))
            tell(task.policy, len(reports), len(tasks))
        return reports
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures: list[Future[RunReport]] = [pool.submit(_run_alone, task) for task in tasks]
        try:
            for task, future in zip(tasks, futures, strict=True):
                reports.append(future.result())
                tell(task.policy, len(reports), len(tasks))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return reports


def _run_alone(task: Task) -> RunReport:
    built = build(task.scenario)
    return _run_one(task, built, build_workload(task.scenario, task.seed, built.adapters), Simulation())


def _run_one(task: Task, built: Built, workload: Workload, backend: Backend) -> RunReport:
    """One policy and seed: run, record, measure."""
    scenario, engine = task.scenario, built.engine
    if not len(workload):
        raise InputError(f"scenario {scenario.name!r} has no requests: raise workload.duration_s or the rate")
    replicas = scenario.cluster.replicas
    with Recorder(task.folder, decisions=task.decisions) as recorder:
        ran = backend.run(task, built, workload, recorder)
    limits = Limits(
        int(workload.prompt_tokens.max()),
        int(workload.max_tokens.max()),
        engine.require_blocks() * engine.block_size,
        engine.max_num_seqs,
        engine.max_num_batched_tokens,
    )
    policy: Any = policy_factory(task.policy)()
    info = RunInfo(
        scenario=scenario.name,
        policy=task.policy,
        backend=backend.name,
        seed=task.seed,
        replicas=replicas,
        submitted=ran.submitted,
        duration_s=ran.end_s,
        warmup_s=scenario.warmup_s,
        slo=_limits_of(scenario),
        bound=policy.bound(limits) if replicas == 1 and hasattr(policy, "bound") else None,
        warnings=(*workload.notes, *built.notes, *built.cost.warnings, *ran.notes),
        oracle=scenario.workload.max_tokens == "exact",
        max_loras=engine.max_loras,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        num_gpu_blocks=engine.num_gpu_blocks,
        max_model_len=engine.max_model_len,
        refusals=ran.refusals,
        block_size=engine.block_size,
        gpus=replicas * engine.tensor_parallel_size,
        ceiling_tokens_per_s=ceiling(built, workload) if backend.name == "sim" else None,
        identities=identities(built),
    )
    report = summarise(recorder.close(), info, task.timeline_events)
    if backend.name == "sim" and task.seed == scenario.seeds[0]:
        report.run["advice"] = advise(scenario, built, workload, report.run)
    return report


def identities(built: Built) -> dict[str, dict[str, str | int | None]]:
    """What each adapter that exists stands for, by its name; those a scenario makes up are left out."""
    return {
        adapter.name: {"lora_int_id": adapter.lora.lora_int_id, "version": adapter.version, "digest": adapter.digest}
        for adapter in built.adapters
        if adapter.digest is not None or adapter.version is not None
    }


def _limits_of(scenario: Scenario) -> Mapping[str, float]:
    return scenario.slo.model_dump(exclude_none=True)
