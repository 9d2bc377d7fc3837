"""LoraSettings: an adapter's configuration, once every field of it has been accepted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from loratory.adapters.files.peft_fields import EMPTY_IS_OFF, HANDLED, IGNORED, MUTATING_INITS, PLAIN_INITS, REFUSED
from loratory.adapters.files.peft_patterns import Patterns
from loratory.adapters.files.strict_json import shown
from loratory.errors import InvalidAdapter

MAX_ENTRIES = 10_000
"""Entries that a list or a table of patterns may have."""

_ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """PEFT's LoraConfig as far as it decides what a saved adapter does; field names are PEFT's.

    A string ``target_modules`` or ``exclude_modules`` is a regular expression of the whole path, or ``all-linear``;
    a set's entries are suffixes of paths. ``layers`` is PEFT's ``layers_to_transform``: empty means all.
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    target_modules: str | frozenset[str]
    exclude_modules: str | frozenset[str]
    layers: frozenset[int]
    layers_pattern: tuple[str, ...]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    base_model: str | None

    def rank(self, path: str, patterns: Patterns) -> int:
        """The configured rank of module ``path``."""
        key = patterns.key(self.rank_pattern, path)
        return self.r if key is None else self.rank_pattern[key]

    def scaling(self, path: str, rank: int, patterns: Patterns) -> float:
        """alpha / rank, or alpha / sqrt(rank) with rsLoRA (peft/tuners/lora/layer.py, ``update_layer``)."""
        key = patterns.key(self.alpha_pattern, path)
        alpha = self.lora_alpha if key is None else self.alpha_pattern[key]
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, path: str, layer: int | None, patterns: Patterns) -> bool:
        """Whether PEFT gives linear layer ``path`` LoRA matrices; ``layer`` is None for the output head.

        peft/tuners/tuners_utils.py, ``check_target_module_exists`` (0.21); ``all-linear`` there means every linear
        layer but the output head.
        """
        if isinstance(self.exclude_modules, str):
            if self.exclude_modules and patterns.whole(self.exclude_modules, path):
                return False
        elif _suffixes(path) & self.exclude_modules:
            return False
        if isinstance(self.target_modules, str):
            if self.target_modules.lower() == _ALL_LINEAR:
                return layer is not None
            return patterns.whole(self.target_modules, path)
        if not _suffixes(path) & self.target_modules:
            return False
        if not self.layers:
            return True
        named = not self.layers_pattern or any(
            patterns.begins(rf"(?:^|.*?\.){pattern}\.(\d+)\.", path) for pattern in self.layers_pattern
        )
        return named and layer in self.layers

    def names(self, path: str) -> set[str]:
        """The entries of a list of target modules that mean ``path``."""
        return set() if isinstance(self.target_modules, str) else _suffixes(path) & self.target_modules


def read_settings(config: Mapping[str, object], where: str) -> LoraSettings:
    """Settings from the object in ``adapter_config.json``, whose name in messages is ``where``.

    Raises `InvalidAdapter` for a value that PEFT would not have written, a variant of LoRA that is not served, and an
    unknown field that is not off.
    """
    fields = _Fields(config, where)
    kind = config.get("peft_type")
    if kind is None:
        raise InvalidAdapter(f"{where} has no peft_type: save the adapter with PEFT's save_pretrained")
    if kind != "LORA":
        raise InvalidAdapter(f"{where}: peft_type is {shown(kind)}, but only LORA is served: retrain with LoraConfig")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise InvalidAdapter(
            f"{where}: task_type is {shown(config['task_type'])}, but only CAUSAL_LM is served: retrain for generation"
        )
    for name, types in IGNORED.items():
        fields.check_type(name, types)
    for name, reason in REFUSED.items():
        if not fields.off(name):
            raise InvalidAdapter(f"{where}: {name} is {shown(config[name])}, which is refused: {reason}")
    for name in config:
        if name not in HANDLED and name not in IGNORED and name not in REFUSED and config[name]:
            raise InvalidAdapter(
                f"{where}: the field {shown(name)} is unknown and not off ({shown(config[name])}): "
                "retrain without it, or remove it if it changes no output"
            )
    if config.get("bias", "none") not in ("none", None):
        raise InvalidAdapter(
            f"{where}: bias is {shown(config['bias'])}, but trained biases are not served: retrain with bias='none'"
        )
    _check_init(config.get("init_lora_weights", True), where)
    targets = fields.names("target_modules")
    if not targets:
        raise InvalidAdapter(f"{where}: target_modules names no module: list the linear layers that were trained")
    layers = fields.layers()
    pattern = fields.names("layers_pattern")
    if isinstance(targets, str) and (config.get("layers_to_transform") is not None or pattern):
        raise InvalidAdapter(
            f"{where}: layers_to_transform and layers_pattern need a list of target_modules, but it is the string "
            f"{shown(targets)}: list the modules"
        )
    if pattern and config.get("layers_to_transform") is None:
        raise InvalidAdapter(f"{where}: layers_pattern needs layers_to_transform: give both or neither")
    base = config.get("base_model_name_or_path")
    if base is not None and not (isinstance(base, str) and base.isprintable()):
        raise InvalidAdapter(
            f"{where}: base_model_name_or_path is {shown(base)}: it must be a name, a path or null, on one line"
        )
    rslora = config.get("use_rslora") or False
    if not isinstance(rslora, bool):
        raise InvalidAdapter(f"{where}: use_rslora is {shown(rslora)}: it must be true or false")
    return LoraSettings(
        r=_rank(config.get("r"), f"{where}: r"),
        lora_alpha=_alpha(config.get("lora_alpha"), f"{where}: lora_alpha"),
        use_rslora=rslora,
        target_modules=targets,
        exclude_modules=fields.names("exclude_modules"),
        layers=layers,
        layers_pattern=(pattern,) if isinstance(pattern, str) and pattern else tuple(sorted(pattern)),
        rank_pattern={
            key: _rank(value, f"{where}: rank_pattern of {shown(key)}") for key, value in fields.table("rank")
        },
        alpha_pattern={
            key: _alpha(value, f"{where}: alpha_pattern of {shown(key)}") for key, value in fields.table("alpha")
        },
        base_model=base or None,
    )


class _Fields:
    """Typed access to the configuration."""

    def __init__(self, config: Mapping[str, object], where: str) -> None:
        self.config = config
        self.where = where

    def check_type(self, name: str, types: tuple[type, ...]) -> None:
        value = self.config.get(name)
        if value is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            raise InvalidAdapter(
                f"{self.where}: {name} is {shown(value)}, which PEFT does not write: "
                "remove it or save the adapter again"
            )

    def off(self, name: str) -> bool:
        value = self.config.get(name)
        return value is None or value is False or (name in EMPTY_IS_OFF and value in ([], {}))

    def names(self, name: str) -> str | frozenset[str]:
        value = self.config.get(name)
        if value is None:
            return frozenset()
        if isinstance(value, str):
            return value
        if isinstance(value, list) and len(value) <= MAX_ENTRIES and all(isinstance(entry, str) for entry in value):
            return frozenset(value)
        raise InvalidAdapter(f"{self.where}: {name} is {shown(value)}: it must be a string or a list of strings")

    def layers(self) -> frozenset[int]:
        value = self.config.get("layers_to_transform")
        layers = [] if value is None else value if isinstance(value, list) else [value]
        if len(layers) > MAX_ENTRIES or not all(type(layer) is int and layer >= 0 for layer in layers):
            raise InvalidAdapter(
                f"{self.where}: layers_to_transform is {shown(value)}: it must be layers' numbers, from 0"
            )
        return frozenset(layers)

    def table(self, name: str) -> list[tuple[str, object]]:
        value = self.config.get(f"{name}_pattern")
        if value is None:
            return []
        if not isinstance(value, dict) or len(value) > MAX_ENTRIES:
            raise InvalidAdapter(f"{self.where}: {name}_pattern is {shown(value)}: it must map modules to numbers")
        return list(value.items())


def _suffixes(path: str) -> set[str]:
    """The entries of a list that mean ``path``: the path itself, and what follows each of its dots."""
    parts = path.split(".")
    return {".".join(parts[first:]) for first in range(len(parts))}


def _check_init(value: object, where: str) -> None:
    """Raises `InvalidAdapter` for an initialisation that may have changed the base model."""
    if value is None or isinstance(value, bool):
        return
    name = value.lower() if isinstance(value, str) else ""
    if name in PLAIN_INITS:
        return
    if name.startswith(MUTATING_INITS):
        convert = (
            "retrain or extract a plain LoRA"
            if name.startswith("loftq")
            else ("save it again with save_pretrained(..., path_initial_model_for_weight_conversion=...)")
        )
        raise InvalidAdapter(
            f"{where}: init_lora_weights is {shown(value)}, which changes the base weights, so that the adapter is "
            f"wrong on the original base model: {convert}"
        )
    raise InvalidAdapter(
        f"{where}: init_lora_weights is {shown(value)}, which is unknown and may change the base weights: "
        "set it to true if the base model was left alone"
    )


def _rank(value: object, name: str) -> int:
    if type(value) is not int or not 1 <= value <= 1 << 20:
        raise InvalidAdapter(f"{name} is {shown(value)}: a rank is a whole number of at least 1")
    return value


def _alpha(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1e9:
        raise InvalidAdapter(f"{name} is {shown(value)}: it must be a finite number above 0")
    return float(value)
