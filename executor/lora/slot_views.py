"""Views: slices of the slots' stacks that the CPU forms multiply with, each cut once.

Cutting a tensor costs about a microsecond in PyTorch, and a forward pass would do it hundreds of times.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loratory.executor.lora.shapes import Group
from loratory.executor.lora.slots import LoRASlots


@dataclass(frozen=True, slots=True)
class Operand:
    """The matrices that one layer of a group is multiplied with.

    ``a``: one matrix (in, parts * K) where the stack allows it without a copy, or one (in, K) a part. ``b``: one
    (K, width) a part. `batched` puts a dimension of slots before these.
    """

    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]


Cut = Callable[[Tensor, Tensor, Group, int], Operand]
"""A (parts, max_lora_rank, slots, in) and B (max_lora_rank, slots, lora_out) of one layer, its group, a rank."""


class Operands(Protocol):
    """Where a form gets a layer's operand."""

    def __call__(self, layer: int, group: str) -> Operand: ...


class Views:
    """The slices of one `LoRASlots`. They stay valid when slots are written: the stacks never move."""

    def __init__(self, slots: LoRASlots) -> None:
        self._slots = slots
        self._cut: dict[Hashable, SlicedOperands] = {}

    def dense(self, rank: int) -> Operands:
        """All slots cut to ``rank``: K = rank * max_loras, the slot running fastest."""
        return self._once(("dense", rank), slice(None), rank, dense)

    def batched(self, rank: int) -> Operands:
        """All slots cut to ``rank``, slot by slot: K = rank."""
        return self._once(("batched", rank), slice(None), rank, batched)

    def single(self, slot: int, rank: int) -> Operands:
        """One slot cut to ``rank``: K = rank."""
        return self._once((slot, rank), slice(slot, slot + 1), rank, dense)

    def _once(self, key: Hashable, slots: slice, rank: int, cut: Cut) -> Operands:
        if key not in self._cut:
            self._cut[key] = SlicedOperands(self._slots, slots, rank, cut)
        return self._cut[key]


class SlicedOperands:
    """Operands cut from the stacks without a copy, all at once."""

    __slots__ = ("_layers",)

    def __init__(self, slots: LoRASlots, which: slice, rank: int, cut: Cut) -> None:
        self._layers = {
            name: [cut(a[:, :, which], b[:, which], stack.group, rank) for a, b in zip(stack.a, stack.b, strict=True)]
            for name, stack in slots.groups.items()
        }

    def __call__(self, layer: int, group: str) -> Operand:
        return self._layers[group][layer]


class GatheredOperands:
    """Operands of some slots only, copied when a layer asks for them."""

    __slots__ = ("_active", "_cut", "_rank", "_slots")

    def __init__(self, slots: LoRASlots, active: Sequence[int], rank: int, cut: Cut) -> None:
        self._slots, self._rank, self._cut = slots, rank, cut
        self._active = torch.tensor(active, dtype=torch.int64)

    def __call__(self, layer: int, group: str) -> Operand:
        stack = self._slots.groups[group]
        a = stack.a[layer][:, : self._rank].index_select(2, self._active)
        b = stack.b[layer][: self._rank].index_select(1, self._active)
        return self._cut(a, b, stack.group, self._rank)


def dense(a: Tensor, b: Tensor, group: Group, rank: int) -> Operand:
    """From A (parts, max_lora_rank, slots, in) and B (max_lora_rank, slots, lora_out) of one layer."""
    columns = rank * a.shape[2]
    cut = a[:, :rank]
    fits = a.shape[0] == 1 or rank == a.shape[1]
    left = (cut.flatten(0, 2).t(),) if fits else tuple(part.flatten(0, 1).t() for part in cut)
    right = b[:rank].reshape(columns, -1)
    return Operand(left, tuple(right[:, part.column : part.column + part.width] for part in group.parts))


def batched(a: Tensor, b: Tensor, group: Group, rank: int) -> Operand:
    """From the same, with the slots as the batch of a batched product."""
    right = b[:rank].transpose(0, 1)
    return Operand(
        tuple(part.permute(1, 2, 0) for part in a[:, :rank]),
        tuple(right[:, :, part.column : part.column + part.width] for part in group.parts),
    )
