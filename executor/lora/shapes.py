"""LoRAShapes: the widths of a model's linear layers, in the five groups in which the model computes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from loratory.errors import InputError

GROUPS: dict[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
    "head": ("lm_head",),
}
"""Fused projections: the outputs of a group's modules lie side by side, in this order. There is one output head."""

HEAD = "lm_head"
"""The output head: one module outside the layers, called as if it were in layer 0."""

TARGETS: tuple[str, ...] = tuple(module for modules in GROUPS.values() for module in modules)
"""What adapters may target, in the order in which the model runs it."""

LINEAR_MODULES: tuple[str, ...] = tuple(module for module in TARGETS if module != HEAD)
"""The linear layers of a Llama-like decoder layer: what PEFT calls ``all-linear``."""


@dataclass(frozen=True, slots=True)
class Part:
    """One targeted module of a group.

    ``offset`` and ``width``: its columns in the group's output. ``column``: where they begin when the columns of the
    group's targeted modules are put side by side, which is how slots store B.
    """

    module: str
    offset: int
    width: int
    column: int


@dataclass(frozen=True, slots=True)
class Group:
    """A fused projection with at least one targeted module: x (T, in_features) -> y (T, out_features).

    ``layers``: how many there are of it.
    """

    name: str
    in_features: int
    out_features: int
    parts: tuple[Part, ...]
    layers: int

    @property
    def lora_out(self) -> int:
        """Columns of y that an adapter can change."""
        return sum(part.width for part in self.parts)


@dataclass(frozen=True, slots=True)
class LoRAShapes:
    """Widths of a Llama-like model's layers, and which modules adapters may target (any subset of `TARGETS`).

    Without ``vocab`` the output head is no target.

    >>> LoRAShapes(64, 4, 2, 16, 128, 2, ("q_proj", "down_proj")).numbers_per_rank
    640
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    layers: int
    target_modules: tuple[str, ...] = LINEAR_MODULES
    vocab: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden", "heads", "kv_heads", "head_dim", "intermediate", "layers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of the model is {getattr(self, name)}: it must be at least 1")
        known = TARGETS if self.vocab else LINEAR_MODULES
        unknown = sorted(set(self.target_modules) - set(known))
        if unknown:
            raise InputError(
                f"LoRA target module {unknown[0]!r} is no linear layer of the model: use {', '.join(known)}"
            )
        if not self.target_modules:
            raise InputError(f"no LoRA target module is given: use some of {', '.join(LINEAR_MODULES)}")

    @classmethod
    def of(cls, config: Any, target_modules: Iterable[str] = LINEAR_MODULES) -> LoRAShapes:
        """From a configuration with Hugging Face's names (``hidden_size``, ``num_key_value_heads`` ...)."""
        heads = config.num_attention_heads
        return cls(
            hidden=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate=config.intermediate_size,
            layers=config.num_hidden_layers,
            target_modules=tuple(target_modules),
        )

    def targeting(self, target_modules: Iterable[str]) -> LoRAShapes:
        """The same model with other target modules."""
        return dataclasses.replace(self, target_modules=tuple(target_modules))

    def width(self, module: str) -> tuple[int, int]:
        """(in, out) features of one of `TARGETS`."""
        attention, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, attention),
            "k_proj": (self.hidden, kv),
            "v_proj": (self.hidden, kv),
            "o_proj": (attention, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
            HEAD: (self.hidden, self.vocab),
        }[module]

    def count(self, module: str) -> int:
        """How many of one of `TARGETS` the model has."""
        return 1 if module == HEAD else self.layers

    def groups(self) -> tuple[Group, ...]:
        """The groups with targeted modules, in the model's order."""
        found = []
        for name, modules in GROUPS.items():
            parts: list[Part] = []
            offset = column = 0
            for module in modules:
                width = self.width(module)[1]
                if module in self.target_modules:
                    parts.append(Part(module, offset, width, column))
                    column += width
                offset += width
            if parts:
                found.append(
                    Group(name, self.width(modules[0])[0], offset, tuple(parts), layers=self.count(modules[0]))
                )
        return tuple(found)

    @property
    def numbers_per_rank(self) -> int:
        """Numbers one rank of an adapter on all target modules and layers has: the sum of in + out."""
        return sum(self.count(module) * sum(self.width(module)) for module in set(self.target_modules))
