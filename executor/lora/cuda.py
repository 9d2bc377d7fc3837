"""CUDALoRA: the adapters' part of a forward pass on CUDA, two kernels a layer and group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from loratory.executor.lora.slots import LoRASlots
from loratory.executor.lora.tiles import Tiles
from loratory.executor.lora.triton_kernels import expand, shrink

_DECODE_ROWS = 256
_LEAST = 16
"""The smallest side of a product in Triton."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Block sizes of the two kernels; they follow from the number of rows alone, as a CUDA graph needs."""

    block_m: int
    block_r: int
    block_k: int
    block_n: int
    splits: int

    @classmethod
    def of(cls, rows: int, max_lora_rank: int) -> Launch:
        """Decoding has few rows a slot and is bound by reading weights: small tiles, the input split over programs."""
        block_r = min(64, max(_LEAST, triton.next_power_of_2(max_lora_rank)))
        if rows <= _DECODE_ROWS:
            return cls(block_m=16, block_r=block_r, block_k=128, block_n=128, splits=8)
        return cls(block_m=64, block_r=block_r, block_k=64, block_n=128, splits=1)


class CUDALoRA:
    """Implements `loratory.executor.batch.LoRA` over slots on a CUDA device (on any device under Triton's interpreter).

    `begin` and `add` neither synchronise nor read from the device, and what they launch depends on the number of rows
    alone: both can be captured in a CUDA graph over static ``slots``, and replayed after slots were rewritten.
    """

    def __init__(self, slots: LoRASlots, launch: Launch | None = None) -> None:
        self._slots = slots
        self._fixed = launch
        self._launch = launch or Launch.of(1, slots.max_lora_rank)
        self._upcast = slots.device.type != "cuda"
        self._tiles: Tiles | None = None
        self._blocks: dict[tuple[str, int], Tensor] = {}

    def begin(self, slots: Tensor) -> None:
        rows = slots.shape[0]
        self._launch = self._fixed or Launch.of(rows, self._slots.max_lora_rank)
        self._tiles = Tiles.of(slots, self._slots.max_loras, self._launch.block_m) if rows else None

    def add(self, y: Tensor, x: Tensor, layer: int, group: str) -> None:
        if self._tiles is None or group not in self._slots.groups:
            return
        stack, tiles, launch, ranks = self._slots.groups[group], self._tiles, self._launch, self._slots.rank_buffer
        a, b, parts = stack.a[layer], stack.b[layer], len(stack.group.parts)
        rank_blocks = triton.cdiv(self._slots.max_lora_rank, launch.block_r)
        hidden_rank = rank_blocks * launch.block_r
        sizes = (launch.splits, tiles.count, parts, launch.block_m, hidden_rank)
        hidden = torch.empty(sizes, dtype=torch.float32, device=x.device)
        shrink[tiles.count, parts * rank_blocks, launch.splits](
            x,
            a,
            hidden,
            tiles.slots,
            tiles.rows,
            ranks,
            stack.group.in_features,
            x.stride(0),
            a.stride(0),
            a.stride(1),
            a.stride(2),
            hidden_rank,
            parts=parts,
            block_m=launch.block_m,
            block_r=launch.block_r,
            block_k=launch.block_k,
            splits=launch.splits,
            upcast=self._upcast,
        )
        blocks = self._column_blocks(group)
        expand[tiles.count, blocks.shape[0]](
            hidden,
            b,
            y,
            tiles.slots,
            tiles.rows,
            ranks,
            blocks,
            y.stride(0),
            b.stride(0),
            b.stride(1),
            hidden_rank,
            parts=parts,
            block_m=launch.block_m,
            block_r=launch.block_r,
            block_n=launch.block_n,
            splits=launch.splits,
            upcast=self._upcast,
        )

    def _column_blocks(self, group: str) -> Tensor:
        """(part, column in B, offset in y, columns) of each block of a group's targeted columns, on the device.

        Made on first use, by the warm-up run that comes before every capture.
        """
        key = (group, self._launch.block_n)
        if key not in self._blocks:
            step = self._launch.block_n
            table = [
                (index, part.column + start, part.offset + start, min(step, part.width - start))
                for index, part in enumerate(self._slots.groups[group].group.parts)
                for start in range(0, part.width, step)
            ]
            self._blocks[key] = torch.tensor(table, dtype=torch.int32, device=self._slots.device)
        return self._blocks[key]
