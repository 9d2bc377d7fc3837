"""Views: slices of the slots' stacks as the CPU forms multiply with them, each cut once.

Cutting a tensor costs about a microsecond in PyTorch, and a forward pass would do it hundreds of times.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from executor.lora.shapes import Group
from executor.lora.slots import LoRASlots


@dataclass(frozen=True, slots=True)
class Operand:
    """What one layer of a group is multiplied with.

    ``a``: one matrix (in, parts * K) where the stack allows it without a copy, or one (in, K) a part. ``b``: one
    (K, width) a part. `batched` puts a dimension of slots before these.
    """

    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]


Layers = dict[str, list[Operand]]
"""By group, one operand a layer."""


class Views:
    """The slices of one `LoRASlots`. They stay valid when slots are written: the stacks never move."""

    def __init__(self, slots: LoRASlots) -> None:
        self._slots = slots
        self._cut: dict[Hashable, Layers] = {}

    def dense(self, rank: int) -> Layers:
        """All slots cut to ``rank``: K = rank * max_loras, the slot running fastest."""
        key = ("dense", rank)
        if key not in self._cut:
            self._cut[key] = {
                name: [dense(a, b, stack.group, rank) for a, b in zip(stack.a, stack.b, strict=True)]
                for name, stack in self._slots.groups.items()
            }
        return self._cut[key]

    def batched(self, rank: int) -> Layers:
        """All slots cut to ``rank``, slot by slot: K = rank."""
        key = ("batched", rank)
        if key not in self._cut:
            self._cut[key] = {
                name: [batched(a, b, stack.group, rank) for a, b in zip(stack.a, stack.b, strict=True)]
                for name, stack in self._slots.groups.items()
            }
        return self._cut[key]

    def single(self, slot: int, rank: int) -> Layers:
        """One slot cut to ``rank``: K = rank."""
        key = (slot, rank)
        if key not in self._cut:
            self._cut[key] = {
                name: [
                    dense(a[:, :, slot : slot + 1], b[:, slot : slot + 1], stack.group, rank)
                    for a, b in zip(stack.a, stack.b, strict=True)
                ]
                for name, stack in self._slots.groups.items()
            }
        return self._cut[key]


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
