"""pair: combines a weight file's tensors into LoRA modules, checked against configuration and base model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from loratory.adapters.files.description import LoRAModule
from loratory.adapters.files.module_paths import PREFIX, WRAPPERS, Place, bare, not_linear, place_of, read_as, why_none
from loratory.adapters.files.peft_config import LoraSettings
from loratory.adapters.files.peft_fields import EXTRA_TENSORS
from loratory.adapters.files.peft_patterns import Patterns
from loratory.adapters.files.safetensors_header import TensorEntry
from loratory.adapters.files.strict_json import shown
from loratory.errors import InvalidAdapter
from loratory.models.linear_layers import BLOCKS, HEAD
from loratory.models.shape import ModelShape

MAX_LAYERS = 1024
"""Layers that an adapter may have where no base model is given."""

_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight", re.ASCII)
_NAMED = re.compile(r".+\.lora_[AB]\.(\w+)\.weight")

_LAYER = "model.layers.{layer}.{parent}.{name}"
_Pairs = Mapping[str, Mapping[str, TensorEntry]]


def pair(
    tensors: Sequence[TensorEntry],
    settings: LoraSettings,
    base: ModelShape | None,
    allowed: frozenset[str],
    config: str,
    weights: str,
) -> tuple[LoRAModule, ...]:
    """The modules in order of layer and `BLOCKS`. ``config`` and ``weights`` are the two files' names in messages.

    Modules may be below the name of a wrapper (`loratory.adapters.files.module_paths`): they are called as in a
    causal language model, and the configuration's patterns are matched with the names in the file. Without ``base``,
    the model is taken to have the layers up to the last one that either file names. Raises `InvalidAdapter`.
    """
    pairs = _pairs(tensors, weights)
    found: dict[tuple[bool, int, int], tuple[str, Place]] = {}
    for path in pairs:
        place = _place(path, base, allowed, weights)
        other, _ = found.setdefault(place.order, (path, place))
        if other != path:
            raise InvalidAdapter(
                f"{weights} has LoRA matrices of {shown(other)} and of {shown(path)}, which are one layer: keep one"
            )
    places = [found[key] for key in sorted(found)]
    layers = _layers([place for _, place in places], settings, base, config)
    readings = _readings([place for _, place in places if place.name != HEAD], weights)
    head = next((place.readings for _, place in places if place.name == HEAD), ())
    read: list[tuple[LoRAModule, ...]] = []
    refusal: InvalidAdapter | None = None
    patterns = Patterns(config)
    for number in range(max(len(readings), len(head))):
        reading = _Reading(*(each[min(number, len(each) - 1)] if each else "" for each in (readings, head)))
        try:
            read.append(_modules(pairs, places, reading, settings, base, layers, config, weights, patterns))
        except InvalidAdapter as error:
            refusal = refusal or error
    if not read:
        assert refusal is not None, "there is a reading"
        raise refusal
    if any(modules != read[0] for modules in read):
        raise InvalidAdapter(
            f"{config} has patterns that mean other modules with {_wrappers(pairs)} in the keys than without: rename "
            f"the keys of {weights} as PEFT would have them"
        )
    return read[0]


class _Reading(NamedTuple):
    """One way to read the paths that the configuration's patterns are matched with: a layer's (`Place`), the head's."""

    layer: str
    head: str

    def path(self, place: Place) -> str:
        return self.head if place.name == HEAD else read_as(self.layer, place.layer, place.name)


def _modules(
    pairs: _Pairs,
    places: Sequence[tuple[str, Place]],
    reading: _Reading,
    settings: LoraSettings,
    base: ModelShape | None,
    layers: int,
    config: str,
    weights: str,
    patterns: Patterns,
) -> tuple[LoRAModule, ...]:
    """The modules, by one way to read the paths that the configuration's patterns are matched with."""
    held = {reading.path(place) for _, place in places}
    _check_targets(settings, held, reading, layers, config, weights, patterns)
    modules = []
    for key, place in places:
        a, b = pairs[key]["A"], pairs[key]["B"]
        path = reading.path(place)
        rank = settings.rank(path, patterns)
        _check_shapes(a, b, rank, place.name, base, config, weights)
        scaling = settings.scaling(path, rank, patterns)
        widths = a.shape[1], b.shape[0]
        modules.append(LoRAModule(place.path, place.name, place.layer, rank, scaling, *widths, a.key, b.key))
    return tuple(modules)


def _readings(places: Sequence[Place], weights: str) -> tuple[str, ...]:
    """How all paths can be read alike: without wrappers, and with them if each has the same."""
    if not places:
        return ()
    first = places[0].readings[0]
    other = next((place for place in places if place.readings[0] != first), None)
    if other is not None:
        raise InvalidAdapter(
            f"{weights} has LoRA matrices of {shown(places[0].path)} below {_above(first)} and of {shown(other.path)} "
            f"below {_above(other.readings[0])}: rename the keys so that all layers are in one model"
        )
    as_it_is = {place.readings[-1] for place in places}
    return tuple(dict.fromkeys((first, *(as_it_is if len(as_it_is) == 1 else ()))))


def _above(reading: str) -> str:
    return shown(reading.partition("layers.")[0].rstrip(".") or "nothing")


def _wrappers(pairs: _Pairs) -> str:
    return " and ".join(sorted({part for path in pairs for part in path.split(".")} & WRAPPERS))


def frozen_head(key: str) -> bool:
    """Whether a tensor is the base model's own output head, which PEFT saves beside LoRA on it, unchanged.

    It is ignored, as by vLLM (vllm/lora/utils.py).
    """
    return key.endswith(f".{HEAD}.base_layer.weight")


def _pairs(tensors: Sequence[TensorEntry], weights: str) -> _Pairs:
    """Path of a module to its two tensors."""
    pairs: dict[str, dict[str, TensorEntry]] = {}
    for tensor in tensors:
        match = _KEY.fullmatch(bare(tensor.key))
        if match is None:
            if frozen_head(tensor.key) and any(f".{HEAD}.lora_A." in other.key for other in tensors):
                continue
            raise InvalidAdapter(f"{weights} holds the tensor {shown(tensor.key)}: {_strange(tensor.key)}")
        sides = pairs.setdefault(match[1], {})
        if match[2] in sides:
            raise InvalidAdapter(
                f"{weights} has lora_{match[2]} of {shown(match[1])} twice, as {shown(sides[match[2]].key)} and as "
                f"{shown(tensor.key)}: keep one"
            )
        sides[match[2]] = tensor
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


def _place(path: str, base: ModelShape | None, allowed: frozenset[str], weights: str) -> Place:
    """Where a module is in the model. Raises `InvalidAdapter` for one that the model lacks or that is not allowed."""
    place = place_of(path)
    if place is None:
        raise InvalidAdapter(
            f"{weights} has LoRA matrices of {shown(path)}, which no served model has: {why_none(path)}"
        )
    if place.name not in allowed:
        raise InvalidAdapter(
            f"{weights} has LoRA matrices of {path}, but {place.name} is not among the allowed modules "
            f"({', '.join(sorted(allowed))}): allow it or retrain without it"
        )
    last = (base.layers if base else MAX_LAYERS) - 1
    if place.layer > last:
        raise InvalidAdapter(
            f"{weights} has LoRA matrices of {path}, but the base model's last layer is {last}: "
            "give the base model the adapter was trained on"
        )
    return place


def _layers(places: Sequence[Place], settings: LoraSettings, base: ModelShape | None, config: str) -> int:
    last = (base.layers if base else MAX_LAYERS) - 1
    asked = max(settings.layers, default=0)
    if asked > last:
        raise InvalidAdapter(
            f"{config}: layers_to_transform names layer {asked}, but the base model's last layer is {last}: "
            "give the base model the adapter was trained on"
        )
    return base.layers if base else max(asked, max(place.layer for place in places)) + 1


def _check_targets(
    settings: LoraSettings,
    held: set[str],
    reading: _Reading,
    layers: int,
    config: str,
    weights: str,
    patterns: Patterns,
) -> None:
    """Raises `InvalidAdapter` unless the file holds exactly the modules that the configuration targets.

    A name in a list that matches no module is accepted, as by PEFT, if another one matches.
    """
    unused = set() if isinstance(settings.target_modules, str) else set(settings.target_modules)
    paths = [(read_as(reading.layer or _LAYER, layer, name), layer) for layer in range(layers) for name in BLOCKS]
    for path, layer in (*paths, (reading.head or HEAD, None)):
        unused -= settings.names(path)
        if settings.targets(path, layer, patterns) != (path in held):
            if path in held:
                raise InvalidAdapter(
                    f"{weights} has LoRA matrices of {path}, which target_modules of {config} leaves out: "
                    "save configuration and weights of the same adapter"
                )
            raise InvalidAdapter(
                f"{weights} has no LoRA matrices of {path}, which target_modules of {config} promises: "
                "save configuration and weights of the same adapter, and check the base model"
            )
    if not unused:
        return
    for path in not_linear(layers):
        if named := sorted(settings.names(path) & unused):
            raise InvalidAdapter(
                f"{config}: target_modules names {shown(named[0])}, which is no linear layer but {path}: "
                "save configuration and weights of the same adapter, trained on linear layers"
            )


def _check_shapes(
    a: TensorEntry, b: TensorEntry, rank: int, name: str, base: ModelShape | None, config: str, weights: str
) -> None:
    for tensor, axis, side in ((a, 0, "A"), (b, 1, "B")):
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            raise InvalidAdapter(
                f"{weights}: {tensor.key} has shape {list(tensor.shape)}: lora_{side} must be a matrix, save it again"
            )
        if tensor.shape[axis] != rank:
            raise InvalidAdapter(
                f"{weights}: {tensor.key} has rank {tensor.shape[axis]} (shape {list(tensor.shape)}), but {config} "
                f"gives it {rank} by r and rank_pattern: save configuration and weights of the same adapter"
            )
    if base is None:
        return
    for tensor, axis, width, side in ((a, 1, base.widths(name)[0], "in"), (b, 0, base.widths(name)[1], "out")):
        if tensor.shape[axis] != width:
            raise InvalidAdapter(
                f"{weights}: {tensor.key} has {tensor.shape[axis]} {side}put features, but the base model's {name} has "
                f"{width}: give the base model the adapter was trained on"
            )
