"""execute: a scenario on the real executor, measured and reported like a simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loratory.errors import InputError
from loratory.experiment.backend import Task
from loratory.experiment.machine import machine_for
from loratory.experiment.prepare import prepare
from loratory.experiment.resolve import Built
from loratory.experiment.run import Progress, run_prepared
from loratory.reports.folder import ResultFolder
from loratory.reports.recorder import Recorder
from loratory.scenarios.cost_spec import cost_dtype
from loratory.scenarios.schema import Scenario
from loratory.serving.policy import PolicyLike
from loratory.serving.policy_watch import POLICY_TIMEOUT_S
from loratory.serving.run_end import RunEnd
from loratory.serving.workload import Workload

if TYPE_CHECKING:
    from loratory.adapters.verified import VerifiedAdapter
    from loratory.executor.machine import Machine

_NAMED = 3
"""Adapters that were never registered and have a note each."""


def execute_scenario(
    scenario: Scenario,
    out: Path | ResultFolder | None = None,
    *,
    decisions: bool = True,
    progress: Progress | None = None,
    policy_timeout_s: float = POLICY_TIMEOUT_S,
    source: str | None = None,
) -> dict[str, Any]:
    """Run every policy and seed of a scenario on this machine, in real time; returns the summary (docs/reports.md).

    Each run's folder also gets ``recording.jsonl``, with which `loratory.experiment.replay` repeats its decisions in
    simulation. ``source`` names the scenario's file in errors. Raises as `loratory.experiment.run.run_scenario` does,
    and `InputError` for a scenario that cannot run on this machine.
    """
    refuse_unmeasurable(scenario)
    synchronous = scenario.engine.model_copy(update={"async_scheduling": False})
    scenario = scenario.model_copy(update={"engine": synchronous})
    prepared = prepare(scenario, policy_timeout_s, source)
    with machine_for(scenario, prepared.built) as machine:
        served, notes = as_served(scenario, machine.files)
        digests = {record.name: record.digest for record in served.adapters.records or ()}
        adapters = tuple(replace(each, digest=digests.get(each.name)) for each in prepared.built.adapters)
        prepared = replace(prepared, scenario=served, built=replace(prepared.built, adapters=adapters))
        return run_prepared(prepared, out, decisions=decisions, progress=progress, backend=Execution(machine, notes))


def refuse_unmeasurable(scenario: Scenario) -> None:
    """Raises `InputError` for a scenario that asks for what the executor does not do."""
    if scenario.cluster.count > 1:
        raise InputError(
            f"cluster.replicas is {scenario.cluster.count}, but the executor runs one replica: set it to 1"
        )
    if isinstance(scenario.cluster.replicas, list):
        raise InputError("cluster.replicas is a list of kinds, but the executor runs one replica: set it to 1")
    if (width := scenario.engine.tensor_parallel_size) > 1:
        raise InputError(
            f"engine.tensor_parallel_size is {width}, but the executor computes on one device: set it to 1"
        )
    if scenario.cluster.changes:
        key = "events" if scenario.cluster.events else "autoscale"
        raise InputError(f"cluster.{key} is given, but the executor runs one replica, which stays: leave it out")
    if scenario.cluster.placement is not None:
        raise InputError("cluster.placement is given, but the executor runs one replica: leave it out")
    if scenario.memory.kv_cache_dtype is not None:
        raise InputError(
            f"memory.kv_cache_dtype is {scenario.memory.kv_cache_dtype}, but the executor keeps its KV cache in "
            "executor.dtype: leave it out"
        )
    if cost_dtype(scenario.cost) == "fp8":
        raise InputError(
            "cost.dtype is fp8, but the executor computes in executor.dtype, which has at least 16 bits: leave it out"
        )
    if scenario.engine.async_scheduling:
        raise InputError(
            "engine.async_scheduling is true, but the executor plans a step when the one before has ended: leave it out"
        )


class Execution:
    """The real backend. Prompts are random tokens, the same for every policy; outputs have the workload's lengths."""

    name = "executor"

    def __init__(self, machine: Machine, notes: Sequence[str] = ()) -> None:
        self._machine = machine
        self._notes = tuple(notes)

    @property
    def about(self) -> dict[str, Any]:
        """See `loratory.experiment.backend.Backend`."""
        return self._machine.about()

    def run(
        self, task: Task, built: Built, workload: Workload, policy: Callable[[], PolicyLike], recorder: Recorder
    ) -> RunEnd:
        """See `loratory.experiment.backend.Backend`."""
        from loratory.executor.clock import RealClock
        from loratory.executor.drive import drive
        from loratory.executor.generation import Generation

        scenario, vocab = task.scenario, self._machine.model.shape.vocab
        clock = RealClock()
        executor = self._machine.executor(
            built.adapters,
            policy(),
            built.cost,
            clock,
            sink=recorder.sink(0),
            record=True,
        )

        def generation(request: Any, output_tokens: int) -> Generation:
            rng = np.random.default_rng((task.seed, int(request.request_id)))
            return Generation(rng.integers(0, vocab, request.prompt_tokens).tolist(), output_tokens=output_tokens)

        scale = scenario.executor.time_scale
        try:
            clock.start()
            end = drive(
                workload, executor, generation, time_scale=scale, cutoff_s=_scaled(scenario.workload.cutoff_s, scale)
            )
            if task.folder is not None:
                executor.recording().write(task.folder / "recording.jsonl")
        finally:
            executor.close()
        notes = list(self._notes)
        if workload.cached_tokens is not None:
            notes.append("the executor has no prefix cache, so it computed cached tokens as well")
        if scale != 1.0:
            notes.append(f"requests were sent {scale:g} times as fast as in the workload")
        return replace(end, notes=tuple(notes))


def _scaled(seconds: float | None, scale: float) -> float | None:
    return None if seconds is None else seconds / scale


def as_served(scenario: Scenario, files: Mapping[str, VerifiedAdapter]) -> tuple[Scenario, tuple[str, ...]]:
    """The scenario with the digest of what is served in every record, and notes on records that differ from it."""
    records, notes, unknown = [], [], []
    for record in scenario.adapters.records or ():
        held = files[record.name].description
        if record.digest is None:
            unknown.append(f"adapter {record.name!r} is not registered, its digest is {held.digest}")
            record = record.model_copy(update={"digest": held.digest})
        if (record.rank, record.parameters) != (held.rank, held.parameters):
            notes.append(
                f"adapter {record.name!r} has rank {held.rank} and {held.parameters} parameters, but its record has "
                f"rank {record.rank} and {record.parameters}, with which policies decided and loads were planned"
            )
        records.append(record)
    if not records:
        return scenario, ()
    if (more := len(unknown) - _NAMED) > 0:
        unknown[_NAMED:] = [f"{more} more adapters are not registered: scenario.yaml of the results has their digests"]
    section = scenario.adapters.model_copy(update={"records": records})
    return scenario.model_copy(update={"adapters": section}), (*unknown, *notes)
