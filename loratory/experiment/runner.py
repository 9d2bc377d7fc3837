"""Runner: does single runs, one policy and seed each; what several of them need is made once in a process."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loratory.errors import InputError, shortened
from loratory.experiment.backend import Backend, Simulation, Task
from loratory.experiment.clairvoyant import CLAIRVOYANT, ClairvoyantFactory
from loratory.experiment.lower_bound import lower_bound
from loratory.experiment.notes.advice import advise
from loratory.experiment.notes.decode_ceiling import ceiling
from loratory.experiment.notes.mismatches import lacking, unread, untimed
from loratory.experiment.policy_spec import PolicyFactory, policy_factory
from loratory.experiment.resolve import Built
from loratory.experiment.slo_targets import slo_targets
from loratory.experiment.workers import shared
from loratory.reports.folder import writing
from loratory.reports.recorder import Recorder
from loratory.reports.run_columns import RunColumns
from loratory.reports.run_info import ReplicaLimits, RunInfo
from loratory.reports.stats import cleaned
from loratory.reports.summary import RunReport, summarise
from loratory.scenarios.build import build_workload
from loratory.scenarios.cluster_spec import of_each
from loratory.scenarios.schema import Scenario
from loratory.serving.fairness import FairnessLimits
from loratory.serving.policy_guard import Leavings
from loratory.serving.policy_members import members_of, promised
from loratory.serving.policy_watch import PolicyWatch
from loratory.serving.run_end import RunEnd
from loratory.serving.workload import Workload
from loratory.sim.cost.base import fitted_ranges

MOST_REQUESTS_KEPT = 2_000_000
"""Requests of workloads that a `Runner` keeps for further runs, about 200 MB; the last workload is kept whatever its
size."""


@dataclass(frozen=True, slots=True)
class Share:
    """One run with all that another process needs for it.

    A policy's class cannot be pickled, so that process parses the spec again. ``decided_by``: what each policy of the
    scenario decides by.
    """

    task: Task
    built: Built
    decided_by: Sequence[Collection[str] | None]


def reports_of(shares: Sequence[Share], runner: Runner, jobs: int) -> Iterator[tuple[int, RunReport]]:
    """Do all runs in ``jobs`` processes, or here where that is 1; yields (place of the run, report) as each is done.

    Raises what a run raises; see `loratory.experiment.workers.shared`.
    """
    jobs = min(jobs, len(shares))
    if jobs <= 1:
        return ((place, runner(share)) for place, share in enumerate(shares))
    return shared(runner, shares, jobs, _name_of)


def _name_of(share: Share) -> str:
    return f"policy {shortened(share.task.policy, 100)}, seed {share.task.seed}"


class Runner:
    """Calls do a run each: ``runner(share)``. Workloads and policies are kept for further runs in this process.

    ``policies``: factories that have been parsed, by spec. ``leavings`` are removed if a policy takes the process down.
    Pickled, it is an empty one that simulates, for another process.
    """

    def __init__(
        self,
        policies: Mapping[str, PolicyFactory] | None = None,
        backend: Backend | None = None,
        leavings: Leavings = (),
    ) -> None:
        self._policies = dict(policies or {})
        self._backend = backend or Simulation()
        self._leavings = leavings
        self._workloads: dict[tuple[Any, ...], Workload] = {}

    def __reduce__(self) -> tuple[type[Runner], tuple[()]]:
        return Runner, ()

    def __call__(self, share: Share) -> RunReport:
        task = share.task
        policy = self._policies.get(task.policy)
        if policy is None and task.policy != CLAIRVOYANT:
            policy = self._policies[task.policy] = policy_factory(task.policy, task.policy_timeout_s)
        workload = self._workload(task.scenario, task.seed, share.built)
        return _run(share, workload, policy, self._backend, self._leavings)

    def _workload(self, scenario: Scenario, seed: int, built: Built) -> Workload:
        """The workload of a run, from an earlier one if everything that it is drawn from is the same."""
        sections = (scenario.workload, scenario.adapters, scenario.tenants)
        names = tuple(adapter.name for adapter in built.adapters)
        key = (seed, scenario.model, names, *(section.model_dump_json() for section in sections))
        found = self._workloads.pop(key, None)
        if found is None:
            found = build_workload(scenario, seed, built.adapters)
        self._workloads[key] = found  # the last used is last
        while len(self._workloads) > 1 and sum(map(len, self._workloads.values())) > MOST_REQUESTS_KEPT:
            del self._workloads[next(iter(self._workloads))]
        return found


def _run(
    share: Share, workload: Workload, policy: PolicyFactory | None, backend: Backend, leavings: Leavings
) -> RunReport:
    """One policy and seed: run, record, measure. ``policy``: None for the clairvoyant."""
    task, built = share.task, share.built
    if not len(workload):
        raise InputError(f"scenario {task.scenario.name!r} has no requests: raise workload.duration_s or the rate")
    make = policy or ClairvoyantFactory(workload, built.cost, built.engine)
    with writing(task.folder), Recorder(task.folder, decisions=task.decisions) as recorder:
        with PolicyWatch(task.policy, task.policy_timeout_s, leavings, router=task.router):
            end = backend.run(task, built, workload, make, recorder)
            bound = _bound(task, built, workload, make)
        notes = () if policy is None else (*lacking(policy, workload), *unread(share.decided_by, workload))
        info = run_info(task, built, workload, backend, end, bound, notes)
        records = recorder.close()
        report = summarise(records, info, task.timeline_events)
        if task.regret and built.noise is None and not built.mixed:
            columns, open_loop = RunColumns(info, records), workload.concurrency is None and workload.after is None
            bounds = lower_bound(columns, built.cost, built.engine, built.versions, open_loop)
            report.run["lower_bound"] = cleaned(bounds)
    stays = not built.mixed and not task.scenario.cluster.changes  # the numbers of advice are of such fleets
    if backend.name == "sim" and task.seed == task.scenario.seeds[0] and policy is not None and stays:
        report.run["advice"] = advise(task.scenario, built, workload, report.run)
    return report


def _bound(task: Task, built: Built, workload: Workload, make: PolicyFactory | ClairvoyantFactory) -> float | None:
    """The service gap the policy promises, weighted tokens."""
    engine = built.engine
    promise = members_of(make(), task.policy).bound
    if task.scenario.cluster.most_replicas > 1 or task.scenario.cluster.changes or promise is None:
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
    replica_gpus = tuple(kind.engine.tensor_parallel_size for kind in of_each(scenario.cluster, built.kinds))
    return RunInfo(
        scenario=scenario.name,
        policy=task.policy,
        backend=backend.name,
        seed=task.seed,
        replicas=scenario.cluster.most_replicas,
        submitted=end.submitted,
        duration_s=end.end_s,
        warmup_s=scenario.warmup_s,
        slo=slo_limits(scenario),
        targets=slo_targets(scenario.slo, built.adapters, built.roll_outs),
        bound=bound,
        warnings=(
            *workload.notes,
            *built.notes,
            *dict.fromkeys(text for kind in built.kinds for text in kind.cost.warnings),
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
        each=_limits(scenario, built),
        block_size=engine.block_size,
        gpus=sum(replica_gpus),
        fleet=end.fleet,
        replica_gpus=replica_gpus,
        replica_prices=_prices(scenario),
        currency=scenario.plan.currency,
        prices={
            name: (scenario.plan.prices or {}).get(name) for name, _, _ in scenario.hardware if scenario.plan.prices
        },
        ceiling_tokens_per_s=ceiling(built, workload) if backend.name == "sim" else None,
        identities=identities(built),
        fitted=fitted_ranges(built.cost) if backend.name == "sim" else None,
    )


def _limits(scenario: Scenario, built: Built) -> tuple[ReplicaLimits, ...]:
    """Each replica's limits where a fleet has several kinds."""
    if not built.mixed:
        return ()
    return tuple(
        ReplicaLimits(
            kind.label,
            kind.engine.max_loras,
            kind.engine.max_num_seqs,
            kind.engine.max_num_batched_tokens,
            kind.engine.require_blocks(),
            kind.engine.watermark_blocks,
            kind.engine.block_size,
        )
        for kind in of_each(scenario.cluster, built.kinds)
    )


def _prices(scenario: Scenario) -> tuple[float, ...] | None:
    """What each replica costs in an hour; None without the price of a GPU."""
    known = scenario.plan.prices or {}
    if any(name not in known for name, _, _ in scenario.hardware):
        return None
    return tuple(of_each(scenario.cluster, [known[name] * width for name, _, width in scenario.hardware]))


def identities(built: Built) -> dict[str, dict[str, str | int | None]]:
    """The identity of each adapter that exists, by name; those that a scenario makes up have none, but
    their new versions have an id."""
    return {
        adapter.name: {"lora_int_id": adapter.lora.lora_int_id, "version": adapter.version, "digest": adapter.digest}
        for adapter in built.versions
        if adapter.digest is not None or adapter.version is not None
    }


def slo_limits(scenario: Scenario) -> Mapping[str, float]:
    """The scenario's limits on all requests, with its attainment."""
    return scenario.slo.model_dump(exclude_none=True, exclude={"targets"})
