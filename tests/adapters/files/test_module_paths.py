"""Modules below the name of a wrapper: described as those of the plain adapter, or refused with what to rename."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters_on_disk import BASE, CONFIG, PREFIX, tensors, write

from loratory.adapters.files.description import AdapterDescription
from loratory.adapters.files.validation import FileLimits, validate
from loratory.errors import InvalidAdapter
from loratory.models.decoder import read_shape

CASES = Path(__file__).parents[2] / "cases"
LIMITS = FileLimits(base=BASE)
PLAIN = f"{PREFIX}model.layers."


def written(folder: Path, rename: Callable[[str], str], **fields: Any) -> Path:
    """The plain adapter with other keys."""
    return write(folder, fields, {rename(key): tensor for key, tensor in tensors().items()})


def without_keys(description: AdapterDescription) -> AdapterDescription:
    """What does not depend on how the file calls its tensors."""
    modules = tuple(replace(module, key_a="", key_b="") for module in description.modules)
    return replace(description, modules=modules, digest="")


WRAPPED: dict[str, Callable[[str], str]] = {
    "LLaVA": lambda key: key.replace(PLAIN, f"{PREFIX}language_model.model.layers."),
    "transformers since 4.52": lambda key: key.replace(PLAIN, f"{PREFIX}model.language_model.layers."),
    "a language model without its head": lambda key: key.replace(PLAIN, f"{PREFIX}layers."),
    "Idefics": lambda key: key.replace(PLAIN, f"{PREFIX}model.text_model.layers."),
    "MiniCPM-V": lambda key: key.replace(PLAIN, f"{PREFIX}llm.model.layers."),
    "Qwen Omni": lambda key: key.replace(PLAIN, f"{PREFIX}thinker.model.layers."),
    "compiled model": lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "compiled PEFT model": lambda key: f"_orig_mod.{key}",
    "compiled layers": lambda key: key.replace(".self_attn", "._orig_mod.self_attn"),
    "one compiled layer": lambda key: key.replace("layers.1.", "layers.1._orig_mod."),
    "compiled linear layers": lambda key: key.replace("_proj.", "_proj._orig_mod."),
    "FSDP": lambda key: key.replace("layers.", "_fsdp_wrapped_module.layers.").replace(".self", "._orig_mod.self"),
    "checkpointed layers": lambda key: key.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"),
    "DistributedDataParallel": lambda key: f"module.{key}",
    "DistributedDataParallel inside": lambda key: key.replace(PREFIX, f"{PREFIX}module."),
    "compiled VLM": lambda key: key.replace(PLAIN, f"{PREFIX}_orig_mod.model.language_model.layers."),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrappers_name_changes_nothing_but_the_keys(name: str, tmp_path: Path) -> None:
    plain = validate(write(tmp_path / "plain"), LIMITS)
    found = validate(written(tmp_path / "wrapped", WRAPPED[name]), LIMITS)
    assert without_keys(found) == without_keys(plain)
    assert found.modules[0].path == "model.layers.0.self_attn.q_proj"
    assert all(
        WRAPPED[name](theirs.key_a) == ours.key_a for theirs, ours in zip(plain.modules, found.modules, strict=True)
    )
    assert found.digest != plain.digest


def test_patterns_are_matched_with_the_names_of_the_wrapped_model(tmp_path: Path) -> None:
    """As PEFT did when it made the adapter: there the paths began with language_model."""
    fields = {"alpha_pattern": {"^language_model.model.layers.1.self_attn.q_proj": 9}}
    fields["target_modules"] = r"language_model\.model\.layers\.\d+\.self_attn\.[qv]_proj"  # type: ignore[assignment]
    found = validate(written(tmp_path, WRAPPED["LLaVA"], **fields), LIMITS)
    assert [module.scaling for module in found.modules] == [2, 2, 4.5, 2]


def test_patterns_may_mean_the_compiled_or_the_plain_paths_but_not_both(tmp_path: Path) -> None:
    compiled = WRAPPED["compiled model"]
    for target in (r"model\.layers\.\d+\.self_attn\.[qv]_proj", r"_orig_mod\.model\.layers\.\d+\.self_attn\.[qv]_proj"):
        assert len(validate(written(tmp_path / "one", compiled, target_modules=target), LIMITS).modules) == 4
    pattern = {"^model.layers.1.self_attn.q_proj": 9}
    with pytest.raises(
        InvalidAdapter, match="patterns that mean other modules with _orig_mod in the keys than without"
    ):
        validate(written(tmp_path / "both", compiled, alpha_pattern=pattern), LIMITS)


REFUSED: dict[str, tuple[Callable[[str], str], str]] = {
    "fused q, k and v": (lambda key: key.replace("q_proj", "qkv_proj"), "split the rows of its lora_B among q_proj"),
    "fused gate and up": (
        lambda key: key.replace("self_attn.q_proj", "mlp.gate_up_proj"),
        "split the rows of its lora_B between gate_proj and up_proj",
    ),
    "Mixtral's experts": (
        lambda key: key.replace("self_attn.q_proj", "block_sparse_moe.experts.0.w1"),
        "it belongs to a mixture of experts, but served models have none: serve it with an engine that serves its base",
    ),
    "vision tower": (
        lambda key: key.replace("model.layers.0.", "vision_tower.encoder.layers.0."),
        "it is outside the language model, which alone is served",
    ),
    "embedding": (
        lambda key: key.replace("layers.0.self_attn.q_proj", "embed_tokens"),
        "it is the embedding|LoRA on an embedding",
    ),
    "another architecture": (
        lambda key: key.replace("model.layers.0.self_attn.q_proj", "transformer.h.0.attn.c_attn"),
        "which no served model has: .* rename the keys, otherwise serve it with an engine that serves its base model",
    ),
    "unknown wrapper": (
        lambda key: key.replace("model.layers.0.", "mystery.model.layers.0."),
        "which no served model has: if it is one of q_proj, .* rename the keys",
    ),
    "two models": (
        lambda key: key.replace("model.layers.0.", "language_model.model.layers.0."),
        "rename the keys so that all layers are in one model",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_reason_is_the_true_one_and_nobody_is_told_to_retrain_for_a_name(name: str, tmp_path: Path) -> None:
    rename, says = REFUSED[name]
    with pytest.raises(InvalidAdapter, match=says) as caught:
        validate(written(tmp_path, rename), LIMITS)
    assert ("retrain" in str(caught.value)) == (name == "embedding")
    assert len(str(caught.value)) <= 400 + len(str(tmp_path)) and "\n" not in str(caught.value)


def test_a_layer_under_two_names_is_refused(tmp_path: Path) -> None:
    found = tensors()
    twice = {key.replace(PLAIN, f"{PREFIX}language_model.model.layers."): tensor for key, tensor in found.items()}
    with pytest.raises(InvalidAdapter, match=r"are one layer: keep one"):
        validate(write(tmp_path / "prefix", found={**found, **twice}), LIMITS)
    wrapped = {f"_orig_mod.{key}": tensor for key, tensor in found.items()}
    with pytest.raises(InvalidAdapter, match=r"lora_A of .* twice, as .* and as .*: keep one"):
        validate(write(tmp_path / "wrapped", found={**found, **wrapped}), LIMITS)


@pytest.mark.parametrize("case", ["adapter-target-matches-nothing", "adapter-vlm-prefix", "adapter-lm-head"])
def test_adapters_that_others_serve_are_accepted(case: str) -> None:
    folder = CASES / case
    found = validate(folder / "adapter", FileLimits(base=read_shape(folder)))
    modules = json.loads((folder / "adapter" / CONFIG).read_text())["target_modules"]
    assert found.rank == 8 and set(found.target_modules) == {name for name in modules if name[0] != "w"}
    assert len(found.modules) == 2 * len(found.target_modules) - (case == "adapter-lm-head")


def with_head(head: str = "lm_head", rank: int = 2) -> dict[str, Any]:
    """The plain adapter's tensors and a head's."""
    rng = np.random.default_rng(5)
    a, b = (rng.normal(size=size).astype(np.float32) for size in ((rank, BASE.hidden), (BASE.vocab, rank)))
    return {**tensors(), f"{PREFIX}{head}.lora_A.weight": a, f"{PREFIX}{head}.lora_B.weight": b}


def test_an_output_head_is_of_no_layer_and_last(tmp_path: Path) -> None:
    fields = {"target_modules": ["q_proj", "v_proj", "lm_head"], "rank_pattern": {"^lm_head": 3}}
    found = validate(write(tmp_path, fields, with_head(rank=3)), LIMITS)
    assert found.rank == 3 and found.target_modules == ("lm_head", "q_proj", "v_proj")
    head = found.modules[-1]
    assert (head.path, head.name, head.layer, head.in_features, head.out_features) == ("lm_head", "lm_head", 0, 8, 32)


@pytest.mark.parametrize("head", ["language_model.lm_head", "_orig_mod.lm_head", "lm_head._orig_mod", "module.lm_head"])
def test_an_output_head_has_wrappers_too(head: str, tmp_path: Path) -> None:
    fields = {"target_modules": ["q_proj", "v_proj", "lm_head"]}
    plain = validate(write(tmp_path / "plain", fields, with_head()), LIMITS)
    assert without_keys(validate(write(tmp_path / "other", fields, with_head(head)), LIMITS)) == without_keys(plain)


def test_a_file_holds_the_head_that_its_configuration_promises(tmp_path: Path) -> None:
    both = ["q_proj", "v_proj", "lm_head"]
    with pytest.raises(InvalidAdapter, match="has no LoRA matrices of lm_head, which target_modules"):
        validate(write(tmp_path, {"target_modules": both}), LIMITS)
    for fields in ({}, {"target_modules": both, "layers_to_transform": [0, 1]}, {"target_modules": "all-linear"}):
        with pytest.raises(
            InvalidAdapter, match=r"has LoRA matrices of lm_head, which target_modules|no LoRA matrices"
        ):
            validate(write(tmp_path, fields, with_head()), LIMITS)
    narrow = FileLimits(base=BASE, target_modules=frozenset({"q_proj", "v_proj"}))
    with pytest.raises(InvalidAdapter, match="lm_head is not among the allowed modules"):
        validate(write(tmp_path, {"target_modules": both}, with_head()), narrow)
    other = FileLimits(base=replace(BASE, vocab=40))
    with pytest.raises(InvalidAdapter, match="32 output features, but the base model's lm_head has 40"):
        validate(write(tmp_path, {"target_modules": both}, with_head()), other)
    whole = {**tensors(), f"{PREFIX}lm_head.base_layer.weight": np.ones((32, 8), np.float32)}
    with pytest.raises(InvalidAdapter, match=r"holds the tensor .*base_layer"):
        validate(write(tmp_path, found=whole), LIMITS)


def test_an_adapter_of_a_wrapped_model_is_what_peft_made(tmp_path: Path) -> None:
    torch, peft, transformers = (pytest.importorskip(name) for name in ("torch", "peft", "transformers"))
    from peft.tuners.lora import LoraLayer
    from safetensors.numpy import load_file

    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=4, vocab_size=32,
    )  # fmt: skip

    class Wrapper(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.language_model = transformers.LlamaForCausalLM(config)
            self.vision_tower = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(8, 8)})

    lora = peft.LoraConfig(
        target_modules=r".*language_model.*\.(q_proj|up_proj)", r=2, lora_alpha=3, init_lora_weights=False,
        rank_pattern={r"^language_model.model.layers.1.*q_proj": 3}, alpha_pattern={r"language_model.*up_proj": 5},
    )  # fmt: skip
    for wrap in (lambda model: model, torch.compile):
        folder = tmp_path / wrap.__name__.strip("<>")
        model = peft.get_peft_model(wrap(Wrapper()), copy.deepcopy(lora))
        model.save_pretrained(folder)
        found = {module.path: module for module in validate(folder, LIMITS).modules}
        weights = load_file(folder / "adapter_model.safetensors")
        layers = {
            "model.layers." + name.partition("model.layers.")[2]: layer
            for name, layer in model.named_modules()
            if isinstance(layer, LoraLayer)
        }
        assert set(found) == set(layers) and len(layers) == 4
        for path, layer in layers.items():
            module = found[path]
            delta = module.scaling * weights[module.key_b] @ weights[module.key_a]
            np.testing.assert_allclose(delta, layer.get_delta_weight("default").detach().numpy(), rtol=1e-5, atol=1e-6)
