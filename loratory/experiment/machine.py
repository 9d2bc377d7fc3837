"""machine: the executor's machine for a scenario: its model, and the verified files of its adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loratory.errors import InputError
from loratory.executor.cpu_threads import set_cpu_threads, use_threads
from loratory.experiment.resolve import Built
from loratory.scenarios.schema import Scenario
from loratory.serving.lora import Adapter
from loratory.sim.catalogue import ModelSpec, resolve_targets
from loratory.user_files import adapter_cache

if TYPE_CHECKING:
    from loratory.adapters.sources.cache import AdapterCache
    from loratory.adapters.verified import VerifiedAdapter
    from loratory.executor.machine import Machine
    from loratory.executor.model import Model

SYNTHETIC = "synthetic://"
"""How the paths of adapters begin that a scenario makes up; their weights are made up as well."""


@contextmanager
def machine_for(scenario: Scenario, built: Built) -> Iterator[Machine]:
    """The machine for a scenario: its checkpoint or random weights, its adapters' files or random ones.

    Raises `InputError` where PyTorch is not installed, for a bad checkpoint or adapter, and for too little memory.
    """
    set_cpu_threads()
    try:
        import torch  # noqa: F401

        from loratory.executor.machine import Machine
    except ImportError as error:
        raise InputError(f'the executor needs {error.name}: pip install "loratory[executor]"') from error

    spec = scenario.executor
    use_threads(spec.threads, "executor.threads")
    model = load_model(spec.checkpoint, built.model, spec.dtype, spec.device)
    targets = resolve_targets(scenario.adapters.target_modules)
    with tempfile.TemporaryDirectory(prefix="loratory-adapters-") as scratch, adapter_cache() as cache:
        files = adapter_files(built.adapters, model, Path(scratch), targets, cache, built.engine.max_lora_rank)
        yield Machine(model, built.engine, files, targets if files else None)


def load_model(checkpoint: str | None, spec: ModelSpec, dtype: str, device: str) -> Model:
    """A checkpoint's model, or random weights in the shape of ``spec``, made on the device and never written.

    ``device`` ``auto`` is cuda where there is one. Raises `InputError` for a bad checkpoint or too little memory.
    """
    import torch

    from loratory.executor.checkpoint import resolve_dtype
    from loratory.executor.model import Model, resolve_device
    from loratory.executor.model_config import ModelConfig
    from loratory.executor.random_checkpoint import RandomTensors

    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if checkpoint is not None:
        return Model.load(checkpoint, dtype, place)
    config = ModelConfig(spec.shape, max_positions=spec.context.default)
    kind, where = resolve_dtype(dtype, config), resolve_device(place)
    return Model(config, RandomTensors(0, spec.shape.tied, kind, where), kind, where)


def adapter_files(
    adapters: Sequence[Adapter],
    model: Model,
    folder: Path,
    targets: Sequence[str],
    cache: AdapterCache,
    max_lora_rank: int,
) -> dict[str, VerifiedAdapter]:
    """The files of each adapter: from its source, or random ones written into ``folder`` for synthetic adapters.

    Raises `InputError` for an adapter whose content does not have its digest, or that does not fit the model.
    """
    from loratory.adapters.fetch import AdapterFetcher
    from loratory.adapters.files.validation import FileLimits
    from loratory.executor.random_checkpoint import random_adapter

    checked = AdapterFetcher(cache, FileLimits(max_lora_rank=max_lora_rank, base=model.shape))
    files: dict[str, VerifiedAdapter] = {}
    for adapter in adapters:
        path = adapter.lora.lora_path
        if path.startswith(SYNTHETIC):
            place, seed = folder / str(adapter.lora.lora_int_id), adapter.lora.lora_int_id
            path = str(random_adapter(place, model.config, adapter.rank, target_modules=targets, seed=seed))
        files[adapter.name] = checked.verified(adapter.ref, path, adapter.digest)
    return files
