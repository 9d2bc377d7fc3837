"""pair: the LoRA modules that a weight file's tensors make up, checked against configuration and base model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from serving.base_shapes import PARENTS, BaseShapes
from serving.description import LoRAModule
from serving.errors import InvalidAdapter
from serving.peft_config import LoraSettings
from serving.peft_fields import EXTRA_TENSORS
from serving.peft_patterns import Patterns
from serving.safetensors_header import Tensor
from serving.strict_json import shown

PREFIX = "base_model.model."
"""What PEFT puts before the path of a module in the base model."""

MAX_LAYERS = 1024
"""Layers an adapter may have when no base model says how many there are."""

_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight", re.ASCII)
_PATH = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,5})\.(\w+)\.(\w+)", re.ASCII)
_NAMED = re.compile(r".+\.lora_[AB]\.(\w+)\.weight")


def pair(
    tensors: Sequence[Tensor],
    settings: LoraSettings,
    base: BaseShapes | None,
    allowed: frozenset[str],
    config: str,
    weights: str,
) -> tuple[LoRAModule, ...]:
    """The modules in order of layer and `PARENTS`. ``config`` and ``weights`` are the two files' names in messages.

    Without ``base``, the model is taken to have the layers up to the last one that either file names.
    Raises `InvalidAdapter`.
    """
    patterns = Patterns(config)
    pairs = _pairs(tensors, weights)
    names = tuple(PARENTS)
    found = []
    for path in pairs:
        layer, name = _place(path, base, allowed, weights)
        found.append((layer, names.index(name), path))
    _check_targets(
        settings, {path for _, _, path in found}, _layers(found, settings, base, config), config, weights, patterns
    )
    modules = []
    for layer, index, path in sorted(found):
        a, b = pairs[path]["A"], pairs[path]["B"]
        rank = settings.rank(path, patterns)
        _check_shapes(a, b, rank, names[index], base, config, weights)
        scaling = settings.scaling(path, rank, patterns)
        modules.append(LoRAModule(path, names[index], layer, rank, scaling, a.shape[1], b.shape[0], a.key, b.key))
    return tuple(modules)


def _pairs(tensors: Sequence[Tensor], weights: str) -> Mapping[str, Mapping[str, Tensor]]:
    """Path of a module to its two tensors."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        match = _KEY.fullmatch(tensor.key)
        if match is None:
            raise InvalidAdapter(f"{weights} holds the tensor {shown(tensor.key)}: {_strange(tensor.key)}")
        pairs.setdefault(match[1], {})[match[2]] = tensor
    for path, sides in pairs.items():
        for side, other in (("A", "B"), ("B", "A")):
            if side not in sides:
                raise InvalidAdapter(
                    f"{weights} has lora_{other} of {shown(path)} without its lora_{side}: save the adapter again"
                )
    return pairs


def _strange(key: str) -> str:
    for part, reason in EXTRA_TENSORS.items():
        if part in key:
            return reason
    named = _NAMED.fullmatch(key)
    if named and key.startswith(PREFIX):
        return f"it carries the adapter's name {shown(named[1])}; save the adapter with PEFT's save_pretrained"
    if not key.startswith(PREFIX) and ".lora_" in key:
        return f"its key does not begin with {PREFIX!r}; save the adapter with PEFT's save_pretrained"
    return "only lora_A and lora_B of linear layers are served; save the adapter without other weights"


def _place(path: str, base: BaseShapes | None, allowed: frozenset[str], weights: str) -> tuple[int, str]:
    """(layer, name) of a module."""
    match = _PATH.fullmatch(path)
    if match is None or PARENTS.get(match[3]) != match[2]:
        raise InvalidAdapter(
            f"{weights} has LoRA matrices of {shown(path)}, which no served model has: retrain on the linear layers of "
            f"a causal language model, {', '.join(PARENTS)}"
        )
    layer, name = int(match[1]), match[3]
    if name not in allowed:
        raise InvalidAdapter(
            f"{weights} has LoRA matrices of {path}, and {name} is not among the allowed modules "
            f"({', '.join(sorted(allowed))}): allow it or retrain without it"
        )
    last = (base.layers if base else MAX_LAYERS) - 1
    if layer > last:
        raise InvalidAdapter(
            f"{weights} has LoRA matrices of {path}, and the base model's last layer is {last}: "
            "give the base model the adapter was trained on"
        )
    return layer, name


def _layers(found: Sequence[tuple[int, int, str]], settings: LoraSettings, base: BaseShapes | None, config: str) -> int:
    last = (base.layers if base else MAX_LAYERS) - 1
    asked = max(settings.layers, default=0)
    if asked > last:
        raise InvalidAdapter(
            f"{config}: layers_to_transform names layer {asked}, and the base model's last layer is {last}: "
            "give the base model the adapter was trained on"
        )
    return base.layers if base else max(asked, max(layer for layer, _, _ in found)) + 1


def _check_targets(
    settings: LoraSettings, held: set[str], layers: int, config: str, weights: str, patterns: Patterns
) -> None:
    """The file must hold the modules that the configuration promises: all of them and no others."""
    unused = set() if isinstance(settings.target_modules, str) else set(settings.target_modules)
    for layer in range(layers):
        for name, parent in PARENTS.items():
            path = f"model.layers.{layer}.{parent}.{name}"
            unused -= settings.names(path)
            if settings.targets(path, layer, patterns) == (path in held):
                continue
            if path in held:
                raise InvalidAdapter(
                    f"{weights} has LoRA matrices of {path}, which target_modules of {config} leaves out: "
                    "save configuration and weights of the same adapter"
                )
            raise InvalidAdapter(
                f"{weights} has no LoRA matrices of {path}, which target_modules of {config} promises: "
                "save configuration and weights of the same adapter, and check the base model"
            )
    if unused:
        raise InvalidAdapter(
            f"{config}: target_modules names {shown(min(unused))}, which is no linear layer of a served model with "
            f"{layers} layers: use {', '.join(PARENTS)}"
        )


def _check_shapes(
    a: Tensor, b: Tensor, rank: int, name: str, base: BaseShapes | None, config: str, weights: str
) -> None:
    for tensor, axis, side in ((a, 0, "A"), (b, 1, "B")):
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            raise InvalidAdapter(
                f"{weights}: {tensor.key} has shape {list(tensor.shape)}: lora_{side} must be a matrix, save it again"
            )
        if tensor.shape[axis] != rank:
            raise InvalidAdapter(
                f"{weights}: {tensor.key} has rank {tensor.shape[axis]} (shape {list(tensor.shape)}), and {config} "
                f"gives it {rank} by r and rank_pattern: save configuration and weights of the same adapter"
            )
    if base is None:
        return
    for tensor, axis, width, side in ((a, 1, base.widths(name)[0], "in"), (b, 0, base.widths(name)[1], "out")):
        if tensor.shape[axis] != width:
            raise InvalidAdapter(
                f"{weights}: {tensor.key} has {tensor.shape[axis]} {side}put features, and the base model's {name} has "
                f"{width}: give the base model the adapter was trained on"
            )
