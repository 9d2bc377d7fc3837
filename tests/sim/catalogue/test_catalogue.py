"""The catalogue: parameter counts are the published ones, sizes follow from shapes, and bad names get a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loratory.errors import InputError
from loratory.models.linear_layers import LINEAR_MODULES
from loratory.sim.catalogue import DTYPE_BYTES, gpu, gpu_names, model, model_names, resolve_targets

PUBLISHED_PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen-2.5-7b": 7_615_616_512,
    "qwen-2.5-32b": 32_763_876_352,
    "mistral-7b": 7_241_732_096,
}
"""Totals of the safetensors metadata on the models' Hugging Face pages."""


PROMISED_GPUS = {"a10g", "l4", "l40s", "a100-40gb", "a100-80gb", "h100-80gb", "h200", "b200", "mi300x"}


def test_every_promised_name_is_there() -> None:
    assert set(gpu_names()) >= PROMISED_GPUS
    assert {*PUBLISHED_PARAMETERS, "llama-56m"} == set(model_names())
    assert model("llama-56m").shape.parameter_count == 55_976_448  # the model of scenarios/published/llama-56m


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameter_counts(name: str) -> None:
    assert model(name).shape.parameter_count == PUBLISHED_PARAMETERS[name]


def test_every_entry_names_its_source() -> None:
    assert all(gpu(name).source for name in gpu_names())
    assert all(model(name).source for name in model_names())


@pytest.mark.parametrize("name", gpu_names())
def test_gpu_numbers_are_plausible(name: str) -> None:
    card = gpu(name)
    assert 20e9 < card.memory_bytes < 300e9
    assert card.host_link_bytes_per_s < card.memory_bytes_per_s
    assert card.flops_for("bf16") == card.flops_for("fp16") >= card.flops_for("fp32")
    assert card.flops.get("fp8", card.flops["bf16"]) >= card.flops["bf16"]
    assert 20 < card.flops["bf16"] / card.memory_bytes_per_s < 1000  # FLOPs a byte at the ridge point


def test_sizes_known_from_elsewhere() -> None:
    # vLLM prints 131072 bytes a token for Llama-3.1-8B; Agullo et al. list it in their logs.
    assert model("llama-3.1-8b").kv_bytes_per_token() == 131_072
    assert model("llama-2-7b").kv_bytes_per_token() == 524_288
    # PEFT's trainable parameters of a rank-16 all-linear adapter on Llama-3.1-8B: 41,943,040.
    assert model("llama-3.1-8b").adapter_parameters(16) == 41_943_040
    assert model("llama-3.1-8b").adapter_bytes(16) == 83_886_080
    assert model("llama-2-7b").adapter_parameters(8, ["q_proj", "v_proj"]) == 4_194_304


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_tensor_parallel_splits_what_it_can(name: str, tp: int) -> None:
    spec = model(name)
    assert spec.weight_bytes(tp=1) / tp <= spec.weight_bytes(tp=tp) < spec.weight_bytes(tp=1) / tp * 1.01
    assert spec.kv_bytes_per_token(tp) * tp == spec.kv_bytes_per_token()
    assert spec.slot_bytes(16, tp=1) / tp <= spec.slot_bytes(16, tp=tp) <= spec.slot_bytes(16, tp=1)


def test_kv_heads_are_replicated_when_scarcer_than_gpus() -> None:
    spec = model("qwen-2.5-7b")  # 28 heads, 4 KV heads
    with pytest.raises(InputError, match="tensor_parallel_size 8 does not divide"):
        spec.check_tp(8)
    llama = model("llama-3.1-8b")
    assert llama.kv_bytes_per_token(16) == llama.kv_bytes_per_token(8)
    assert llama.weight_bytes(tp=16) > llama.weight_bytes() / 16


def test_slots_and_adapters_have_equal_width_on_one_gpu() -> None:
    spec = model("mistral-7b")
    assert spec.slot_bytes(32, "all-linear") == spec.adapter_bytes(32, "all-linear")
    assert spec.slot_bytes(32, ["q", "v"]) == spec.adapter_bytes(32, ["q_proj", "v_proj"])


def test_dtypes() -> None:
    spec = model("llama-3.1-8b")
    assert spec.weight_bytes("fp32") == 2 * spec.weight_bytes("bf16")
    assert set(DTYPE_BYTES) >= {"fp32", "fp16", "bf16", "fp8"}
    with pytest.raises(InputError, match="unknown dtype 'bf61': did you mean bf16"):
        spec.weight_bytes("bf61")
    with pytest.raises(InputError, match="has no fp8 arithmetic"):
        gpu("a100-80gb").flops_for("fp8")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gpu("h100"), "unknown gpu 'h100': did you mean h100-80gb or h100-64gb"),
        (lambda: gpu("H100"), "unknown gpu 'H100': did you mean h100-80gb or h100-64gb"),
        (lambda: gpu("tpu"), "unknown gpu 'tpu': use one of a10g"),
        (lambda: model("llama-3-8b"), "unknown model 'llama-3-8b': did you mean .*llama-3.1-8b"),
        (lambda: model("nowhere/config.json"), "does not exist"),
        (lambda: resolve_targets(["qproj"]), "unknown LoRA target module 'qproj': did you mean q_proj"),
    ],
)
def test_unknown_names_get_the_nearest(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]


def test_target_modules_are_canonical() -> None:
    assert resolve_targets("all-linear") == LINEAR_MODULES
    assert resolve_targets(["v", "q_proj", "v_proj"]) == ("q_proj", "v_proj")
    assert resolve_targets([]) == ()
    assert resolve_targets(["lm_head", "v"]) == ("v_proj", "lm_head")


def test_an_output_head_is_one_module_whatever_the_layers() -> None:
    spec = model("llama-3.1-8b")
    head = spec.adapter_bytes(16, ["q", "lm_head"]) - spec.adapter_bytes(16, ["q"])
    assert head == spec.adapter_bytes(16, ["lm_head"]) == 2 * 16 * (spec.shape.hidden + spec.shape.vocab)
    assert spec.slot_bytes(16, ["lm_head"], tp=4) == head


QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def test_a_hugging_face_config_by_file_and_by_folder(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen3-0.6B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN3))
    spec = model(folder)
    assert spec == model(str(folder / "config.json"))
    assert spec.name == "Qwen3-0.6B"
    assert spec.shape.parameter_count == 596_049_920  # Qwen/Qwen3-0.6B's safetensors, the tied head counted once
    assert spec.shape.q_width == 2048 != spec.shape.hidden


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "has model_type 'gpt2', which Loratory does not model: use one of llama"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide"),
        ({"quantization_config": {"bits": 4}}, "is quantised"),
        ({"torch_dtype": "int4"}, "torch_dtype 'int4'"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3 | change))
    with pytest.raises(InputError, match=message):
        model(tmp_path)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="is not a JSON object"):
        model(tmp_path)
