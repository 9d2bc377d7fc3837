"""The simulator and the executor take the same config.json for the same model, or refuse it alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loratory.errors import InputError
from loratory.executor.checkpoint import read_config
from loratory.sim.catalogue import model

CONFIG: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"torch_dtype": None},
        {"rope_scaling": YARN},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_parameters": YARN | {"rope_theta": 1e6}},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "llama3"} | LLAMA3},
        {"sliding_window": 128},
        {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 2},
        {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 4},
        {"sliding_window": None, "num_key_value_heads": None, "head_dim": 32},
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        {"max_sequence_length": 1024},
    ],
)
def test_one_shape_and_one_limit(family: str, keys: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("\ufeff" + json.dumps(CONFIG | {"model_type": family} | keys))
    simulated, executed = model(tmp_path), read_config(tmp_path)
    assert simulated.saved_dtype == {"bfloat16": "bf16"}[executed.dtype]
    assert simulated.shape == executed.shape
    assert simulated.context.default == executed.max_positions


@pytest.mark.parametrize(
    "keys",
    [
        {"quantization_config": {"quant_method": "fp8"}},
        {"compression_config": {"format": "int-quantized"}},
        {"text_config": {"quantization_config": {"bits": 4}}},
        {"num_local_experts": 8},
        {"num_hidden_layers": 2.5},
        {"rope_scaling": {"type": "ntk"}},
        {"torch_dtype": "int8"},
    ],
)
def test_one_refusal(keys: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | keys))
    said = []
    for read in (model, read_config):
        with pytest.raises(InputError) as caught:
            read(tmp_path)
        said.append(
            str(caught.value).replace(f"model {tmp_path.name}", "M").replace(str(tmp_path / "config.json"), "M")
        )
    assert said[0] == said[1]


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json"])
def test_a_file_beside_the_config_is_seen_by_both(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / name).write_text(json.dumps({"quantization": {"quant_algo": "FP8"}, "bits": 8}))
    for read in (model, read_config):
        with pytest.raises(InputError, match=f"is quantised, as {name}"):
            read(tmp_path)


def test_a_pointer_of_git_lfs_is_recognised_by_both(tmp_path: Path) -> None:
    from loratory.executor.checkpoint import Checkpoint

    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
    (tmp_path / "config.json").write_text(pointer)
    for read in (model, read_config):
        with pytest.raises(InputError, match=r"config\.json is a Git LFS pointer, not the file: run git lfs pull"):
            read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_text(pointer)
    assert model(tmp_path).shape.layers == 4
    with pytest.raises(InputError, match=r"model\.safetensors is a Git LFS pointer"):
        Checkpoint.open(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(pointer)
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json is a Git LFS pointer"):
        Checkpoint.open(tmp_path)
