"""What is wrong with a checkpoint is one sentence that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import loratory.executor.device_memory
import loratory.executor.random_checkpoint
from loratory.errors import InputError
from loratory.executor.checkpoint import Checkpoint, read_config
from loratory.executor.model import Model
from loratory.executor.random_checkpoint import model_config, random_adapter, random_checkpoint

TINY = model_config("tiny-llama", layers=1)


def change(**keys: Any) -> Callable[[Path], None]:
    """Set keys of config.json; None removes one."""

    def apply(folder: Path) -> None:
        path = folder / "config.json"
        found = json.loads(path.read_text()) | keys
        path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))

    return apply


def tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Edit the tensors of model.safetensors."""

    def apply(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        edit(found)
        save_file(found, folder / "model.safetensors")

    return apply


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


K = "model.layers.0.self_attn.k_proj.weight"
FAULTS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), ("holds no config.json",)),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), ("config.json", "JSON")),
    "listed config": (lambda folder: (folder / "config.json").write_text("[]"), ("is not a JSON object",)),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ("no weights", "model.safetensors")),
    "pickled weights": (pickled, ("only pickled weights", "safetensors")),
    "truncated": (cut, ("model.safetensors", "no readable safetensors file")),
    "not safetensors": (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), ("no readable",)),
    "missing tensor": (tensors(lambda found: found.pop(K)), (f"has no tensor {K}",)),
    "misshapen tensor": (tensors(lambda found: found.update({K: torch.zeros(3, 64)})), (K, "[3, 64]", "[32, 64]")),
    "int8 tensor": (tensors(lambda found: found.update({K: torch.zeros(32, 64, dtype=torch.int8)})), (K, "I8")),
    "architecture": (change(model_type="gpt2"), ("'gpt2'", "llama, mistral, qwen2, qwen3")),
    "no architecture": (change(model_type=None), ("None", "llama, mistral, qwen2, qwen3")),
    "quantised": (change(quantization_config={"quant_method": "awq"}), ("quantised", "16-bit")),
    "activation": (change(hidden_act="gelu"), ("'gelu'", "silu")),
    "RoPE type": (
        change(rope_scaling={"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}),
        ("'longrope'", "llama3"),
    ),
    "partial rotation": (change(partial_rotary_factor=0.5), ("partial_rotary_factor",)),
    "heads": (change(num_key_value_heads=3), ("4 attention heads", "num_key_value_heads 3")),
    "odd head": (change(head_dim=15), ("head_dim", "15", "even")),
    "layers": (change(num_hidden_layers=0), ("num_hidden_layers", "0")),
    "word for a number": (change(hidden_size="many"), ("config.json", "hidden_size")),
    "dtype": (change(torch_dtype="float64"), ("float64", "bfloat16")),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence(fault: str, tmp_path: Path) -> None:
    random_checkpoint(tmp_path, TINY)
    Model.load(tmp_path)
    damage, words = FAULTS[fault]
    damage(tmp_path)
    with pytest.raises(InputError) as caught:
        Model.load(tmp_path)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and ": " in message


def test_a_missing_folder_a_bad_dtype_and_a_bad_device_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model folder .*nowhere does not exist"):
        Model.load(tmp_path / "nowhere")
    random_checkpoint(tmp_path, TINY)
    with pytest.raises(InputError, match="dtype 'int4' is not supported: use auto, float32, bfloat16, float16"):
        Model.load(tmp_path, "int4")
    with pytest.raises(InputError, match="device 'tpu' is not supported: use cpu or cuda"):
        Model.load(tmp_path, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device here"):
            Model.load(tmp_path, device="cuda")


def test_a_sharded_checkpoint_equals_a_single_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_config("tiny-qwen2")
    whole = Checkpoint.open(random_checkpoint(tmp_path / "whole", config))
    monkeypatch.setattr(loratory.executor.random_checkpoint, "SHARD_BYTES", 1000)
    folder = random_checkpoint(tmp_path / "sharded", config)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == [f"model-{index:05d}-of-00004.safetensors" for index in range(1, 5)]
    sharded = Checkpoint.open(folder)
    for name, size in (config.layer_tensors(1) | config.outer_tensors()).items():
        assert torch.equal(whole.get(name, size), sharded.get(name, size))
    Model.load(folder)
    index = folder / "model.safetensors.index.json"
    (folder / files[1]).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"lacks {files[1]}, which its index names"):
        Checkpoint.open(folder)
    (tmp_path / "elsewhere").rename(folder / files[1])
    named = json.loads(index.read_text())
    named["weight_map"]["model.norm.weight"] = files[0]
    index.write_text(json.dumps(named))
    with pytest.raises(InputError, match=r"has no tensor model\.norm\.weight, which the index names"):
        Checkpoint.open(folder)
    index.write_text("{}")
    with pytest.raises(InputError, match="has no weight_map"):
        Checkpoint.open(folder)


def test_a_generation_config_names_the_ends_of_a_sequence(tmp_path: Path) -> None:
    random_checkpoint(tmp_path, replace(TINY, eos_token_ids=(257, 300)))
    assert read_config(tmp_path).eos_token_ids == (257, 300)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6, 7]}')
    assert read_config(tmp_path).eos_token_ids == (5, 6, 7)
    (tmp_path / "generation_config.json").unlink()
    assert read_config(tmp_path).eos_token_ids == (257, 300)


def test_the_published_56m_shape_is_the_named_one() -> None:
    folder = Path(__file__).parents[2] / "scenarios" / "published" / "llama-56m"
    assert read_config(folder) == model_config("llama-56m")
    assert model_config("llama-56m").shape.parameter_count == 55_976_448


def test_sliding_windows_limit_the_length(tmp_path: Path) -> None:
    random_checkpoint(tmp_path, model_config("tiny-mistral", layers=1))
    assert read_config(tmp_path).max_positions == 512
    change(sliding_window=128)(tmp_path)
    assert read_config(tmp_path).max_positions == 128
    random_checkpoint(tmp_path, model_config("tiny-qwen2", layers=4))
    change(sliding_window=128, use_sliding_window=False)(tmp_path)
    assert read_config(tmp_path).max_positions == 512
    change(sliding_window=128, use_sliding_window=True, max_window_layers=2)(tmp_path)
    assert read_config(tmp_path).max_positions == 128
    change(sliding_window=128, use_sliding_window=True, max_window_layers=4)(tmp_path)
    assert read_config(tmp_path).max_positions == 512


def test_too_little_memory_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.load(random_checkpoint(tmp_path, TINY))
    monkeypatch.setattr(loratory.executor.device_memory, "available_bytes", lambda device: 100_000)
    with pytest.raises(InputError, match=r"out of memory on cpu: .* billion parameters .*: use a 16-bit dtype"):
        Model.load(tmp_path)
    with pytest.raises(InputError, match=r"out of memory on cpu: a KV cache of 1000 blocks .*: lower num_gpu_blocks"):
        model.new_cache(1000, 16)
    assert model.new_cache(4, 4).bytes == 2 * 1 * 16 * 32 * 4


def test_a_failed_allocation_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.load(random_checkpoint(tmp_path, TINY))
    monkeypatch.setattr(loratory.executor.device_memory, "available_bytes", lambda device: None)
    with pytest.raises(InputError, match="lower num_gpu_blocks"):
        model.new_cache(2**50, 16)


def test_the_tokenizer_reads_and_every_token_has_a_text(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(random_checkpoint(tmp_path, TINY))
    tokens = tokenizer("SELECT 'ünïcode' \n🙂")["input_ids"]
    assert max(tokens) < 256
    assert tokenizer.decode(tokens) == "SELECT 'ünïcode' \n🙂"
    assert tokenizer.eos_token_id == TINY.eos_token_ids[0]
    assert len({tokenizer.decode([token]) for token in range(258, TINY.shape.vocab)}) == TINY.shape.vocab - 258


@pytest.mark.parametrize("rslora", [False, True])
def test_a_random_adapter_loads_into_peft_and_changes_the_output(rslora: bool, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    random_checkpoint(tmp_path / "base", TINY)
    folder = random_adapter(
        tmp_path / "adapter",
        TINY,
        4,
        16.0,
        ("q_proj", "down_proj"),
        rslora,
        {"down_proj": 2},
        alpha_pattern={"q_proj": 3},
    )
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        before = base(tokens).logits
        adapted = PeftModel.from_pretrained(base, str(folder))
        after = adapted(tokens).logits
    assert 0.05 < float((after - before).norm() / before.norm()) < 2
    attention, mlp = base.model.layers[0].self_attn, base.model.layers[0].mlp
    assert attention.q_proj.lora_A["default"].weight.shape[0] == 4
    assert mlp.down_proj.lora_A["default"].weight.shape[0] == 2
    assert attention.q_proj.scaling["default"] == pytest.approx(3 / (2 if rslora else 4))
    assert mlp.down_proj.scaling["default"] == pytest.approx(16 / (2**0.5 if rslora else 2))
