"""LoRAShapes: the linear layers that adapters may target, in the five groups in which the model computes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from loratory.errors import InputError
from loratory.models.linear_layers import FUSED, HEAD, LINEAR_MODULES, TARGETS
from loratory.models.shape import ModelShape

GROUPS: dict[str, tuple[str, ...]] = {**FUSED, "head": (HEAD,)}
"""Fused projections: the outputs of a group's modules lie side by side, in this order.

There is one output head, called as if it were in layer 0.
"""


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
    """A model's shape, and which modules adapters may target (any of `loratory.models.linear_layers.TARGETS`).

    Raises `InputError` for an unknown target module, and for none.

    >>> LoRAShapes(ModelShape(64, 2, 4, 2, 16, 128, 320), ("q_proj", "down_proj")).numbers_per_rank
    640
    """

    model: ModelShape
    target_modules: tuple[str, ...] = LINEAR_MODULES

    def __post_init__(self) -> None:
        unknown = sorted(set(self.target_modules) - set(TARGETS))
        if unknown:
            raise InputError(
                f"LoRA target module {unknown[0]!r} is no linear layer of the model: use {', '.join(TARGETS)}"
            )
        if not self.target_modules:
            raise InputError(f"no LoRA target module is given: use some of {', '.join(LINEAR_MODULES)}")

    def targeting(self, target_modules: Iterable[str]) -> LoRAShapes:
        """The same model with other target modules."""
        return dataclasses.replace(self, target_modules=tuple(target_modules))

    def groups(self) -> tuple[Group, ...]:
        """The groups with targeted modules, in the model's order."""
        model, groups = self.model, []
        for name, modules in GROUPS.items():
            parts: list[Part] = []
            offset = column = 0
            for module in modules:
                width = model.widths(module)[1]
                if module in self.target_modules:
                    parts.append(Part(module, offset, width, column))
                    column += width
                offset += width
            if parts:
                in_features, layers = model.widths(modules[0])[0], model.count(modules[0])
                groups.append(Group(name, in_features, offset, tuple(parts), layers))
        return tuple(groups)

    @property
    def numbers_per_rank(self) -> int:
        """Numbers one rank of an adapter on all target modules and layers has: the sum of in + out."""
        return sum(self.model.count(module) * sum(self.model.widths(module)) for module in set(self.target_modules))
