"""gguf_checkpoint: turns a GGUF file of the Llama family, as llama.cpp reads it, into an ordinary checkpoint folder.

llama.cpp stores the rows of the query and key projections in another order, because it rotates neighbouring elements
where Hugging Face rotates the halves of a head; the rows are put back. Weights that were quantised are stored as the
numbers that they stand for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from loratory.errors import InputError
from loratory.executor.model_config import ModelConfig
from loratory.executor.random_checkpoint import hugging_face_config
from loratory.models.shape import ModelShape

_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Modules of a layer: GGUF's names, and Hugging Face's."""

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

_SPECIAL = 3
"""GGUF's type of control tokens (``tokenizer.ggml.token_type``)."""

_DIGITS_APART = ("smollm",)
"""``tokenizer.ggml.pre`` of tokenizers that split GPT-2's way, after every digit has been set apart."""


def gguf_checkpoint(file: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write config, weights in ``dtype``, tokenizer, chat template and generation config of ``file`` into ``folder``.

    Raises `InputError` where the package gguf is missing, and for a file that is broken, or of another kind of model or
    tokenizer.
    """
    try:
        import gguf
    except ImportError as error:
        raise InputError('a GGUF file needs the package gguf: pip install "loratory[serve]"') from error
    try:
        reader = gguf.GGUFReader(file)
        fields = {name: held.contents() for name, held in reader.fields.items()}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{file} is no readable GGUF file ({error}): fetch it again") from error
    config = _config(fields, {tensor.name for tensor in reader.tensors}, file)
    config = replace(config, dtype=str(dtype).removeprefix("torch."))
    tensors: dict[str, Tensor] = {}
    for held in reader.tensors:
        values = torch.from_numpy(
            np.array(gguf.dequantize(held.data, held.tensor_type))
        )  # the file's own map is read-only
        name, tensor = _as_hugging_face(held.name, values, config.shape, file)
        tensors[name] = tensor.to(dtype).contiguous()
    wanted = config.outer_tensors()
    for layer in range(config.shape.layers):
        wanted |= config.layer_tensors(layer)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted:
        odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise InputError(f"{file}: {odd[0]} is missing, unknown or misshapen: give a GGUF file of a Llama model")
    folder.mkdir(parents=True, exist_ok=True)
    _tokenizer(fields, folder, config, file)
    special = {key: fields.get(f"tokenizer.ggml.{name}_token_id") for key, name in _IDS.items()}
    special = {key: token for key, token in special.items() if token is not None}
    _write(folder / "config.json", hugging_face_config(config) | special)
    _write(folder / "generation_config.json", {"_from_model_config": True, **special})
    weights = folder / "model.safetensors"
    save_file(tensors, weights, {"format": "pt"})
    weights.chmod((folder / "config.json").stat().st_mode)  # safetensors lets nobody else read it


_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def _config(fields: Mapping[str, Any], names: set[str], file: Path) -> ModelConfig:
    family = fields.get("general.architecture")
    if family != "llama":
        raise InputError(f"{file} is of the architecture {family!r}: give a GGUF file of a Llama model")
    try:
        hidden, heads = int(fields["llama.embedding_length"]), int(fields["llama.attention.head_count"])
        shape = ModelShape(
            hidden=hidden,
            layers=int(fields["llama.block_count"]),
            heads=heads,
            kv_heads=int(fields.get("llama.attention.head_count_kv", heads)),
            head_dim=int(fields.get("llama.attention.key_length", hidden // heads)),
            intermediate=int(fields["llama.feed_forward_length"]),
            vocab=len(fields["tokenizer.ggml.tokens"]),
            tied="output.weight" not in names,
        )
        # float32 in the file: the shortest number that rounds to it is the one that was meant
        norm_eps = float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"])))
        theta = float(fields.get("llama.rope.freq_base", 10000.0))
        positions, end = int(fields["llama.context_length"]), int(fields["tokenizer.ggml.eos_token_id"])
    except KeyError as error:
        raise InputError(f"{file} does not say its {error.args[0]}: give another GGUF file of the model") from None
    if "rope_freqs.weight" in names or fields.get("llama.rope.scaling.type", "none") != "none":
        raise InputError(
            f"{file} scales its rotary positions, which is not read from GGUF: give the original checkpoint"
        )
    rope = {"rope_type": "default", "rope_theta": theta}
    return ModelConfig(shape, positions, norm_eps, rope, eos_token_ids=(end,))


def _as_hugging_face(name: str, values: Tensor, shape: ModelShape, file: Path) -> tuple[str, Tensor]:
    """A tensor under Hugging Face's name, with its rows in Hugging Face's order."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{kind}", values
    _, _, rest = stem.partition("blk.")
    layer, _, module = rest.partition(".")
    if module not in _LAYER or not layer.isdecimal():
        raise InputError(f"{file} holds a tensor {name}, which a Llama model has not: give another GGUF file")
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(module)
    if heads is not None:
        values = values.view(heads, -1, 2, values.shape[1]).transpose(1, 2).reshape(values.shape)
    return f"model.layers.{layer}.{_LAYER[module]}.{kind}", values


def _tokenizer(fields: Mapping[str, Any], folder: Path, config: ModelConfig, file: Path) -> None:
    """A byte-level BPE tokenizer, as GPT-2's and its relatives are."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # needed by this function alone

    kind, split = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in _DIGITS_APART:
        raise InputError(
            f"{file} has a tokenizer {kind!r} with {split!r}, which is not read: give the original checkpoint"
        )
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    control = [token for token, held in zip(tokens, kinds, strict=True) if held == _SPECIAL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_positions,
    }
    for key, name in {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}.items():
        if (token := fields.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            settings[key] = tokens[int(token)]
    if (template := fields.get("tokenizer.chat_template")) is not None:
        settings["chat_template"] = template
    _write(folder / "tokenizer_config.json", settings)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
