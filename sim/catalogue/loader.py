"""Model names and Hugging Face configs -> ModelSpec."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from serving.errors import InputError
from sim.catalogue.model import ModelSpec
from sim.catalogue.names import unknown_name

FAMILIES: tuple[str, ...] = ("llama", "mistral", "qwen2", "qwen3")
"""``model_type`` values of a Hugging Face config that `ModelSpec` describes exactly."""

_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@functools.cache
def _table() -> dict[str, ModelSpec]:
    text = resources.files("sim.catalogue").joinpath("models.yaml").read_text(encoding="utf-8")
    rows: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return {name: from_config(row, name, row["source"]) for name, row in rows.items()}


def model_names() -> tuple[str, ...]:
    """Names the catalogue knows, in its order."""
    return tuple(_table())


def model(name_or_path: str | Path) -> ModelSpec:
    """The model called ``name_or_path``, or read from a Hugging Face ``config.json`` or a folder that holds one.

    Raises `InputError` for an unknown name (with the nearest ones), a missing or broken file, or another family.

    >>> model("llama-3.1-8b").kv_bytes_per_token()
    131072
    """
    if isinstance(name_or_path, str) and name_or_path in _table():
        return _table()[name_or_path]
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "config.json"
        if not path.is_file():
            raise InputError(f"model folder {name_or_path} holds no config.json: give a Hugging Face model folder")
    if not path.is_file():
        if path.suffix == ".json":
            raise InputError(f"model config {name_or_path} does not exist: give the path of a Hugging Face config.json")
        raise unknown_name("model", name_or_path, _table(), "; or give the path of a Hugging Face config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model config {path} cannot be read as JSON ({error}): give a Hugging Face config") from None
    if not isinstance(config, dict):
        raise InputError(f"model config {path} is not a JSON object: give a Hugging Face config.json")
    return from_config(config, path.parent.resolve().name or path.stem, f"config.json of {path.parent.resolve().name}")


def from_config(config: Mapping[str, Any], name: str, source: str) -> ModelSpec:
    """A `ModelSpec` from the keys of a Hugging Face config. Raises `InputError` for what it does not describe."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise InputError(
            f"model {name} is of type {family!r}, which Loratory does not model: use one of {', '.join(FAMILIES)}"
        )
    if config.get("quantization_config"):
        raise InputError(f"model {name} is quantised, which Loratory does not model: use the 16-bit checkpoint")

    def number(key: str, default: int | None = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"model {name}: {key} is {value!r} in its config.json; it must be a whole number above 0")
        return value

    heads = number("num_attention_heads")
    hidden = number("hidden_size")
    kv_heads = number("num_key_value_heads", heads if family == "llama" else None)
    if heads % kv_heads:
        raise InputError(f"model {name}: {heads} attention heads do not share {kv_heads} KV heads evenly")
    bias = bool(config.get("attention_bias", False))
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    if dtype not in _DTYPES:
        raise InputError(f"model {name}: torch_dtype {dtype!r} is not modelled: use one of {', '.join(_DTYPES)}")
    return ModelSpec(
        name=name,
        family=str(family),
        hidden=hidden,
        layers=number("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=number("head_dim", 128 if family == "qwen3" else max(1, hidden // heads)),
        intermediate=number("intermediate_size"),
        vocab=number("vocab_size"),
        max_position_embeddings=number("max_position_embeddings"),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=True if family == "qwen2" else bias,
        o_bias=False if family == "qwen2" else bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        dtype=_DTYPES[dtype],
        source=source,
    )
