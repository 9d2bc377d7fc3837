"""Recorded scenario: what a server was asked, as a scenario that `loratory run` reads; its trace are the requests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loratory.adapters.verified import VerifiedAdapter
from loratory.errors import InputError
from loratory.models.linear_layers import LINEAR_MODULES
from loratory.scenarios.load import dump, load_text
from loratory.scenarios.registry_adapters import RecordSpec
from loratory.scenarios.schema import Scenario
from loratory.server.base_models import BaseModels
from loratory.server.recording_folder import PROFILE, REQUESTS
from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter
from loratory.sim.catalogue import gpu, model, resolve_targets
from loratory.sim.cost import MemoryOptions, oversized

_WORDS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_GPUS = ("l4", "a100-40gb", "a100-80gb", "h100-80gb", "h200", "mi300x")
"""By memory: where the server's device has no entry, the first that holds it; only its memory counts."""

_STANDS = """\
# The server ran on {device}, which is not in the catalogue of GPUs. {gpu} stands for it: a
# simulation takes its memory from there, and the times of steps and loads from {profile}.
"""


@dataclass(frozen=True, slots=True)
class ServedSetup:
    """What a server serves, as far as a scenario says it. ``device``: cpu or cuda; ``device_name``: what it is.

    ``bases``: by which names adapters may know the base model; None: only by that of ``checkpoint``.
    """

    checkpoint: str
    config: EngineConfig
    policy: str
    dtype: str
    device: str
    device_name: str = ""
    threads: int | None = None
    bases: BaseModels | None = None


def record_of(adapter: Adapter, files: VerifiedAdapter | None, served: ServedSetup) -> RecordSpec:
    """An adapter as a scenario has it; ``files``: those it is served from, where they are known.

    Where its base model is the one that is served, under whatever name, it is called as the scenario's model is: only
    of others a run of the scenario says that they are for another.
    """
    base = adapter.lora.base_model_name
    if base is not None and served.bases is not None and served.bases.has(base):
        base = _model_name(served)
    identity = {
        "name": adapter.name,
        "lora_int_id": adapter.lora.lora_int_id,
        "rank": adapter.rank,
        "base_model": base,
        "version": adapter.version,
        "digest": adapter.digest,
    }
    if files is None:
        parameters = max(1, adapter.bytes // _item_bytes(served.dtype))
        more = {"source": adapter.lora.lora_path, "parameters": parameters, "target_modules": list(LINEAR_MODULES)}
    else:
        held, source = files.description, str(files.source)
        more = {
            "source": os.path.abspath(source) if files.source.kind == "local" else source,
            "parameters": held.parameters,
            "target_modules": list(held.target_modules),
            "digest": held.digest,
        }
    return RecordSpec.model_validate({key: value for key, value in {**identity, **more}.items() if value is not None})


def recorded_scenario(
    served: ServedSetup, records: Sequence[RecordSpec], pinned: Sequence[str], folder: Path, started: str
) -> str:
    """The text of scenario.yaml in a recording's folder, which has the trace and the profile already.

    Raises `InputError` for a model that the simulator does not know.
    """
    checkpoint = _checkpoint(served)
    adapters: dict[str, object] = {"count": 0}
    if records:
        adapters = {"records": [record.model_dump(exclude_none=True) for record in records]}
        if pinned:
            adapters["pinned"] = list(pinned)
    config = served.config.model_dump(exclude_none=True, exclude_defaults=True)
    dtype = _WORDS.get(served.dtype)
    executor: dict[str, object] = {"checkpoint": checkpoint, "dtype": served.dtype, "device": served.device}
    if served.threads is not None:
        executor["threads"] = served.threads
    gpu, own = _gpu(served, checkpoint, bool(records), dtype)
    device, started = served.device_name or served.device, f"what a server was asked since {started}"
    stands = "" if own else f"; a simulation takes the memory of {gpu} in its place"
    raw = {
        "name": "recorded",
        "description": f"{started}; its device: {device}{stands}",
        "model": checkpoint,
        "gpu": gpu,
        "engine": {**config, "async_scheduling": False},
        "cost": {"kind": "profile", "profile": str(folder / PROFILE)},
        "memory": {} if dtype is None else {"dtype": dtype},
        "adapters": adapters,
        "tenants": {"map": "trace"},
        "workload": {"trace": str(folder / REQUESTS), "format": "generic", "max_tokens": "trace"},
        "policies": [served.policy],
        "executor": executor,
    }
    text = dump(Scenario.model_validate(raw, context={"folders": (folder,)}))
    for name in (PROFILE, REQUESTS):
        text = text.replace(str(folder / name), name)
    load_text(text, "scenario.yaml", folder, unbounded=True)
    return text if own else _STANDS.format(gpu=gpu, device=device, profile=PROFILE) + text


def _checkpoint(served: ServedSetup) -> str:
    """The scenario's model."""
    return os.path.abspath(served.checkpoint) if os.path.exists(served.checkpoint) else served.checkpoint


def _model_name(served: ServedSetup) -> str:
    """What runs of the scenario call its model."""
    return os.path.basename(_checkpoint(served).rstrip("/")) or served.checkpoint


def _gpu(served: ServedSetup, checkpoint: str, adapters: bool, dtype: str | None) -> tuple[str, bool]:
    """The catalogue's name of the device and true, or of a GPU with enough memory and false."""
    told = served.device_name.lower().replace(" ", "-")
    for name in (*_GPUS[::-1], "b200", "l40s", "a10g"):
        if served.device == "cuda" and name.partition("-")[0] in told.split("-"):
            return name, True
    spec = model(checkpoint)
    targets = resolve_targets("all-linear") if adapters else ()
    options = MemoryOptions(dtype=dtype)
    fitting = (name for name in _GPUS if oversized(spec, gpu(name), served.config, targets, options) is None)
    return next(fitting, _GPUS[-1]), False


def _item_bytes(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def without_scenario(error: InputError) -> str:
    """What is logged where no scenario can be written."""
    return f"the recording has no scenario.yaml, so loratory run cannot read it: {error}"
