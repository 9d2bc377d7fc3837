"""model: a ModelSpec by its name in the catalogue, or from a Hugging Face config."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from loratory.errors import InputError
from loratory.models.config_file import read_object
from loratory.models.decoder import DTYPES, FAMILIES, decoder
from loratory.sim.catalogue.model import ModelSpec
from loratory.sim.catalogue.names import unknown_name

__all__ = ["FAMILIES", "from_config", "model", "model_names"]


@functools.cache
def _table() -> dict[str, ModelSpec]:
    text = resources.files("loratory.sim.catalogue").joinpath("models.yaml").read_text(encoding="utf-8")
    rows: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return {name: from_config(row, name, row["source"]) for name, row in rows.items()}


def model_names() -> tuple[str, ...]:
    """Names of the models in the catalogue, in its order."""
    return tuple(_table())


def model(name_or_path: str | Path) -> ModelSpec:
    """The model called ``name_or_path``, or read from a Hugging Face ``config.json`` or a folder that holds one.

    Raises `InputError` for an unknown name (with the nearest ones), a missing or broken file, another family, or a
    checkpoint that is quantised.

    >>> model("llama-3.1-8b").kv_bytes_per_token()
    131072
    """
    if isinstance(name_or_path, str) and name_or_path in _table():
        return _table()[name_or_path]
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "config.json"
        if not path.is_file():
            gguf = next(iter(sorted(path.parent.glob("*.gguf"))), None)
            if gguf is not None:
                raise InputError(
                    f"model folder {name_or_path} holds {gguf.name} and no config.json: GGUF is not supported, "
                    "give the folder of the unquantised checkpoint"
                )
            raise InputError(f"model folder {name_or_path} holds no config.json: give a Hugging Face model folder")
    if not path.is_file():
        if path.suffix == ".json":
            raise InputError(f"model config {name_or_path} does not exist: give the path of a Hugging Face config.json")
        raise unknown_name("model", name_or_path, _table(), "give the path of a Hugging Face config.json")
    if path.suffix == ".gguf":
        raise InputError(
            f"model {name_or_path} is a GGUF file, which is not supported: give the unquantised checkpoint's folder"
        )
    folder = path.parent.resolve()
    config = read_object(path)
    return from_config(config, folder.name or path.stem, f"config.json of {folder.name}", folder)


def from_config(config: Mapping[str, Any], name: str, source: str, folder: Path | None = None) -> ModelSpec:
    """A `ModelSpec` from the keys of a Hugging Face config, which ``folder`` holds where it is a file.

    A float32 model is taken in bfloat16, as vLLM takes it (vllm/config/model.py, ``_resolve_auto_dtype``; every GPU of
    the catalogue computes in bfloat16). Raises `InputError` for what a spec does not describe.
    """
    described = decoder(config, f"model {name}", folder)
    saved = DTYPES[described.dtype]
    return ModelSpec(
        name=name,
        shape=described.shape,
        context=described.context,
        dtype="bf16" if saved == "fp32" else saved,
        saved_dtype=saved,
        source=source,
    )
