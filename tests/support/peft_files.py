"""PEFT adapter files for tests: written as PEFT writes them, and described as validation describes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from loratory.adapters.files.description import AdapterDescription, LoRAModule
from loratory.adapters.files.digest import begin_digest, digest_text
from loratory.adapters.files.safetensors_header import read_header
from loratory.adapters.sources.source import AdapterSource
from loratory.adapters.verified import VerifiedAdapter
from loratory.executor.lora.shapes import LoRAShapes
from loratory.models.linear_layers import BLOCKS, HEAD


def path_of(layer: int, module: str) -> str:
    """The name of a linear layer in the base model."""
    if module == HEAD:
        return HEAD
    return f"model.layers.{layer}.{BLOCKS[module]}.{module}"


def random_tensors(shapes: LoRAShapes, ranks: Mapping[tuple[int, str], int], seed: int) -> dict[str, Tensor]:
    """float32 A and B under PEFT's keys, for the modules of ``ranks``: (layer, module) -> rank."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for (layer, module), rank in ranks.items():
        width_in, width_out = shapes.model.widths(module)
        key = f"base_model.model.{path_of(layer, module)}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(rank, width_in, generator=generator) / math.sqrt(width_in)
        tensors[f"{key}.lora_B.weight"] = torch.randn(width_out, rank, generator=generator)
    return tensors


def describe(
    shapes: LoRAShapes, ranks: Mapping[tuple[int, str], int], scalings: Mapping[tuple[int, str], float]
) -> AdapterDescription:
    """The description of an adapter with those ranks and scalings."""
    modules = []
    for (layer, module), rank in ranks.items():
        key, (width_in, width_out) = f"base_model.model.{path_of(layer, module)}", shapes.model.widths(module)
        modules.append(
            LoRAModule(
                path=path_of(layer, module),
                name=module,
                layer=layer,
                rank=rank,
                scaling=scalings[layer, module],
                in_features=width_in,
                out_features=width_out,
                key_a=f"{key}.lora_A.weight",
                key_b=f"{key}.lora_B.weight",
            )
        )
    numbers = sum(one.rank * (one.in_features + one.out_features) for one in modules)
    return AdapterDescription(
        rank=max(ranks.values()),
        alpha=1.0,
        use_rslora=False,
        target_modules=tuple(sorted({module for _, module in ranks})),
        base_model=None,
        dtype="F32",
        bytes=4 * numbers,
        digest="sha256:" + "0" * 64,
        modules=tuple(modules),
    )


def write(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Saves the weights as ``adapter_model.safetensors`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), str(folder / "adapter_model.safetensors"))
    return folder


def verified(folder: Path, described: AdapterDescription) -> VerifiedAdapter:
    """What is in ``folder`` now, as a fetcher hands it out once it has compared it."""
    path = folder / described.weights
    with path.open("rb") as file:
        header = read_header(file, path.stat().st_size, str(path))
        digest = begin_digest(
            described.base_model, described.alpha, described.use_rslora, described.modules, header.tensors
        )
        digest.update(file.read())
    described = replace(described, digest=digest_text(digest))
    return VerifiedAdapter("a", AdapterSource("local", "", str(folder)), folder, described, described.digest)


def describe_peft(folder: Path, shapes: LoRAShapes) -> AdapterDescription:
    """Reads what PEFT's own ``save_pretrained`` wrote; scaling by PEFT's rules: pattern, alpha, rsLoRA."""
    import re

    from safetensors import safe_open

    config = json.loads((folder / "adapter_config.json").read_text())
    with safe_open(str(folder / "adapter_model.safetensors"), framework="pt") as file:
        ranks = {}
        for key in file.keys():  # noqa: SIM118
            if found := re.fullmatch(r".*layers\.(\d+)\.\w+\.(\w+)\.lora_A\.weight", key):
                ranks[int(found[1]), found[2]] = file.get_slice(key).get_shape()[0]
    alphas = {
        key: next((a for p, a in config["alpha_pattern"].items() if path_of(*key).endswith(p)), config["lora_alpha"])
        for key in ranks
    }
    root = config["use_rslora"]
    return describe(shapes, ranks, {k: alphas[k] / (math.sqrt(r) if root else r) for k, r in ranks.items()})
