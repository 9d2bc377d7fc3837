"""Adapters on disk, written without PEFT: configuration, tensors, header and file of a small valid one."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loratory.models.linear_layers import BLOCKS
from loratory.models.shape import ModelShape

Tensors = dict[str, NDArray[Any]]

BASE = ModelShape(hidden=8, layers=2, heads=2, kv_heads=1, head_dim=4, intermediate=12, vocab=32)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
Q0 = "model.layers.0.self_attn.q_proj"
A0, B0 = f"{PREFIX}{Q0}.lora_A.weight", f"{PREFIX}{Q0}.lora_B.weight"
NAMES = {"float32": "F32", "float16": "F16", "float64": "F64", "int8": "I8"}


def config(**fields: Any) -> dict[str, Any]:
    """A configuration as PEFT writes it, of an adapter on q_proj and v_proj."""
    plain = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj"],
    }
    rest = {"bias": "none", "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None}
    return plain | rest | {"base_model_name_or_path": "some/llama", "init_lora_weights": True} | fields


def tensors(names: tuple[str, ...] = ("q_proj", "v_proj"), rank: int = 2, layers: int = 2, seed: int = 0) -> Tensors:
    """Matrices of linear layers ``names`` of `BASE`."""
    rng = np.random.default_rng(seed)
    found: Tensors = {}
    for layer in range(layers):
        for name in names:
            width_in, width_out = BASE.widths(name)
            path = f"{PREFIX}model.layers.{layer}.{BLOCKS[name]}.{name}"
            found[f"{path}.lora_A.weight"] = rng.normal(size=(rank, width_in)).astype(np.float32)
            found[f"{path}.lora_B.weight"] = rng.normal(size=(width_out, rank)).astype(np.float32)
    return found


def header(found: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """What a safetensors header says of ``found``, in their order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for key, tensor in found.items():
        ends = [position, position + tensor.nbytes]
        entries[key] = {"dtype": NAMES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": ends}
        position = ends[1]
    return entries


def packed(entries: object, data: bytes) -> bytes:
    """A safetensors file with this header, an object or its text, and these bytes of tensors."""
    text = json.dumps(entries) if not isinstance(entries, (str, bytes)) else entries
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text)) + text + data


def data(found: Mapping[str, NDArray[Any]]) -> bytes:
    """The tensors' bytes, in their order."""
    return b"".join(tensor.tobytes() for tensor in found.values())


def write(folder: Path, fields: Mapping[str, Any] | None = None, found: Tensors | None = None) -> Path:
    """A valid adapter, unless ``fields`` or ``found`` say otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    found = tensors() if found is None else found
    (folder / CONFIG).write_text(json.dumps(config(**(fields or {}))))
    (folder / WEIGHTS).write_bytes(packed(header(found), data(found)))
    return folder
