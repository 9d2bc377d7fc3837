"""Backend: what runs one policy and seed of a scenario; the simulator is one, the executor another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from loratory.experiment.fleet_options import fleet_options
from loratory.experiment.resolve import Built
from loratory.experiment.router_spec import router_factory
from loratory.reports.recorder import Recorder
from loratory.scenarios.rng import Draws
from loratory.scenarios.schema import Scenario
from loratory.serving.events import Handler, Sink
from loratory.serving.policy import PolicyLike
from loratory.serving.policy_watch import POLICY_TIMEOUT_S
from loratory.serving.run_end import RunEnd
from loratory.serving.workload import Workload
from loratory.sim.cluster import ReplicaKind, simulate
from loratory.sim.noise import StepNoise, level_of


@dataclass(frozen=True, slots=True)
class Task:
    """One run: picklable, so that it can be done in another process."""

    scenario: Scenario
    policy: str
    seed: int
    folder: Path | None
    decisions: bool
    timeline_events: int
    policy_timeout_s: float = POLICY_TIMEOUT_S
    regret: bool = False
    """Whether to compute what no policy can beat (`loratory.experiment.lower_bound`)."""

    @property
    def router(self) -> str:
        """The router that sends requests to the replicas; empty where there is one."""
        cluster = self.scenario.cluster
        return cluster.router if cluster.most_replicas > 1 else ""


class Backend(Protocol):
    """Runs scenarios. ``name``: its name in summaries; ``about``: what run_info.json has of it."""

    name: str

    @property
    def about(self) -> dict[str, Any]:
        """Device, versions and the like; nothing that a result depends on in simulation."""

    def run(
        self, task: Task, built: Built, workload: Workload, policy: Callable[[], PolicyLike], recorder: Recorder
    ) -> RunEnd:
        """Run a workload to its end; every event goes to the recorder's sinks. ``policy`` makes one for an engine."""


class Simulation:
    """The discrete-event backend."""

    name = "sim"
    about: dict[str, Any] = {}

    def run(
        self, task: Task, built: Built, workload: Workload, policy: Callable[[], PolicyLike], recorder: Recorder
    ) -> RunEnd:
        """See `Backend`."""
        return simulate_task(task, built, workload, policy, recorder.sink)


def simulate_task(
    task: Task,
    built: Built,
    workload: Workload,
    policy: Callable[[], PolicyLike],
    sink: Callable[[int], Sink | Handler],
) -> RunEnd:
    """Simulate a workload to its end; the events of replica i go to ``sink(i)``."""
    scenario, cluster = task.scenario, task.scenario.cluster
    return simulate(
        workload,
        adapters=built.adapters,
        config=built.engine,
        policy=policy,
        cost=built.cost,
        replicas=replica_kinds(built),
        life=fleet_options(scenario, built, workload),
        router=router_factory(task.router, task.policy_timeout_s)() if task.router else None,
        router_name=cluster.router,
        metrics_delay_s=cluster.metrics_delay_s,
        metrics_interval_s=cluster.metrics_interval_s,
        seed=task.seed,
        sink=sink,
        kv_bytes_per_token=built.kv_bytes_per_token,
        cutoff_s=scenario.workload.cutoff_s,
        jump=built.noise is None,  # the records of a jump have one mean gap between tokens, which would hide stalls
        noise=noise_of(built, task.seed),
    )


def replica_kinds(built: Built) -> list[ReplicaKind]:
    """What each replica of a fleet is, in order."""
    made = [ReplicaKind(kind.engine, kind.cost, kind.kv_bytes_per_token) for kind in built.kinds]
    return [each for kind, each in zip(built.kinds, made, strict=True) for _ in range(kind.count)]


def noise_of(built: Built, seed: int) -> Callable[[int], StepNoise] | None:
    """The noise of each replica's steps, None without noise; the level of a run is the same on all of them."""
    options = built.noise
    if options is None:
        return None
    level = level_of(options, Draws(seed).rng("level"))
    return lambda replica: StepNoise(options, Draws(seed, replica).rng("noise"), level)
