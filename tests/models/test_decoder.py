"""What a base model's files say: its shape, how long a request may be, whether it is quantised; or what is wrong."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.errors import LONGEST_MESSAGE, InputError
from loratory.models.config_file import read_object
from loratory.models.context_limit import context_limit
from loratory.models.decoder import Decoder, decoder
from loratory.models.quantisation import quantised

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}
LLAMA = CONFIG | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
MISTRAL = CONFIG | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}


def limit(**keys: Any) -> tuple[int, int]:
    found = context_limit(CONFIG | keys, "m")
    return found.default, found.most


def tensors(folder: Path, entries: dict[str, str], name: str = "model.safetensors") -> None:
    """A safetensors file with one empty tensor of each dtype: {name: dtype}."""
    header = {key: {"dtype": dtype, "shape": [0], "data_offsets": [0, 0]} for key, dtype in entries.items()}
    text = json.dumps(header).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(text)) + text)


METHODS = """gptq awq fp8 bitsandbytes compressed-tensors modelopt mxfp4 hqq quanto torchao eetq aqlm vptq spqr
fbgemm_fp8 higgs auto-round bitnet gguf exl2 quark"""
QUANTISED_CONFIGS: dict[str, dict[str, Any]] = {
    **{method: {"quantization_config": {"quant_method": method}} for method in METHODS.split()},
    "no method": {"quantization_config": {"bits": 4}},
    "kv cache alone": {"quantization_config": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}},
    "compression": {"compression_config": {"format": "pack-quantized", "quantization_status": "frozen"}},
    "mlx": {"quantization": {"group_size": 64, "bits": 4}},
    "tensorrt-llm": {"quantization": {"quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": None}},
    "quantize_config": {"quantize_config": {"bits": 8}},
    "bitsandbytes of old": {"load_in_4bit": True},
    "chatglm": {"quantization_bit": 4},
    "in text_config": {"text_config": {"quantization_config": {"quant_method": "awq"}}},
    "in llm_config": {"llm_config": {"compression_config": {"format": "float-quantized"}}},
    "in language_config": {"language_config": {"quantization": {"bits": 4}}},
    "deeper": {"thinker_config": {"text_config": {"quantization_config": {"quant_method": "gptq"}}}},
    "text": {"quantization": "fp8"},
}


@pytest.mark.parametrize("way", QUANTISED_CONFIGS)
def test_a_config_that_says_it_is_quantised_is_refused_by_that_name(way: str) -> None:
    keys = QUANTISED_CONFIGS[way]
    with pytest.raises(InputError, match=r"is quantised, as .*: use the unquantised 16-bit checkpoint") as caught:
        decoder(CONFIG | keys, "model m")
    assert next(iter(keys)) in str(caught.value)


FILES: dict[str, Any] = {
    "hf_quant_config.json": {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}},
    "quantize_config.json": {"bits": 4, "group_size": 128, "desc_act": False},
    "quant_config.json": {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"},
    "quant_model_description.json": {"model.layers.0.self_attn.q_proj.weight": "W8A8"},
}


@pytest.mark.parametrize("file", FILES)
def test_a_file_beside_the_config_says_it_too(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(json.dumps(FILES[file]))
    assert (quantised(CONFIG, tmp_path) or "").startswith(file)
    assert quantised(CONFIG) is None


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "F8_E4M3"),
        ("model.layers.0.self_attn.q_proj.weight", "I8"),
        ("model.layers.0.self_attn.q_proj.weight", "U8"),
        ("model.layers.0.self_attn.q_proj.weight", "U32"),
        ("model.layers.0.self_attn.q_proj.qweight", "I32"),
        ("model.layers.0.self_attn.q_proj.scales", "F16"),
        ("model.layers.0.self_attn.q_proj.weight_scale", "F32"),
        ("model.layers.0.self_attn.q_proj.weight_packed", "I32"),
        ("model.layers.0.self_attn.q_proj.weight.absmax", "U8"),
    ],
)
def test_the_weights_say_it_where_they_are_there(name: str, dtype: str, tmp_path: Path) -> None:
    tensors(tmp_path, {"model.norm.weight": "BF16", name: dtype}, "model-00002-of-00002.safetensors")
    assert f"model-00002-of-00002.safetensors (tensor {name}" in (quantised(CONFIG, tmp_path) or "")


def test_an_index_and_gguf_files_say_it_without_the_weights(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.layers.0.mlp.up_proj.qweight": "a.safetensors"}}))
    assert (quantised(CONFIG, tmp_path) or "").startswith(index.name)
    index.write_text(json.dumps({"weight_map": {"model.layers.0.mlp.up_proj.weight": "a.safetensors"}}))
    assert quantised(CONFIG, tmp_path) is None
    (tmp_path / "m.Q4_K_M.gguf").write_bytes(b"GGUF")
    assert quantised(CONFIG, tmp_path) == "m.Q4_K_M.gguf (GGUF)"


@pytest.mark.parametrize(
    "keys",
    [
        {"quantization_config": None},
        {"quantization_config": {}},
        {"quantization": {"quant_algo": None, "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}},
        {"quantization_bit": 0},
        {"load_in_8bit": False},
        {"quantization": "none"},
        {"id2label": {0: "LABEL_0"}, "label2id": {"quantity": 1}},
    ],
)
def test_empty_values_quantise_nothing(keys: dict[str, Any], tmp_path: Path) -> None:
    tensors(tmp_path, {"model.norm.weight": "BF16", "model.layers.0.self_attn.rotary_emb.inv_freq": "F32"})
    nothing = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": None, "kv_cache_quant_algo": None}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(nothing))
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "pointer.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert quantised(CONFIG | keys, tmp_path) is None
    assert decoder(CONFIG | keys, "m", tmp_path).shape.layers == 28


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", "U8"),
        ("model.layers.0.mlp.experts.down_proj_scales", "U8"),
        ("model.layers.0.self_attn.q_proj.weight_int8", "I8"),
        ("model.layers.0.self_attn.q_proj.packed", "I32"),
        ("model.layers.0.self_attn.k_cache", "F8_E4M3"),
    ],
)
def test_tensors_of_any_name_say_it_by_their_dtype(name: str, dtype: str, tmp_path: Path) -> None:
    plain = {"model.norm.weight": "BF16", "model.position_ids": "I64", "model.layers.0.attn.bias": "U8"}
    tensors(tmp_path, plain)
    assert quantised(CONFIG, tmp_path) is None
    tensors(tmp_path, plain | {name: dtype})
    assert f"tensor {name}" in (quantised(CONFIG, tmp_path) or "")


def test_a_file_called_after_quantisation_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    beside = tmp_path / "hf_quant_config.json"
    beside.write_text("{")
    assert quantised(CONFIG, tmp_path) == "hf_quant_config.json (which cannot be read)"
    beside.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    with pytest.raises(InputError, match=r"hf_quant_config\.json is a Git LFS pointer, not the file: run git lfs pull"):
        decoder(CONFIG, "m", tmp_path)


def test_a_recipe_says_it_where_it_quantised(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("sparsity_stage:\n  modifiers:\n    SparseGPTModifier: {sparsity: 0.5}\n")
    assert quantised(CONFIG, tmp_path) is None
    recipe.write_text("quant_stage:\n  modifiers:\n    QuantizationModifier: {ignore: [lm_head]}\n")
    assert quantised(CONFIG, tmp_path) == "recipe.yaml (QuantizationModifier)"


YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, (32768, 32768)),
        ({"rope_scaling": None}, (32768, 32768)),
        ({"rope_scaling": {"type": "yarn"} | YARN}, (131072, 131072)),
        ({"rope_scaling": {"rope_type": "yarn"} | YARN, "max_position_embeddings": 40960}, (131072, 131072)),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, (131072, 131072)),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6} | YARN}, (131072, 131072)),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "max_position_embeddings": 2048}, (8192, 8192)),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, (32768, 32768)),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, (32768, 32768)),
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 4096}, (4096, 32768)),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, (32768, 65536)),
        ({"max_sequence_length": 2048}, (2048, 2048)),
        ({"model_max_length": 65536}, (65536, 65536)),
        ({"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 21}, (4096, 4096)),
        ({"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 21}, (32768, 32768)),
        ({"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 28}, (32768, 32768)),
        ({"model_type": "mistral", "sliding_window": 4096}, (4096, 4096)),
        ({"model_type": "mistral", "sliding_window": None}, (32768, 32768)),
    ],
)
def test_the_context_limit_is_what_vllm_derives_or_less_with_a_note(keys: dict[str, Any], wanted: Any) -> None:
    assert limit(**keys) == wanted
    lower = "dynamic" in str(keys) or wanted[1] == 4096
    assert bool(context_limit(CONFIG | keys, "m").note) == lower


@given(st.sampled_from(["linear", "dynamic", "yarn"]), st.floats(1, 64), st.integers(16, 1 << 20))
def test_scaling_never_shortens(kind: str, factor: float, positions: int) -> None:
    default, most = limit(max_position_embeddings=positions, rope_scaling={"rope_type": kind, "factor": factor})
    assert positions <= default <= most == int(positions * factor)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; it must be a mapping"),
        ({"rope_scaling": {"type": "ntk"}}, "RoPE scaling 'ntk' is not known"),
        ({"rope_scaling": {"factor": 2.0}}, "has a factor and no rope_type"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}, "has the types 'yarn' and 'linear'"),
        ({"rope_scaling": {"type": "linear"}}, "linear needs a number factor"),
        ({"rope_scaling": {"type": "linear", "factor": "four"}}, "has the factor 'four'"),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "has the factor nan"),
        ({"rope_scaling": {"type": "linear", "factor": 1e300}}, "correct the factor"),
        ({"rope_scaling": {"type": "linear", "factor": 1e-9}}, "makes 0 "),
        ({"max_position_embeddings": None}, "max_position_embeddings is None"),
        ({"max_position_embeddings": 0.5}, "max_position_embeddings is 0.5"),
        ({"sliding_window": -1, "model_type": "mistral"}, "sliding_window is -1"),
        ({"num_hidden_layers": -2}, "num_hidden_layers is -2"),
        ({"num_hidden_layers": 28.5}, "num_hidden_layers is 28.5"),
        (
            {"num_hidden_layers": 10**12},
            "num_hidden_layers is 1000000000000; it must be a whole number from 1",
        ),
        ({"hidden_size": float("nan")}, "hidden_size is nan"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide the 28 attention heads"),
        ({"hidden_size": 3585}, "no multiple of 28 attention heads: add head_dim"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype 'float8_e4m3fn' is not supported"),
        ({"torch_dtype": "int8"}, "torch_dtype 'int8' is not supported"),
        ({"dtype": "uint8"}, "dtype 'uint8' is not supported"),
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"vision_config": {"depth": 32}}, "vision-language"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "Qwen2ForSequenceClassification"),
        ({"model_type": "mamba"}, "has model_type 'mamba'"),
        ({"model_type": ["llama"]}, "has model_type"),
    ],
)
def test_what_makes_no_sense_or_another_model_is_refused_by_name(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        decoder(CONFIG | keys, "model m")
    assert words in str(caught.value) and len(str(caught.value)) <= LONGEST_MESSAGE


def test_null_fields_take_the_defaults_of_transformers() -> None:
    found = decoder(LLAMA | {"num_key_value_heads": None, "head_dim": None, "torch_dtype": None}, "m")
    assert (found.shape.kv_heads, found.shape.head_dim, found.dtype) == (28, 128, "bfloat16")
    assert decoder(MISTRAL | {"head_dim": 64}, "m").shape.head_dim == 64
    assert decoder(CONFIG | {"torch_dtype": "torch.float16"}, "m").dtype == "float16"
    assert isinstance(decoder(CONFIG | {"num_local_experts": None, "architectures": None}, "m"), Decoder)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
        (b"", "is empty"),
        (b"{", "cannot be read as JSON"),
        (b"[]", "is not a JSON object"),
        (b'{"a": 1, // one\n}', "JSON has no comments"),
        (b'{"a": 1, "a": 2}', "has the key 'a' twice"),
        (b'{"a": "\xff"}', "is not UTF-8"),
        (b'{"a": ' + b"[" * 200_000, "cannot be read as JSON"),
        (b'{"a": ' + b"9" * 20_000 + b"}", "cannot be read as JSON"),
        (b"GGUF\x03\x00", "is a GGUF file"),
    ],
)
def test_a_clumsy_file_is_refused_in_one_sentence(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_object(path)
    assert words in str(caught.value) and "config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(CONFIG).encode())
    assert read_object(path) == CONFIG
