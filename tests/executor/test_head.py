"""Adapters on the output head: the tokens of transformers + PEFT, in slots of the size that the memory model counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_machine import Oracle, Zoo, assert_nothing_leaked, prompt_of, run
from roster import POLICIES
from safetensors.torch import load_file, save_file

from loratory.adapters.fetch import AdapterFetcher
from loratory.adapters.sources.cache import AdapterCache
from loratory.errors import InputError
from loratory.executor.lora import LoRASlots
from loratory.executor.lora.shapes import LoRAShapes
from loratory.executor.machine import Machine
from loratory.executor.model import Model
from loratory.serving.config import EngineConfig
from loratory.testing import ToyCost, workload

VARIANTS: tuple[dict[str, Any], ...] = (
    {"rank": 5, "target_modules": ("q_proj", "lm_head")},
    {"rank": 3, "target_modules": ("lm_head",), "rslora": True},
    {"rank": 4},
    {"rank": 4, "target_modules": ("down_proj", "lm_head"), "rank_pattern": {"lm_head": 7}},
)
CONFIG = EngineConfig(
    max_loras=2, max_cpu_loras=3, max_lora_rank=8, max_num_seqs=5, max_num_batched_tokens=24, num_gpu_blocks=60,
    block_size=4,
)  # fmt: skip
ROWS = [
    {"at": 0.04 * i, "adapter": (1, 2, None, 3, 4)[i % 5], "prompt": 3 + 2 * i, "out": 5, "cap": 5} for i in range(15)
]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_tokens_are_those_of_transformers_and_peft(family: str, tmp_path: Path) -> None:
    """Mixed batches, chunked prefill, eviction and reload; qwen2's head is its embedding."""
    zoo = Zoo.make(tmp_path, family, VARIANTS)
    oracle, work = Oracle(zoo), workload(ROWS, zoo.adapters)
    for graphs in (False, True):
        ran = run(zoo.machine(CONFIG, graphs=graphs), zoo.adapters, work, POLICIES["fifo"](), ToyCost())
        for index, row in enumerate(ROWS):
            name = None if row["adapter"] is None else f"a{row['adapter']}"
            expected = oracle.tokens(prompt_of(index, row["prompt"], zoo.config.shape.vocab), name, row["out"])
            assert ran.ends[str(index)][0] == "completed"
            assert ran.tokens[str(index)] == expected, (index, name)
        assert_nothing_leaked(ran)
    bare = oracle.tokens(prompt_of(1, 5, zoo.config.shape.vocab), None, 5)
    assert ran.tokens["1"] != bare, "an adapter on the head alone changes tokens"


def test_the_base_models_head_beside_the_adapters_is_passed_over(tmp_path: Path) -> None:
    """PEFT saves it as lm_head.base_layer.weight, in the base model's dtype; vLLM passes it over, too."""
    zoo = Zoo.make(tmp_path, "llama", VARIANTS[:1])
    path = zoo.files["a1"].folder / "adapter_model.safetensors"
    head = torch.randn(zoo.config.shape.vocab, zoo.config.shape.hidden).to(torch.bfloat16)
    save_file({**load_file(path), "base_model.model.lm_head.base_layer.weight": head}, path)
    again = AdapterFetcher(AdapterCache(tmp_path / "cache")).verified("a1", str(path.parent), None)
    assert again.description.dtype == "F32" and again.description.modules == zoo.files["a1"].description.modules
    work = workload([{**row, "adapter": 1} for row in ROWS[:4]], zoo.adapters)
    plain = Zoo.make(tmp_path / "plain", "llama", VARIANTS[:1])
    with_head = replace(zoo, files={"a1": again})
    first, second = (
        run(each.machine(CONFIG), each.adapters, work, POLICIES["fifo"](), ToyCost()).tokens
        for each in (plain, with_head)
    )
    assert first == second and len(set(first.values())) == 4


def test_slots_of_a_head_are_what_the_memory_model_says(llama: Zoo) -> None:
    from loratory.sim.catalogue import model

    spec = model(llama.folder / "model")
    for targets in (("lm_head",), ("q_proj", "lm_head")):
        shapes = LoRAShapes(Model.load(llama.folder / "model").shape).targeting(targets)
        size = LoRASlots(shapes, 3, 8, torch.bfloat16).bytes
        assert size == 3 * spec.adapter_bytes(8, targets, "bf16") == 3 * spec.slot_bytes(8, targets, dtype="bf16")


def test_slots_without_room_for_a_head_say_so(tmp_path: Path) -> None:
    zoo = Zoo.make(tmp_path, "llama", VARIANTS[:1])
    machine = Machine(Model.load(zoo.folder / "model", "float32"), CONFIG, zoo.files, ["q_proj"])
    with pytest.raises(InputError, match=r"lm_head has LoRA matrices, .* add lm_head to target_modules"):
        machine.read("a1")
