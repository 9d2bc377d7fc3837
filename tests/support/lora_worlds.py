"""Random adapters in slots and random batches over them, with float64 references: what the LoRA tests draw from."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import peft_files
import torch
from hypothesis import strategies as st
from torch import Tensor

from loratory.executor.lora import HostAdapter, LoRAShapes, LoRASlots
from loratory.models.linear_layers import TARGETS
from loratory.models.shape import ModelShape

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Relative to the largest value of a result."""


@dataclass(frozen=True)
class Drawn:
    """An adapter's tensors as PEFT stores them (float32), and its scaling by module."""

    ranks: dict[tuple[int, str], int]
    scalings: dict[tuple[int, str], float]
    tensors: dict[str, Tensor]

    def delta(self, layer: int, module: str, x: Tensor, dtype: torch.dtype) -> Tensor | float:
        """scaling * B A x in float64, A and scaled B rounded to ``dtype`` as the engine holds them; 0 without A."""
        if (layer, module) not in self.ranks:
            return 0.0
        key = f"base_model.model.{peft_files.path_of(layer, module)}"
        a = self.tensors[f"{key}.lora_A.weight"].to(dtype).double()
        b = (self.tensors[f"{key}.lora_B.weight"] * self.scalings[layer, module]).to(dtype).double()
        return x.double() @ a.t() @ b.t()


@dataclass
class World:
    """Slots, what is in them, and the reference of a batch."""

    shapes: LoRAShapes
    slots: LoRASlots
    held: dict[int, Drawn] = field(default_factory=dict)

    def put(self, slot: int, drawn: Drawn) -> None:
        """Through a file, as a load does."""
        with tempfile.TemporaryDirectory() as folder:
            self.slots.write(slot, host(drawn, self.shapes, self.slots.dtype, Path(folder)))
        self.held[slot] = drawn

    def clear(self, slot: int) -> None:
        """Empties a slot."""
        self.slots.clear(slot)
        self.held.pop(slot, None)

    def reference(self, y: Tensor, x: Tensor, slot_of: list[int], layer: int, group: str) -> Tensor:
        """What ``y`` becomes, in float64."""
        result = y.double()
        parts = self.slots.groups[group].group.parts
        for row, slot in enumerate(slot_of):
            if slot in self.held:
                for part in parts:
                    columns = slice(part.offset, part.offset + part.width)
                    result[row, columns] += self.held[slot].delta(layer, part.module, x[row], self.slots.dtype)
        return result


def host(drawn: Drawn, shapes: LoRAShapes, dtype: torch.dtype, folder: Path) -> HostAdapter:
    """The adapter, written to ``folder`` and loaded."""
    peft_files.write(folder, drawn.tensors)
    described = peft_files.describe(shapes, drawn.ranks, drawn.scalings)
    return HostAdapter.load(peft_files.verified(folder, described), shapes, dtype)


@st.composite
def shapes(draw: st.DrawFn) -> LoRAShapes:
    """Small models, any target set; widths are odd at times, so that no form may count on alignment."""
    heads = draw(st.sampled_from([1, 2, 4]))
    model = ModelShape(
        hidden=draw(st.sampled_from([8, 16, 20, 32])),
        heads=heads,
        kv_heads=draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
        head_dim=draw(st.sampled_from([4, 8, 16])),
        intermediate=draw(st.sampled_from([9, 16, 48])),
        layers=draw(st.integers(1, 2)),
        vocab=draw(st.sampled_from([24, 37])),
    )
    return LoRAShapes(model, tuple(draw(st.sets(st.sampled_from(TARGETS), min_size=1))))


@st.composite
def adapters(draw: st.DrawFn, model: LoRAShapes, max_rank: int) -> Drawn:
    """An adapter on a subset of the target modules and layers: one rank for all, or a rank pattern."""
    rank = draw(st.integers(1, max_rank))
    pairs = [(layer, module) for module in model.target_modules for layer in range(model.model.count(module))]
    kept = pairs if draw(st.booleans()) else draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True))
    pattern = draw(st.booleans())
    ranks = {pair: draw(st.integers(1, rank)) if pattern else rank for pair in kept}
    scalings = {pair: draw(st.sampled_from([0.25, 1.0, 2.0])) for pair in kept}
    return Drawn(ranks, scalings, peft_files.random_tensors(model, ranks, draw(st.integers(0, 2**31))))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Slots after a history of writes, overwrites and clears."""
    model = draw(shapes())
    max_rank = draw(st.sampled_from([1, 4, 8, 11]))
    slots = LoRASlots(model, draw(st.integers(1, 5)), max_rank, draw(st.sampled_from(DTYPES)))
    world = World(model, slots)
    for _ in range(draw(st.integers(1, 6))):
        slot = draw(st.integers(0, slots.max_loras - 1))
        if draw(st.integers(0, 4)) == 0:
            world.clear(slot)
        else:
            world.put(slot, draw(adapters(model, max_rank)))
    return world


def row_slots(max_loras: int) -> st.SearchStrategy[list[int]]:
    """Which slot each row has: mixed rows and runs, base rows among them."""
    runs = st.lists(st.tuples(st.integers(-1, max_loras - 1), st.sampled_from([1, 1, 1, 2, 5, 17])), min_size=1)
    return runs.map(lambda drawn: [slot for slot, count in drawn for _ in range(count)][:64])
