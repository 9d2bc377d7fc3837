"""Random checkpoints and adapters in the formats of Hugging Face and PEFT, for tests, benchmarks and profiling."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from loratory.errors import InputError
from loratory.executor.model_config import ModelConfig
from loratory.models.linear_layers import BLOCKS, HEAD, LINEAR_MODULES
from loratory.models.shape import ModelShape

SHARD_BYTES = 2_000_000_000
"""A checkpoint larger than this is written as one file a layer."""

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def model_configs() -> dict[str, ModelConfig]:
    """Models that a random checkpoint can be made of, by name.

    ``llama-56m`` is scenarios/published/llama-56m/config.json; ``llama-3.1-8b`` is meta-llama/Llama-3.1-8B; the tiny
    ones show each family's differences.
    """

    def tiny(family: str, **changes: Any) -> ModelConfig:
        shape = replace(ModelShape(64, 2, 4, 2, 16, 112, 320, family), **changes)
        return ModelConfig(shape, max_positions=512, dtype="float32", eos_token_ids=(257,))

    return {
        "tiny-llama": tiny("llama"),
        "tiny-mistral": tiny("mistral", head_dim=32),
        "tiny-qwen2": tiny("qwen2", qkv_bias=True, tied=True),
        "tiny-qwen3": tiny("qwen3", qk_norm=True, tied=True, head_dim=32),
        "llama-56m": ModelConfig(ModelShape(512, 8, 8, 4, 64, 1376, 32000), 2048, eos_token_ids=(2,)),
        "llama-3.1-8b": ModelConfig(
            ModelShape(4096, 32, 32, 8, 128, 14336, 128256), 131072, 1e-5, rope=_LLAMA3, eos_token_ids=(128001,)
        ),
    }


def model_config(name: str, **sizes: Any) -> ModelConfig:
    """One of `model_configs`, with these fields of its shape changed. Raises `InputError` for another name."""
    known = model_configs()
    if name not in known:
        raise InputError(f"no model to make at random is called {name!r}: use one of {', '.join(known)}")
    return replace(known[name], shape=replace(known[name].shape, **sizes))


class RandomTensors:
    """A `loratory.executor.checkpoint.TensorSource` of random weights: the same name and seed give the same tensor.

    Scales keep activations near 1 and logits spread by about 3, so that greedy outputs vary with the prompt. Embeddings
    are small: with ``tied`` ones a token would otherwise predict itself. Tensors are made on ``device`` in ``dtype``;
    on another device or dtype the numbers differ.
    """

    def __init__(
        self, seed: int, tied: bool = False, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> None:
        self.seed = seed
        self.tied = tied
        self.dtype = dtype
        self.device = device or torch.device("cpu")

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """See `loratory.executor.checkpoint.TensorSource.get`."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest[:7], "little"))
        tensor = torch.empty(shape, dtype=self.dtype, device=self.device).normal_(generator=generator)
        if name.endswith("norm.weight"):
            return tensor.mul_(0.1).add_(6.0 if self.tied and name == "model.norm.weight" else 1.0)
        if name.endswith(".bias"):
            return tensor.mul_(0.2)
        gain = {"model.embed_tokens.weight": 0.5, "lm_head.weight": 3.0}.get(name, 1.0)
        return tensor.mul_(gain / shape[1] ** 0.5)


def hugging_face_config(config: ModelConfig) -> dict[str, Any]:
    """The ``config.json`` of a `ModelConfig`, as transformers 4 and 5 both read it."""
    rope = dict(config.rope)
    linear = rope["rope_type"] == "linear"
    keys: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[config.shape.family]],
        "model_type": config.shape.family,
        "hidden_act": "silu",
        "hidden_size": config.shape.hidden,
        "intermediate_size": config.shape.intermediate,
        "num_hidden_layers": config.shape.layers,
        "num_attention_heads": config.shape.heads,
        "num_key_value_heads": config.shape.kv_heads,
        "head_dim": config.shape.head_dim,
        "vocab_size": config.shape.vocab,
        "max_position_embeddings": int(config.max_positions / rope["factor"]) if linear else config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "tie_word_embeddings": config.shape.tied,
        "bos_token_id": None,
        "eos_token_id": list(config.eos_token_ids) if len(config.eos_token_ids) != 1 else config.eos_token_ids[0],
        "torch_dtype": config.dtype,
    }
    if config.shape.family in ("llama", "qwen3"):
        keys["attention_bias"] = config.shape.o_bias
    if config.shape.family == "llama":
        keys["mlp_bias"] = config.shape.mlp_bias
    if config.shape.family == "mistral":
        keys["sliding_window"] = None
    return keys


def random_checkpoint(folder: str | Path, config: ModelConfig, seed: int = 0) -> Path:
    """Write a checkpoint of random weights in ``config.dtype``, with a byte-level tokenizer; the folder.

    Needs memory for one layer, or for the embeddings where they are larger.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", hugging_face_config(config))
    eos = list(config.eos_token_ids)
    _write(folder / "generation_config.json", {"_from_model_config": True, "eos_token_id": eos})
    dtype: torch.dtype = getattr(torch, config.dtype)
    source = RandomTensors(seed, config.shape.tied, dtype)
    parts = [config.layer_tensors(layer) for layer in range(config.shape.layers)]
    parts += [{name: size} for name, size in config.outer_tensors().items()]
    total = config.shape.parameter_count * dtype.itemsize
    if total <= SHARD_BYTES:
        parts = [{name: size for part in parts for name, size in part.items()}]
    weight_map = {}
    for index, part in enumerate(parts, 1):
        name = "model.safetensors" if len(parts) == 1 else f"model-{index:05d}-of-{len(parts):05d}.safetensors"
        save_file({key: source.get(key, size) for key, size in part.items()}, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, name))
    if len(parts) > 1:
        index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write(folder / "model.safetensors.index.json", index_file)
    _tokenizer(folder, config)
    return folder


def random_adapter(
    folder: str | Path,
    config: ModelConfig,
    rank: int,
    alpha: float | None = None,
    target_modules: Sequence[str] = LINEAR_MODULES,
    rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    seed: int = 0,
    alpha_pattern: Mapping[str, float] | None = None,
    layers: Iterable[int] | None = None,
    base_model: str | None = None,
) -> Path:
    """Write a PEFT LoRA adapter of random float32 weights for a model of shape ``config``; the folder.

    ``alpha`` defaults to twice the rank. ``layers``: those adapted (``layers_to_transform``), all if None. Patterns are
    matched as PEFT does: a key is a regular expression for the end of a module's name. B is scaled so that a module's
    delta is about half as large as its base output, whatever the scaling.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    alpha = 2.0 * rank if alpha is None else alpha
    ranks, alphas = dict(rank_pattern or {}), dict(alpha_pattern or {})
    chosen = None if layers is None else sorted(layers)
    source = RandomTensors(seed)
    tensors: dict[str, Tensor] = {}
    paths = [
        (f"model.layers.{layer}.{block}.{module}", config.shape.widths(module))
        for layer in (range(config.shape.layers) if chosen is None else chosen)
        for module, block in BLOCKS.items()
        if module in target_modules
    ]
    if HEAD in target_modules and chosen is None:
        paths.append((HEAD, config.shape.widths(HEAD)))
    for path, (in_features, out_features) in paths:
        own = int(_pattern(ranks, path, rank))
        scaling = _pattern(alphas, path, alpha) / (own**0.5 if rslora else own)
        key = f"base_model.model.{path}"
        tensors[f"{key}.lora_A.weight"] = source.get(f"{path}.lora_A.weight", (own, in_features))
        b = source.get(f"{path}.lora_B.weight", (out_features, own))
        tensors[f"{key}.lora_B.weight"] = b.mul_(0.5 / scaling)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": rslora,
        "use_dora": False,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": list(target_modules),
        "layers_to_transform": chosen,
        "modules_to_save": None,
    }
    _write(folder / "adapter_config.json", settings)
    return folder


def _pattern(patterns: Mapping[str, float], path: str, default: float) -> float:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)


def _tokenizer(folder: Path, config: ModelConfig) -> None:
    """A tokenizer whose first 256 tokens are the bytes; every other id of the vocabulary has a name of its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # needed by this function alone

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = {token: f"<|eos{index or ''}|>" for index, token in enumerate(config.eos_token_ids)}
    names: Callable[[int], str] = lambda token: special.get(token, f"<{token}>")  # noqa: E731
    free = [token for token in range(config.shape.vocab) if token not in special]
    vocabulary = dict(zip(alphabet, free, strict=False))
    taken = set(vocabulary.values())
    vocabulary |= {names(token): token for token in range(config.shape.vocab) if token not in taken}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings["model_max_length"] = config.max_positions
    settings["chat_template"] = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    if special:
        settings["eos_token"] = next(iter(special.values()))
    _write(folder / "tokenizer_config.json", settings)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
