"""PEFT-written adapters: every field of LoraConfig and every PEFT type is described as PEFT computes it, or refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402
from peft.tuners.lora import config as lora_config  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from loratory.adapters.files.peft_fields import HANDLED, IGNORED, REFUSED  # noqa: E402
from loratory.adapters.files.validation import FileLimits, validate  # noqa: E402
from loratory.errors import InvalidAdapter  # noqa: E402
from loratory.models.decoder import shape_of  # noqa: E402

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG = transformers.LlamaConfig(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    vocab_size=32,
    max_position_embeddings=64,
)


@pytest.fixture(scope="module")
def base() -> Iterator[Callable[[], Any]]:
    """Copies of one tiny Llama, whose parameters nobody else changes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(CONFIG)
    yield lambda: copy.deepcopy(model)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def limits() -> FileLimits:
    return FileLimits(base=shape_of(CONFIG.to_dict(), "config.json"))


def build(model: Any, config: Any, folder: Path, **how: Any) -> Any:
    """A PEFT model whose trainable numbers are all random, saved to ``folder``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, config)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        wrapped.save_pretrained(folder, **how)
    return wrapped


def same_as_peft(model: Any, folder: Path, limits: FileLimits) -> None:
    """Every module's path, rank, scaling, widths, and its delta computed from the file's two tensors."""
    description = validate(folder, limits)
    described = {module.path: module for module in description.modules}
    weights = load_file(folder / description.weights)
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    assert set(described) == set(layers)
    for path, layer in layers.items():
        module = described[path]
        assert (module.rank, module.scaling) == (layer.r["default"], layer.scaling["default"])
        assert (module.in_features, module.out_features) == (layer.in_features, layer.out_features)
        own = f"model.layers.{module.layer}.{path.split('.')[3]}.{module.name}" if path != "lm_head" else module.name
        assert path == own
        delta = module.scaling * weights[module.key_b] @ weights[module.key_a]
        np.testing.assert_allclose(delta, layer.get_delta_weight("default").detach().numpy(), rtol=1e-5, atol=1e-6)
    assert description.rank == max(layer.r["default"] for layer in layers.values())
    assert description.alpha == model.peft_config["default"].lora_alpha
    assert description.target_modules == tuple(sorted({path.rsplit(".", 1)[-1] for path in layers}))
    stored = sum(tensor.size for key, tensor in weights.items() if not key.endswith("lm_head.base_layer.weight"))
    assert description.parameters == stored and description.bytes == 4 * stored
    assert description.dtype == "F32"


ACCEPTED: dict[str, dict[str, Any]] = {
    "defaults": {"target_modules": None},
    "rank and alpha": {"r": 3, "lora_alpha": 7},
    "fractional alpha": {"r": 4, "lora_alpha": 4 * math.sqrt(2)},
    "all-linear": {"target_modules": "all-linear"},
    "all modules in a list": {"target_modules": LINEAR},
    "one module": {"target_modules": ["down_proj"]},
    "block and module": {"target_modules": ["self_attn.o_proj", "1.mlp.up_proj", "model.layers.2.mlp.up_proj"]},
    "regex": {"target_modules": r".*layers\.[02]\..*(q|gate)_proj$"},
    "regex with look-ahead": {"target_modules": r"(?!.*layers\.1\.).*\.(?:self_attn|mlp)\.(?:[vk]_proj|up_proj)"},
    "unsloth's regex": {
        "target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)|"
        r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
        r"(?:(?:k_proj|v_proj|q_proj|o_proj|gate_proj|up_proj|down_proj)))"
    },
    "exclude list": {"target_modules": "all-linear", "exclude_modules": ["o_proj", "model.layers.0.mlp.up_proj"]},
    "exclude regex": {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*\.1\..*"},
    "rsLoRA": {"r": 5, "use_rslora": True},
    "rank pattern": {
        "target_modules": LINEAR,
        "rank_pattern": {"q_proj": 2, "mlp.up_proj": 3, "1.self_attn.v_proj": 4},
    },
    "rank pattern, full path": {"rank_pattern": {"model.layers.0.self_attn.q_proj": 2}},
    "rank pattern, anchored": {"rank_pattern": {"^model.layers.2.self_attn.q_proj": 2}},
    "rank pattern, regex": {
        "target_modules": LINEAR,
        "rank_pattern": {r"layers\.[01]\..*(q|up)_proj": 3, "model.*": 2},
    },
    "rank pattern, alternatives": {"target_modules": LINEAR, "rank_pattern": {"q_proj|v_proj": 2, "up": 5}},
    "alpha pattern": {"alpha_pattern": {"q_proj": 64, r".*\.0\.self_attn\.v_proj": 1}},
    "all patterns, rsLoRA": {"use_rslora": True, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"1.*q_proj": 6}},
    "names that match nothing": {"target_modules": ["q_proj", "w1", "w2", "c_attn", "dense_h_to_4h"]},
    "output head": {"target_modules": ["q_proj", "lm_head"], "rank_pattern": {"lm_head": 3}},
    "output head alone": {"target_modules": ["lm_head"], "alpha_pattern": {"lm_head": 5}},
    "output head by a regex": {"target_modules": r".*(v_proj|lm_head)"},
    "all-linear means no output head": {"target_modules": "all-linear", "exclude_modules": ["lm_head"]},
    "excluding what is not there": {"exclude_modules": ["w1"]},
    "pattern that matches nothing": {"rank_pattern": {"nothing": 2}, "alpha_pattern": {"proj": 3}},
    "one layer": {"layers_to_transform": 1},
    "layers": {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "layers patterns": {"layers_to_transform": [2], "layers_pattern": ["h", "layers"]},
    "no layer chosen": {"layers_to_transform": []},
    "dropout": {"lora_dropout": 0.3},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "eva": {"init_lora_weights": "eva", "eva_config": lora_config.EvaConfig()},
    "eva's configuration alone": {"eva_config": lora_config.EvaConfig()},
    "corda's configuration alone": {"corda_config": lora_config.CordaConfig()},
    "tying asked for, nothing tied": {"ensure_weight_tying": True},
    "empty modules_to_save": {"modules_to_save": []},
    "inference mode": {"inference_mode": False, "revision": "main"},
    "no task": {"task_type": None},
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_accepted_variant_is_described_as_peft_computes_it(
    name: str, tmp_path: Path, base: Callable[[], Any], limits: FileLimits
) -> None:
    fields = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | ACCEPTED[name]
    model = build(base(), peft.LoraConfig(**fields), tmp_path)
    same_as_peft(model, tmp_path, limits)
    same_as_peft(model, tmp_path, FileLimits()) if "layers" not in name else None


REFUSED_VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "bias all": ({"bias": "all"}, "bias is 'all'"),
    "bias lora_only": ({"bias": "lora_only"}, "bias is 'lora_only'"),
    "lora_bias": ({"lora_bias": True}, "lora_bias"),
    "DoRA": ({"use_dora": True}, "use_dora .* DoRA"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, "LoRA on an embedding is not served"),
    "trainable tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "parameters": ({"target_modules": [], "target_parameters": ["q_proj.weight"]}, "target_parameters"),
    "aLoRA": ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens .* aLoRA"),
    "layer replication": ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    "BD-LoRA": (
        {"use_bdlora": lora_config.BdLoraConfig(["v_proj"], ["q_proj"], nblocks=2), "r": 4},
        "use_bdlora .* block-diagonal",
    ),
    "KaSA": ({"kasa_config": lora_config.KasaConfig(), "r": 2}, "kasa_config .* KaSA"),
    "VeLoRA": ({"velora_config": lora_config.VeloraConfig(num_groups=4)}, "velora_config .* VeLoRA"),
    "MonteCLoRA": (
        {"monteclora_config": lora_config.MontecloraConfig(buffer_size=2)},
        "monteclora_config .* MonteCLoRA",
    ),
    "PiSSA": ({"init_lora_weights": "pissa"}, "'pissa', which changes the base weights"),
    "fast PiSSA": ({"init_lora_weights": "pissa_niter_2"}, "'pissa_niter_2', which changes the base weights"),
    "OLoRA": ({"init_lora_weights": "olora"}, "'olora', which changes the base weights"),
    "sequence classification": ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
}


@pytest.mark.parametrize("name", REFUSED_VARIANTS)
def test_a_refused_variant_is_refused_by_name(
    name: str, tmp_path: Path, base: Callable[[], Any], limits: FileLimits
) -> None:
    fields, says = REFUSED_VARIANTS[name]
    fields = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | fields
    build(base(), peft.LoraConfig(**fields), tmp_path)
    for each in (limits, FileLimits()):
        with pytest.raises(InvalidAdapter, match=says):
            validate(tmp_path, each)


CONFIGURED_ONLY: dict[str, tuple[dict[str, Any], str]] = {
    "Arrow": ({"arrow_config": lora_config.ArrowConfig()}, "arrow_config .* Arrow"),
    "QA-LoRA": ({"use_qalora": True}, "use_qalora"),
    "Megatron": ({"megatron_config": {"hidden_size": 16}}, "megatron_config"),
    "Conv1D": ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    "CorDA": ({"init_lora_weights": "corda"}, "'corda', which changes the base weights"),
    "LoRA-GA": ({"init_lora_weights": "lora_ga"}, "'lora_ga', which changes the base weights"),
}


@pytest.mark.parametrize("name", CONFIGURED_ONLY)
def test_a_variant_the_tiny_model_cannot_have_is_refused_by_its_configuration(
    name: str, tmp_path: Path, base: Callable[[], Any], limits: FileLimits
) -> None:
    fields, says = CONFIGURED_ONLY[name]
    common = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    build(base(), peft.LoraConfig(**common), tmp_path)
    validate(tmp_path, limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.LoraConfig(**common, **fields).save_pretrained(tmp_path)
    with pytest.raises(InvalidAdapter, match=says):
        validate(tmp_path, limits)


def test_loftq_is_refused_by_its_configuration(tmp_path: Path, base: Callable[[], Any], limits: FileLimits) -> None:
    # LoraConfig itself would need scipy for it
    build(base(), peft.LoraConfig(target_modules=["q_proj"]), tmp_path)
    edit(tmp_path, init_lora_weights="loftq", loftq_config={"loftq_bits": 4, "loftq_iter": 1})
    with pytest.raises(InvalidAdapter, match="'loftq', which changes the base weights"):
        validate(tmp_path, limits)


HIDDEN = {
    "bias all": ("bias", "none", "trained biases|only lora_A and lora_B"),
    "lora_bias": ("lora_bias", False, r"lora_B\.bias.*lora_bias"),
    "DoRA": ("use_dora", False, "lora_magnitude_vector.*DoRA"),
    "modules_to_save": ("modules_to_save", None, "lm_head.weight"),
    "trainable tokens": ("trainable_token_indices", None, "trainable_tokens_delta.*trained token embeddings"),
    "KaSA": ("kasa_config", None, "lora_diag.*KaSA"),
    "VeLoRA": ("velora_config", None, "lora_velora.*VeLoRA"),
    "MonteCLoRA": ("monteclora_config", None, "lora_monteclora.*MonteCLoRA"),
    "BD-LoRA": ("use_bdlora", None, "features|rank"),
    "layer replication": ("layer_replication", None, "the base model's last layer is 2"),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_weights_tell_a_variant_that_the_configuration_hides(
    name: str, tmp_path: Path, base: Callable[[], Any], limits: FileLimits
) -> None:
    field, off, says = HIDDEN[name]
    fields = {"target_modules": ["q_proj", "v_proj"]} | REFUSED_VARIANTS[name][0]
    model = base()
    if name == "bias all":
        for layer in model.model.layers:
            layer.self_attn.q_proj.bias = torch.nn.Parameter(torch.zeros(16))
    build(model, peft.LoraConfig(**fields), tmp_path)
    edit(tmp_path, **{field: off})
    with pytest.raises(InvalidAdapter, match=says):
        validate(tmp_path, limits)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_converted_back_to_the_original_base_is_accepted(
    init: str, rslora: bool, tmp_path: Path, base: Callable[[], Any], limits: FileLimits
) -> None:
    start, saved = tmp_path / "start", tmp_path / "saved"
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=init, r=3, use_rslora=rslora)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base(), config)
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(start)
        model.peft_config["default"].init_lora_weights = init
        scaling = model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"]
        model.save_pretrained(saved, path_initial_model_for_weight_conversion=str(start))
    description = validate(saved, limits)
    assert description.rank == 6
    assert all(module.scaling == pytest.approx(scaling) for module in description.modules)


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes_are_those_of_the_file(dtype: str, tmp_path: Path, base: Callable[[], Any], limits: FileLimits) -> None:
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    build(base(), peft.LoraConfig(target_modules=LINEAR), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    half = {key: tensor.to(getattr(torch, dtype)) for key, tensor in load(path).items()}
    save(half, path)
    description = validate(tmp_path, limits)
    assert description.dtype == {"float16": "F16", "bfloat16": "BF16"}[dtype]
    assert description.bytes == 2 * description.parameters
    key = description.modules[3].key_a
    for bad in (math.inf, -math.inf, math.nan):
        half[key][0, 0] = bad
        save(half, path)
        with pytest.raises(InvalidAdapter, match=re.escape(key) + " holds a number that is not finite"):
            validate(tmp_path, limits)


TYPES: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 2, "adapter_layers": 1, "target_modules": None},
    "C3A": {"block_size": 4},
    "FOURIERFT": {"n_frequency": 8},
    "MISS": {"r": 4},
    "SHIRA": {"r": 1},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 4},
    "VBLORA": {"vector_length": 4, "num_vectors": 8, "topk": 2},
    "WAVEFT": {"n_frequency": 8},
}
NOT_BUILT = {"ADAMSS", "XLORA"}
"""The one needs scikit-learn, the other trained adapters: here they are LoRA adapters that say to be something else."""


@pytest.mark.parametrize(
    "kind", sorted(str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.value != "LORA")
)
def test_every_other_peft_type_is_refused_by_name(
    kind: str, tmp_path: Path, base: Callable[[], Any], limits: FileLimits
) -> None:
    cls = next(cls for each, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items() if each.value == kind)
    known = {field.name for field in dataclasses.fields(cls)}
    common = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    fields = {key: value for key, value in common.items() if key in known} | TYPES.get(kind, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind in NOT_BUILT:
            build(base(), peft.LoraConfig(target_modules=["q_proj"]), tmp_path)
            edit(tmp_path, peft_type=kind)
        else:
            build(base(), cls(**fields), tmp_path)
    with pytest.raises(InvalidAdapter, match=f"peft_type is '{kind}', but only LORA is served"):
        validate(tmp_path, limits)


def test_every_field_of_the_installed_lora_config_is_decided() -> None:
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    decided = [HANDLED, set(IGNORED), set(REFUSED)]
    assert fields <= set().union(*decided)
    assert sum(map(len, decided)) == len(set().union(*decided))


def test_the_digest_forgets_how_peft_writes_a_set_and_its_version(
    tmp_path: Path, base: Callable[[], Any], limits: FileLimits
) -> None:
    build(base(), peft.LoraConfig(target_modules=["q_proj", "v_proj", "up_proj"]), tmp_path)
    before = validate(tmp_path, limits)
    edit(tmp_path, target_modules=["up_proj", "v_proj", "q_proj"], peft_version="99", inference_mode=False)
    assert validate(tmp_path, limits) == before
    edit(tmp_path, lora_alpha=9)
    assert validate(tmp_path, limits).digest != before.digest


def test_patterns_apply_in_the_order_of_the_file_as_when_peft_loads_it(
    tmp_path: Path, base: Callable[[], Any], limits: FileLimits
) -> None:
    # PEFT trains with the order of the dict and saves the keys sorted, after which it cannot load the adapter either
    build(base(), peft.LoraConfig(target_modules=["q_proj"], rank_pattern={"self_attn.q_proj": 3, ".*": 2}), tmp_path)
    with pytest.raises(InvalidAdapter, match=r"has rank 3 .* gives it 2 by r and rank_pattern"):
        validate(tmp_path, limits)
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(base(), tmp_path)
