"""evaluate: one candidate under one seed, simulated in this process; stopped as soon as its SLO is certainly missed."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeVar

from loratory.errors import InputError
from loratory.experiment.backend import Simulation, Task, simulate_task
from loratory.experiment.policy_spec import policy_factory
from loratory.experiment.resolve import Built, build
from loratory.experiment.runner import run_info
from loratory.plan.early_stop import CertainlyMissedError, Watch
from loratory.plan.fleet_events import refuse_late, refuse_missed
from loratory.plan.measure import Measured, read, targets_of
from loratory.reports.recorder import Recorder
from loratory.reports.run_columns import RunColumns
from loratory.scenarios.build import build_workload
from loratory.scenarios.schema import Scenario
from loratory.serving.event_dispatch import hearing
from loratory.serving.events import Ended, Sink
from loratory.serving.policy_watch import POLICY_TIMEOUT_S, PolicyWatch
from loratory.serving.workload import Workload

T = TypeVar("T")

_KEPT = 6
"""Workloads, and resolved scenarios, that a process keeps for the next candidates."""

_ELSEWHERE = (
    *("name", "description", "gpu", "engine", "cost", "memory", "tiers", "policies", "cluster", "executor", "slo"),
    *("seeds", "warmup_s", "plan"),
)
"""Sections of a scenario on which its requests do not depend."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One run that a plan asks for: picklable. ``stop_early``: a run that misses the SLO for certain may be stopped."""

    scenario: Scenario
    policy: str
    seed: int
    stop_early: bool = True
    policy_timeout_s: float = POLICY_TIMEOUT_S

    @property
    def name(self) -> str:
        """For errors."""
        return f"policy {self.policy}, seed {self.seed}"


def evaluate(asked: Evaluation) -> Measured:
    """Simulate it, with records in memory. Raises `PolicyError` when the policy fails, `InputError` as a run does."""
    start = time.process_time()
    scenario = asked.scenario
    built = built_of(scenario)
    workload = workload_of(scenario, asked.seed, built)
    policy = policy_factory(asked.policy, asked.policy_timeout_s)
    task = Task(scenario, asked.policy, asked.seed, None, False, 0, asked.policy_timeout_s)
    with Recorder(None, decisions=False) as recorder:
        watch = Watch(scenario, targets_of(scenario, built) if asked.stop_early else (), workload)

        def sink(replica: int) -> Sink:
            records = recorder.sink(replica)
            return hearing(records, Ended, watch.ended) if watch.watches else records

        try:
            with PolicyWatch(asked.policy, asked.policy_timeout_s, router=task.router):
                end = simulate_task(task, built, workload, policy, sink)
        except CertainlyMissedError as error:
            return Measured({}, error.targets, requests=watch.seen, cpu_s=time.process_time() - start)
        run = RunColumns(run_info(task, built, workload, Simulation(), end), recorder.close())
        refuse_missed(scenario, workload, run.duration)
        return Measured(read(run), (), run.settles.state, end.submitted, time.process_time() - start)


def built_of(scenario: Scenario) -> Built:
    """The resolved scenario; the last few are kept. Raises `InputError` for a model that does not fit and the like."""
    return _kept(_built, _key(scenario, ("name", "description", "policies", "seeds", "plan")), lambda: build(scenario))


def workload_of(scenario: Scenario, seed: int, built: Built) -> Workload:
    """The requests of a seed: the same for all candidates whose traffic and adapters are the same.

    Raises `InputError` where there are none, and for an event of the fleet that is after the last.
    """
    key = (_key(scenario, _ELSEWHERE), seed, scenario.engine.max_model_len)
    workload = _kept(_workloads, key, lambda: build_workload(scenario, seed, built.adapters))
    if not len(workload):
        raise InputError(
            f"scenario {scenario.name!r} has no requests under seed {seed}: raise workload.duration_s or the rate"
        )
    refuse_late(scenario, workload, seed)
    return workload


def check_workloads(scenario: Scenario, seeds: Sequence[int]) -> None:
    """Raises `InputError` for a scenario that cannot run: of one seed, or with events of the fleet, which have to come
    before the last arrival, of all ``seeds``."""
    built = built_of(scenario)
    for seed in seeds if scenario.cluster.events else [min(scenario.seeds)]:
        workload_of(scenario, seed, built)


def _key(scenario: Scenario, without: tuple[str, ...]) -> str:
    return sha256(json.dumps(scenario.model_dump(mode="json", exclude=set(without))).encode()).hexdigest()


_built: OrderedDict[Hashable, Any] = OrderedDict()
_workloads: OrderedDict[Hashable, Any] = OrderedDict()


def _kept(kept: OrderedDict[Hashable, Any], key: Hashable, make: Callable[[], T]) -> T:
    if key not in kept:
        while len(kept) >= _KEPT:
            kept.popitem(last=False)
        kept[key] = make()
    kept.move_to_end(key)
    found: T = kept[key]
    return found
