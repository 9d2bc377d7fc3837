"""execute: a scenario on the real executor, measured and reported like a simulation."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loratory.cli.adapters_options import intake
from loratory.errors import InputError
from loratory.experiment.backend import Ran, Task
from loratory.experiment.policy_spec import policy_factory
from loratory.experiment.policy_watch import POLICY_TIMEOUT_S
from loratory.experiment.resolve import Built, build
from loratory.experiment.run import Progress, run_scenario
from loratory.reports.recorder import Recorder
from loratory.scenarios.cost_spec import RooflineCost
from loratory.scenarios.schema import Scenario
from loratory.serving.lora import Adapter
from loratory.serving.workload import Workload
from loratory.sim.catalogue import ModelSpec, resolve_targets

if TYPE_CHECKING:
    from loratory.adapters.fetch import Intake
    from loratory.adapters.verified import Verified
    from loratory.executor.machine import Machine
    from loratory.executor.model import Model
    from loratory.executor.model_config import ModelConfig

SYNTHETIC = "synthetic://"
"""Paths of adapters that a scenario makes up: their weights are made up, too."""

_NAMED = 3
"""Adapters that were never registered and have a note each."""


def execute_scenario(
    scenario: Scenario,
    out: Path | None = None,
    *,
    decisions: bool = True,
    progress: Progress | None = None,
    policy_timeout_s: float = POLICY_TIMEOUT_S,
) -> dict[str, Any]:
    """Run every policy and seed of a scenario on this machine, in real time; returns the summary (docs/reports.md).

    Each run's folder also gets ``recording.jsonl``, with which `loratory.experiment.replay` decides again in
    simulation. Raises `InputError` for a scenario that cannot run here.
    """
    if scenario.cluster.replicas > 1:
        raise InputError("cluster.replicas: the executor is one replica: set it to 1")
    if scenario.memory.kv_cache_dtype is not None:
        raise InputError("memory.kv_cache_dtype: the executor's KV cache is in executor.dtype: leave it out")
    if isinstance(scenario.cost, RooflineCost) and scenario.cost.dtype == "fp8":
        raise InputError(
            "cost.dtype is fp8, and the executor computes in executor.dtype, at least 16 bit: leave it out"
        )
    built = build(scenario)
    with machine_for(scenario, built) as machine:
        served, notes = as_served(scenario, machine.files)
        backend = Execution(machine, notes)
        return run_scenario(
            served,
            out,
            decisions=decisions,
            progress=progress,
            backend=backend,
            policy_timeout_s=policy_timeout_s,
        )


class Execution:
    """The real backend. Prompts are random tokens, the same for every policy; outputs end where the workload says."""

    name = "executor"

    def __init__(self, machine: Machine, notes: Sequence[str] = ()) -> None:
        self._machine = machine
        self._notes = tuple(notes)

    @property
    def about(self) -> dict[str, Any]:
        """What run_info.json says of it."""
        return self._machine.about()

    def run(self, task: Task, built: Built, workload: Workload, recorder: Recorder) -> Ran:
        """See `loratory.experiment.backend.Backend`."""
        from loratory.executor.clock import RealClock
        from loratory.executor.drive import drive
        from loratory.executor.generation import Generation

        scenario, vocab = task.scenario, self._machine.model.config.vocab
        clock = RealClock()
        executor = self._machine.executor(
            built.adapters,
            policy_factory(task.policy)(),
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
            outcome = drive(
                workload, executor, generation, time_scale=scale, cutoff_s=_scaled(scenario.workload.cutoff_s, scale)
            )
            if task.folder is not None:
                executor.recording().write(task.folder / "recording.jsonl")
        finally:
            executor.close()
        notes = list(self._notes)
        if workload.cached_tokens is not None:
            notes.append("the executor has no prefix cache: cached tokens computed")
        if scale != 1.0:
            notes.append(f"requests were sent {scale:g} times as fast as the workload says")
        return Ran(outcome.end_s, outcome.submitted, tuple(notes), executor.engine.refusals)


def _scaled(seconds: float | None, scale: float) -> float | None:
    return None if seconds is None else seconds / scale


@contextmanager
def machine_for(scenario: Scenario, built: Built) -> Iterator[Machine]:
    """The machine a scenario wants: its checkpoint or random weights, its adapters' files or random ones."""
    try:
        import torch

        from loratory.executor.machine import Machine
    except ImportError as error:
        raise InputError(f'the executor needs {error.name}: pip install "loratory[executor]"') from error

    spec = scenario.executor
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    model = load_model(spec.checkpoint, built.model, spec.dtype, spec.device)
    targets = resolve_targets(scenario.adapters.target_modules)
    with tempfile.TemporaryDirectory(prefix="loratory-adapters-") as scratch, intake(None) as coming:
        files = adapter_files(built.adapters, model, Path(scratch), targets, coming, built.engine.max_lora_rank)
        yield Machine(model, built.engine, files, targets if files else None)


def load_model(checkpoint: str | None, spec: ModelSpec, dtype: str, device: str) -> Model:
    """A checkpoint's model, or random weights in the shape of ``spec``, made on the device and never written.

    ``device`` ``auto`` is cuda where there is one. Raises `InputError` for a bad checkpoint or too little memory.
    """
    import torch

    from loratory.executor.checkpoint import resolve_dtype
    from loratory.executor.model import Model, resolve_device
    from loratory.executor.random_checkpoint import RandomTensors

    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if checkpoint is not None:
        return Model.load(checkpoint, dtype, place)
    config = model_config(spec)
    kind, where = resolve_dtype(dtype, config), resolve_device(place)
    return Model(config, RandomTensors(0, config.tied, kind, where), kind, where)


def model_config(spec: ModelSpec) -> ModelConfig:
    """A catalogue model's shape, as the executor names it."""
    from loratory.executor.model_config import ModelConfig

    return ModelConfig(
        family=spec.family,
        layers=spec.layers,
        hidden=spec.hidden,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        intermediate=spec.intermediate,
        vocab=spec.vocab,
        max_positions=spec.context.default,
        tied=spec.tie_word_embeddings,
        qkv_bias=spec.qkv_bias,
        o_bias=spec.o_bias,
        mlp_bias=spec.mlp_bias,
        qk_norm=spec.qk_norm,
    )


def adapter_files(
    adapters: Sequence[Adapter], model: Model, folder: Path, targets: Sequence[str], intake: Intake, max_lora_rank: int
) -> dict[str, Verified]:
    """The files of each adapter: from its source, or random ones written into ``folder`` for synthetic adapters.

    Raises `InputError` for an adapter whose content has not its digest, or that does not validate against the model.
    """
    from loratory.adapters.fetch import Intake
    from loratory.adapters.files.validation import BaseShapes, Limits
    from loratory.executor.random_checkpoint import hugging_face_config, random_adapter

    base = BaseShapes.from_config(hugging_face_config(model.config))
    checked = Intake(intake.cache, Limits(max_lora_rank=max_lora_rank, base=base))
    files: dict[str, Verified] = {}
    for adapter in adapters:
        path = adapter.lora.lora_path
        if path.startswith(SYNTHETIC):
            place, seed = folder / str(adapter.lora.lora_int_id), adapter.lora.lora_int_id
            path = str(random_adapter(place, model.config, adapter.rank, target_modules=targets, seed=seed))
        files[adapter.name] = checked.verified(adapter.ref, path, adapter.digest)
    return files


def as_served(scenario: Scenario, files: Mapping[str, Verified]) -> tuple[Scenario, tuple[str, ...]]:
    """The scenario with the digest of what is served in every record, and notes on records that say otherwise."""
    records, notes, unknown = [], [], []
    for record in scenario.adapters.records or ():
        held = files[record.name].description
        if record.digest is None:
            unknown.append(f"adapter {record.name!r} is not registered, its digest is {held.digest}")
            record = record.model_copy(update={"digest": held.digest})
        if (record.rank, record.parameters) != (held.rank, held.parameters):
            notes.append(
                f"adapter {record.name!r} has rank {held.rank} and {held.parameters} parameters, and its record says "
                f"rank {record.rank} and {record.parameters}, by which policies and loads were reckoned"
            )
        records.append(record)
    if not records:
        return scenario, ()
    if (more := len(unknown) - _NAMED) > 0:
        unknown[_NAMED:] = [f"{more} more adapters are not registered: scenario.yaml of the results has their digests"]
    section = scenario.adapters.model_copy(update={"records": records})
    return scenario.model_copy(update={"adapters": section}), (*unknown, *notes)
