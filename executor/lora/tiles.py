"""Tiles: a batch's rows in groups of one slot each, computed on the device without synchronising with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tiles:
    """``slots``: (tiles,) int32, the slot of each tile, -1 for a tile without rows. ``rows``: (tiles, block) int32, its
    rows of the batch, -1 beyond its end.

    The number of tiles follows from the batch's rows and ``max_loras`` alone, so a CUDA graph captured for a number of
    rows serves every mix of adapters.
    """

    slots: Tensor
    rows: Tensor

    @property
    def count(self) -> int:
        """Tiles, those without rows included."""
        return self.rows.shape[0]

    @property
    def block(self) -> int:
        """Rows a tile has room for."""
        return self.rows.shape[1]

    @classmethod
    def of(cls, slots: Tensor, max_loras: int, block: int) -> Tiles:
        """Of the slots of a batch's rows, (T,) int64 on any device, -1 for base rows; nothing is synchronised."""
        total = slots.shape[0]
        device = slots.device
        count = min(total, -(-total // block) + max_loras)
        order = torch.argsort(slots, stable=True)
        every = torch.arange(max_loras, device=device)
        counts = (slots[:, None] == every).sum(0)
        tiles_end = torch.cumsum((counts + block - 1) // block, 0)
        rows_end = torch.cumsum(counts, 0) + (slots < 0).sum()
        tile = torch.arange(count, device=device)
        slot = torch.searchsorted(tiles_end, tile, right=True)
        known = slot.clamp(max=max_loras - 1)
        # tiles_end has the end of each slot's tiles, so only the last of them can have gaps.
        first = rows_end[known] - counts[known]
        index = tile - tiles_end[known] + (counts[known] + block - 1) // block
        place = first[:, None] + index[:, None] * block + torch.arange(block, device=device)
        valid = (place < rows_end[known][:, None]) & (slot < max_loras)[:, None]
        rows = torch.where(valid, order[place.clamp(max=total - 1)], -1)
        return cls(torch.where(slot < max_loras, slot, -1).to(torch.int32), rows.to(torch.int32))
