"""LoRASlots: the preallocated memory of ``max_loras`` adapters, one stack of A and one of B for each group."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from loratory.errors import InputError
from loratory.executor.device_memory import allocate, require
from loratory.executor.lora.shapes import Group, LoRAShapes
from loratory.executor.lora.weights import HostAdapter
from loratory.serving.adapter_limits import rank_problem


class GroupSlots:
    """The slots of one group, of ``group.layers`` layers.

    ``a``: (layers, parts, max_lora_rank, max_loras, in). ``b``: (layers, max_lora_rank, max_loras, lora_out), which is
    B transposed, with its scaling. Rank comes before slot, so that all slots cut to the largest rank in use are still
    one matrix, and one slot's rows are a matrix with a stride: neither needs a copy.
    """

    __slots__ = ("a", "b", "group")

    def __init__(self, group: Group, max_loras: int, rank: int, dtype: torch.dtype, device: torch.device) -> None:
        self.group = group
        what, remedy = _what_and_remedy(max_loras, rank)
        stack_a = (group.layers, len(group.parts), rank, max_loras, group.in_features)
        self.a = allocate(stack_a, dtype, device, what, remedy)
        self.b = allocate((group.layers, rank, max_loras, group.lora_out), dtype, device, what, remedy)


class LoRASlots:
    """``max_loras`` slots, each with room for an adapter of ``max_lora_rank`` on every target module.

    ``ranks[s]`` is the largest rank of the adapter in slot s, 0 when it is empty; a slot's memory beyond its adapter is
    zero. ``version`` grows whenever a slot changes. ``rank_buffer`` is ``ranks`` as (max_loras,) int32 on the device.
    """

    def __init__(
        self,
        shapes: LoRAShapes,
        max_loras: int,
        max_lora_rank: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        target_modules: Iterable[str] | None = None,
    ) -> None:
        if max_loras < 1 or max_lora_rank < 1:
            raise InputError(f"max_loras is {max_loras} and max_lora_rank {max_lora_rank}: both must be at least 1")
        if target_modules is not None:
            shapes = shapes.targeting(target_modules)
        self.shapes = shapes
        self.max_loras = max_loras
        self.max_lora_rank = max_lora_rank
        self.dtype = dtype
        self.device = torch.device(device)
        numbers = max_loras * max_lora_rank * shapes.numbers_per_rank
        require(numbers * dtype.itemsize, self.device, *_what_and_remedy(max_loras, max_lora_rank))
        self.ranks = [0] * max_loras
        self.version = 0
        self.groups = {
            group.name: GroupSlots(group, max_loras, max_lora_rank, dtype, self.device) for group in shapes.groups()
        }
        self.rank_buffer = torch.zeros(max_loras, dtype=torch.int32, device=self.device)

    @property
    def bytes(self) -> int:
        """Memory of the stacks: max_loras * max_lora_rank * the sum of in + out over target modules and layers."""
        return sum(t.numel() * t.element_size() for group in self.groups.values() for t in (group.a, group.b))

    def write(self, slot: int, adapter: HostAdapter) -> None:
        """Puts ``adapter`` into ``slot`` in place of what is there.

        On CUDA the copies are queued on the current stream, from pinned memory in one transfer. Raises `InputError`
        for a rank above ``max_lora_rank``.
        """
        self._check(slot)
        if problem := rank_problem("the adapter has rank", adapter.rank, self.max_lora_rank):
            raise InputError(problem)
        buffer = adapter.buffer.to(self.device, non_blocking=True)
        shapes, stacked = self.shapes, {stack.group: stack for stack in adapter.stacks}
        for name, group in self.groups.items():
            stack = stacked.get(name)
            first = 0 if stack is None else stack.rank
            if stack is not None:
                group.a[:, :, :first, slot].copy_(adapter.stack_a(stack, shapes, buffer))
                group.b[:, :first, slot].copy_(adapter.stack_b(stack, shapes, buffer))
            self._zero(group, slot, first)
        for module in adapter.modules:
            group, part = self._part(module.name)
            columns = group.group.parts[part]
            a, b = adapter.module_ab(module, buffer)
            group.a[module.layer, part, : module.rank, slot].copy_(a)
            target = group.b[module.layer, : module.rank, slot]
            target[:, columns.column : columns.column + columns.width].copy_(b)
        self._set_rank(slot, adapter.rank)

    def clear(self, slot: int) -> None:
        """Empties ``slot``: rows that name it get no delta."""
        self._check(slot)
        for group in self.groups.values():
            self._zero(group, slot, 0)
        self._set_rank(slot, 0)

    def _zero(self, group: GroupSlots, slot: int, first: int) -> None:
        """Zeroes the ranks of a slot from ``first`` to the last that the slot's present adapter uses."""
        last = self.ranks[slot]
        if first < last:
            group.a[:, :, first:last, slot].zero_()
            group.b[:, first:last, slot].zero_()

    def _set_rank(self, slot: int, rank: int) -> None:
        self.ranks[slot] = rank
        self.rank_buffer[slot] = rank
        self.version += 1

    def _part(self, module: str) -> tuple[GroupSlots, int]:
        for group in self.groups.values():
            for index, part in enumerate(group.group.parts):
                if part.module == module:
                    return group, index
        raise KeyError(module)

    def _check(self, slot: int) -> None:
        if not 0 <= slot < self.max_loras:
            raise IndexError(f"slot {slot} is not among {self.max_loras}")


def _what_and_remedy(max_loras: int, max_lora_rank: int) -> tuple[str, str]:
    """For an error of memory: what asks for it, and which settings to lower."""
    of = f"the memory of {max_loras} adapter slots of rank {max_lora_rank}"
    return of, "lower engine.max_loras or engine.max_lora_rank"
