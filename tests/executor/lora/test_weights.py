"""Adapters in host memory and in slots: exact bytes, exact contents, clear refusals; PEFT as the oracle."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import lora_worlds
import peft_files
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from loratory.adapters.files.description import AdapterDescription
from loratory.errors import InputError
from loratory.executor.lora import CPULoRA, HostAdapter, LoRAShapes, LoRASlots
from loratory.models.decoder import shape_of
from loratory.models.linear_layers import LINEAR_MODULES
from loratory.models.shape import ModelShape

MODEL = LoRAShapes(ModelShape(16, 2, 4, 2, 4, 24, 32))


@given(lora_worlds.shapes(), st.integers(1, 4), st.integers(1, 16), st.sampled_from(lora_worlds.DTYPES))
def test_slots_take_exactly_what_the_memory_model_counts(
    model: LoRAShapes, max_loras: int, rank: int, dtype: torch.dtype
) -> None:
    widths = sum(model.model.count(module) * sum(model.model.widths(module)) for module in model.target_modules)
    slots = LoRASlots(model, max_loras, rank, dtype)
    assert slots.bytes == max_loras * rank * widths * dtype.itemsize
    whole = LoRASlots(replace(model, target_modules=LINEAR_MODULES), 1, 1, dtype, target_modules=model.target_modules)
    assert whole.bytes == model.numbers_per_rank * dtype.itemsize


@given(st.data())
def test_a_host_adapter_has_exactly_its_numbers(data: st.DataObject) -> None:
    model = data.draw(lora_worlds.shapes())
    drawn, dtype = data.draw(lora_worlds.adapters(model, 6)), data.draw(st.sampled_from(lora_worlds.DTYPES))
    with tempfile.TemporaryDirectory() as folder:
        adapter = lora_worlds.host(drawn, model, dtype, Path(folder))
    assert adapter.bytes == dtype.itemsize * sum(r * sum(model.model.widths(m)) for (_, m), r in drawn.ranks.items())
    assert adapter.rank == max(drawn.ranks.values())
    assert adapter.buffer.is_contiguous() and bool(torch.isfinite(adapter.buffer).all())


@given(st.data())
def test_a_slot_holds_what_was_written_last_and_zeros(data: st.DataObject) -> None:
    """Whatever was in the slot before: its memory equals that of a slot never used."""
    world = data.draw(lora_worlds.worlds())
    fresh = LoRASlots(world.shapes, world.slots.max_loras, world.slots.max_lora_rank, world.slots.dtype)
    for slot, drawn in world.held.items():
        with tempfile.TemporaryDirectory() as folder:
            fresh.write(slot, lora_worlds.host(drawn, world.shapes, fresh.dtype, Path(folder)))
    assert fresh.ranks == world.slots.ranks == world.slots.rank_buffer.tolist()
    for name, stack in fresh.groups.items():
        assert torch.equal(stack.a, world.slots.groups[name].a)
        assert torch.equal(stack.b, world.slots.groups[name].b)


def one(rank: int = 4, seed: int = 0) -> tuple[AdapterDescription, dict[str, Tensor]]:
    """An adapter on everything."""
    ranks = {(layer, module): rank for layer in range(MODEL.model.layers) for module in LINEAR_MODULES}
    described = peft_files.describe(MODEL, ranks, dict.fromkeys(ranks, 2.0))
    return described, peft_files.random_tensors(MODEL, ranks, seed)


def test_bad_files_are_refused_by_name(tmp_path: Path) -> None:
    described, tensors = one()
    key = described.modules[3].key_b

    def load(changed: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> HostAdapter:
        return HostAdapter.load(peft_files.verified(peft_files.write(tmp_path, changed), described), MODEL, dtype)

    for value in (float("nan"), float("inf")):
        broken = copy.deepcopy(tensors)
        broken[key][0, 0] = value
        with pytest.raises(InputError, match=rf"tensor {key} has NaN or infinite values: "):
            load(broken)
    large = copy.deepcopy(tensors)
    large[key][0, 0] = 50_000.0
    assert load(large).rank == 4
    with pytest.raises(InputError, match=rf"tensor {key} has .* once it is scaled and cast to float16"):
        load(large, torch.float16)
    with pytest.raises(InputError, match=rf"tensor {key} is missing"):
        load({name: tensor for name, tensor in tensors.items() if name != key})
    with pytest.raises(InputError, match=rf"tensor {key} is \(16, 5\), not \(16, 4\)"):
        load(tensors | {key: torch.zeros(16, 5)})
    files = peft_files.verified(tmp_path, described)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors here, and not for long")
    with pytest.raises(InputError, match="is no readable safetensors file"):
        HostAdapter.load(files, MODEL, torch.float32)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"cannot be opened .*copy the file again"):
        HostAdapter.load(files, MODEL, torch.float32)


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    described, tensors = one()
    files = peft_files.verified(peft_files.write(tmp_path, tensors), described)
    for model, message in (
        (replace(MODEL, target_modules=("q_proj",)), "add k_proj to target_modules"),
        (LoRAShapes(replace(MODEL.model, layers=1)), "layer 1, but the model has 1 layers"),
        (LoRAShapes(replace(MODEL.model, intermediate=32)), "16 -> 24 wide, but the model's is 16 -> 32"),
    ):
        with pytest.raises(InputError, match=message):
            HostAdapter.load(files, model, torch.float32)
    slots = LoRASlots(MODEL, 2, 3, torch.float32)
    adapter = HostAdapter.load(files, MODEL, torch.float32)
    with pytest.raises(InputError, match=r"has rank 4, but engine\.max_lora_rank is 3: raise it to 4"):
        slots.write(0, adapter)
    assert slots.ranks == [0, 0] and slots.version == 0
    with pytest.raises(IndexError):
        slots.clear(2)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="'c_attn' is no linear layer"):
        replace(MODEL, target_modules=("c_attn",))
    with pytest.raises(InputError, match="no LoRA target module"):
        replace(MODEL, target_modules=())
    with pytest.raises(InputError, match="the base model's layers is 0"):
        replace(MODEL.model, layers=0)
    with pytest.raises(InputError, match="the base model's vocab is 0"):
        replace(MODEL.model, vocab=0)
    with pytest.raises(InputError, match="max_loras is 0"):
        LoRASlots(MODEL, 0, 8, torch.float32)


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"pattern": True}, {"pattern": True, "use_rslora": True}]
)
def test_peft_computes_the_same(tmp_path: Path, options: dict[str, bool]) -> None:
    """A whole transformers model with a PEFT adapter: each linear layer's output, its input given."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=24,
        num_hidden_layers=2,
        vocab_size=32,
    )
    pattern = {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"v_proj": 5}}
    lora = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        use_rslora=options.get("use_rslora", False),
        target_modules="all-linear",
        init_lora_weights=False,
        **(pattern if options.get("pattern") else {}),
    )
    model = peft.get_peft_model(transformers.LlamaForCausalLM(config), lora).eval()
    model.save_pretrained(str(tmp_path))
    shapes = LoRAShapes(shape_of(config.to_dict(), "config.json"))
    assert shapes == MODEL
    described = peft_files.describe_peft(tmp_path, shapes)
    slots = LoRASlots(shapes, 2, 8, torch.float32)
    slots.write(1, HostAdapter.load(peft_files.verified(tmp_path, described), shapes, torch.float32))
    cpu = CPULoRA(slots, "masked")
    cpu.begin(torch.tensor([1, -1, 1]))
    for name, stack in slots.groups.items():
        for layer in range(shapes.model.layers):
            x = torch.randn(3, stack.group.in_features)
            block = model.base_model.model.model.layers[layer]
            owner = block.self_attn if name in ("qkv", "o") else block.mlp
            linears = [getattr(owner, part.module) for part in stack.group.parts]
            with torch.no_grad():
                theirs = torch.cat([linear(x) for linear in linears], 1)
                y = torch.cat([linear.base_layer(x) for linear in linears], 1)
                theirs[1] = y[1]
            cpu.add(y, x, layer, name)
            torch.testing.assert_close(y, theirs, rtol=1e-5, atol=1e-5)
