"""Every form against float64, over random slots with a past; rows without an adapter keep every bit."""

from __future__ import annotations

import lora_worlds
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loratory.errors import InputError
from loratory.executor.lora import CPULoRA, LoRAShapes, LoRASlots
from loratory.executor.lora.forms import grouped_rank
from loratory.executor.lora.work import FORMS
from loratory.models.shape import ModelShape

ALL = (*FORMS, "runs", None)
_INTEGER = {4: torch.int32, 2: torch.int16}


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bits: -0 is not +0 here, and a NaN equals itself."""
    return tensor.contiguous().view(_INTEGER[tensor.element_size()])


def inputs(world: lora_worlds.World, rows: int, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """y and x of each group; some of y is -0, which adding 0 would change."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, stack in world.slots.groups.items():
        y = torch.randn(rows, stack.group.out_features, generator=generator)
        y[torch.rand(y.shape, generator=generator) < 0.1] = -0.0
        x = torch.randn(rows, stack.group.in_features, generator=generator)
        found[name] = (y.to(world.slots.dtype), x.to(world.slots.dtype))
    return found


def run(form: str | None, world: lora_worlds.World, slot_of: list[int], seed: int) -> dict[tuple[int, str], Tensor]:
    """y after each layer and group, from fresh inputs."""
    lora = CPULoRA(world.slots, form)
    lora.begin(torch.tensor(slot_of))
    found = {}
    for layer in range(world.shapes.model.layers):
        for name, (y, x) in inputs(world, len(slot_of), seed).items():
            if layer < world.slots.groups[name].group.layers:
                lora.add(y, x, layer, name)
                found[layer, name] = y
    return found


def computes(form: str | None, world: lora_worlds.World, slot_of: list[int]) -> bool:
    """Whether ``form`` can do this batch: grouped products need aligned rows."""
    active = {slot for slot in slot_of if slot in world.held}
    return form != "grouped" or not active or grouped_rank(world.slots, active) > 0


@pytest.mark.parametrize("form", ALL)
@settings(max_examples=60)
@given(data=st.data())
def test_a_form_adds_each_rows_own_delta(form: str | None, data: st.DataObject) -> None:
    world = data.draw(lora_worlds.worlds())
    slot_of = data.draw(lora_worlds.row_slots(world.slots.max_loras))
    if not computes(form, world, slot_of):
        return
    for (layer, name), result in run(form, world, slot_of, 3).items():
        y, x = inputs(world, len(slot_of), 3)[name]
        expected = world.reference(y, x, slot_of, layer, name)
        error = (result.double() - expected).abs().max() / max(1.0, float(expected.abs().max()))
        assert error < lora_worlds.TOLERANCE[world.slots.dtype]


@pytest.mark.parametrize("form", ALL)
@settings(max_examples=40)
@given(data=st.data())
def test_a_base_row_keeps_every_bit(form: str | None, data: st.DataObject) -> None:
    world = data.draw(lora_worlds.worlds())
    slot_of = data.draw(lora_worlds.row_slots(world.slots.max_loras))
    if not computes(form, world, slot_of):
        return
    base = [row for row, slot in enumerate(slot_of) if slot not in world.held]
    for (_, name), result in run(form, world, slot_of, 5).items():
        assert torch.equal(bits(result[base]), bits(inputs(world, len(slot_of), 5)[name][0][base]))


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("dtype", lora_worlds.DTYPES, ids=str)
def test_an_adapter_that_overflows_spoils_its_own_rows_only(form: str | None, dtype: torch.dtype) -> None:
    model = LoRAShapes(ModelShape(16, 1, 2, 1, 8, 16, 32))
    slots = LoRASlots(model, 3, 8, dtype)
    for stack in slots.groups.values():
        stack.a.normal_(generator=torch.Generator().manual_seed(1))
        stack.b.normal_(generator=torch.Generator().manual_seed(2))
        stack.a[:, :, :, 1] = torch.finfo(dtype).max / 2
    slots.ranks[:] = [8, 8, 8]
    slot_of = [0, 1, -1, 2, 1, 0, -1, 2]
    lora = CPULoRA(slots, form)
    lora.begin(torch.tensor(slot_of))
    alone = CPULoRA(slots, "segmented")
    for name, stack in slots.groups.items():
        y = torch.zeros(8, stack.group.out_features, dtype=dtype)
        x = torch.rand(8, stack.group.in_features, generator=torch.Generator().manual_seed(3)).to(dtype)
        lora.add(y, x, 0, name)
        assert not bool(torch.isfinite(y[[1, 4]]).all())
        others = [0, 2, 3, 5, 6, 7]
        alone.begin(torch.tensor([slot_of[row] for row in others]))
        expected = torch.zeros(6, stack.group.out_features, dtype=dtype)
        alone.add(expected, x[others], 0, name)
        torch.testing.assert_close(y[others], expected, rtol=2e-2, atol=2e-2)


@settings(max_examples=40)
@given(data=st.data())
def test_a_plan_follows_batches_and_slots(data: st.DataObject) -> None:
    """One object over a sequence of batches and slot changes does what a fresh one does for each."""
    world = data.draw(lora_worlds.worlds())
    lora = CPULoRA(world.slots)
    slot_of = data.draw(lora_worlds.row_slots(world.slots.max_loras))
    for _ in range(3):
        change = data.draw(st.sampled_from(["batch", "clear", "write", "nothing"]))
        slot = data.draw(st.integers(0, world.slots.max_loras - 1))
        if change == "batch":
            slot_of = data.draw(lora_worlds.row_slots(world.slots.max_loras))
        elif change == "clear":
            world.clear(slot)
        elif change == "write":
            world.put(slot, data.draw(lora_worlds.adapters(world.shapes, world.slots.max_lora_rank)))
        lora.begin(torch.tensor(slot_of))
        for name, (y, x) in inputs(world, len(slot_of), 7).items():
            expected = world.reference(y, x, slot_of, 0, name)
            lora.add(y, x, 0, name)
            error = (y.double() - expected).abs().max() / max(1.0, float(expected.abs().max()))
            assert error < lora_worlds.TOLERANCE[world.slots.dtype]


def test_columns_of_a_wider_tensor_are_written_in_place() -> None:
    """A model may hand in a slice: what lies beside it stays."""
    model = LoRAShapes(ModelShape(16, 1, 2, 1, 8, 16, 32), ("k_proj", "down_proj"))
    slots = LoRASlots(model, 2, 4, torch.float32)
    for stack in slots.groups.values():
        stack.a.normal_(generator=torch.Generator().manual_seed(1))
        stack.b.normal_(generator=torch.Generator().manual_seed(2))
    slots.ranks[:] = [4, 4]
    for form in ALL:
        lora = CPULoRA(slots, form)
        lora.begin(torch.tensor([0, -1, 1, 1, 0]))
        wide = torch.zeros(5, 50)
        lora.add(wide[:, 10:42], torch.ones(5, 16), 0, "qkv")
        touched = wide.abs().sum(0) > 0
        assert touched[26:34].all() and not touched[:26].any() and not touched[34:].any()
        lora.add(wide, torch.ones(5, 16), 0, "o")
        assert not (wide.abs().sum(0) > 0)[:26].any()


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(InputError, match=r"no LoRA form 'fast': use one of masked, .*runs"):
        CPULoRA(LoRASlots(LoRAShapes(ModelShape(8, 1, 1, 1, 8, 8, 32)), 1, 1, torch.float32), "fast")
