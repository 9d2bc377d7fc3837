"""Runs `CUDALoRA` under Triton's interpreter against float64, for the dtype named; prints how many cases held.

A program of its own: TRITON_INTERPRET=1 must be set before triton is imported.
"""

from __future__ import annotations

import sys

import lora_worlds
import peft_files
import torch

from loratory.executor.lora import LoRAShapes, LoRASlots
from loratory.executor.lora.cuda import CUDALoRA, Launch
from loratory.models.linear_layers import LINEAR_MODULES
from loratory.models.shape import ModelShape

MIXED = [2, -1, 0, 2, 1, -1, 2, 0, 2]
SMALL = Launch(block_m=16, block_r=16, block_k=16, block_n=16, splits=2)
WHOLE = Launch(block_m=16, block_r=16, block_k=32, block_n=32, splits=1)
CASES = [
    (LINEAR_MODULES, 8, (3, 8, 5), MIXED, SMALL),
    (("q_proj", "v_proj"), 4, (4, 0, 1), MIXED, WHOLE),
    (("k_proj", "up_proj", "down_proj"), 20, (20, 3, 17), MIXED, SMALL),
    (("gate_proj", "o_proj"), 8, (2, 8, 8), [1] * 19 + [-1] * 2 + [0] * 2, SMALL),
    (("o_proj",), 8, (2, 8, 8), [-1, -1], SMALL),
    (("up_proj",), 8, (0, 0, 8), [0, 1, 0], WHOLE),
    (("down_proj",), 16, (16, 16, 16), [2], None),
    (("v_proj", "lm_head"), 8, (3, 8, 0), MIXED, SMALL),
]


def main(dtype: torch.dtype) -> int:
    """All cases; the number that held."""
    for number, (targets, max_rank, ranks, slot_of, launch) in enumerate(CASES):
        model = LoRAShapes(ModelShape(20, 1, 2, 1, 12, 36, 50), targets)
        world = lora_worlds.World(model, LoRASlots(model, 3, max_rank, dtype))
        for slot, rank in enumerate(ranks):
            if rank:
                pairs = {(0, module): rank for module in targets}
                tensors = peft_files.random_tensors(model, pairs, 10 * number + slot)
                world.put(slot, lora_worlds.Drawn(pairs, dict.fromkeys(pairs, 0.5), tensors))
        lora = CUDALoRA(world.slots, launch)
        lora.begin(torch.tensor(slot_of))
        base = [row for row, slot in enumerate(slot_of) if slot not in world.held]
        for name, stack in world.slots.groups.items():
            generator = torch.Generator().manual_seed(number)
            # A model hands in slices of wider tensors at times: rows have a stride.
            y = torch.randn(len(slot_of), stack.group.out_features + 3, generator=generator).to(dtype)
            x = torch.randn(len(slot_of), stack.group.in_features + 5, generator=generator).to(dtype)
            before, view_y, view_x = y.clone(), y[:, :-3], x[:, :-5]
            expected = world.reference(view_y, view_x, slot_of, 0, name)
            lora.add(view_y, view_x, 0, name)
            error = (view_y.double() - expected).abs().max() / max(1.0, float(expected.abs().max()))
            assert error < lora_worlds.TOLERANCE[dtype], (number, name, float(error))
            assert torch.equal(y[base], before[base]) and torch.equal(y[:, -3:], before[:, -3:]), (number, name)
    return len(CASES)


if __name__ == "__main__":
    print("cases", main(getattr(torch, sys.argv[1])))
