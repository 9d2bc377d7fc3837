"""Decoder: the shape of a base model, from its Hugging Face config.json, or why it is none that Loratory knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.errors import InputError, several, shortened
from loratory.models.context_limit import ContextLimit, context_limit
from loratory.models.quantisation import quantised

FAMILIES: tuple[str, ...] = ("llama", "mistral", "qwen2", "qwen3")
"""``model_type`` values of a Hugging Face config whose models a `Decoder` describes exactly."""

DTYPES: Mapping[str, str] = {
    "float32": "fp32",
    "float": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
}
"""dtypes a config may name, and what the catalogue calls them."""

_OTHER_MODELS = {
    "num_local_experts": "a mixture of experts",
    "num_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "moe_num_experts": "a mixture of experts",
    "kv_lora_rank": "a model with latent attention (MLA)",
    "is_encoder_decoder": "an encoder-decoder",
    "cross_attention_layers": "a model with cross-attention",
    "vision_config": "a vision-language model",
    "mm_vision_tower": "a vision-language model",
    "audio_config": "an audio model",
    "attn_layer_period": "a hybrid of attention and state-space layers",
    "ssm_cfg": "a state-space model",
    "mamba_d_state": "a hybrid of attention and state-space layers",
    "block_configs": "a model whose layers differ",
    "pruned_heads": "a model whose layers differ",
}
"""Keys that make something else of a config, whatever its model_type says."""

_MOST_LAYERS = 1000
_MOST = 1 << 32


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder-only transformer of one of `FAMILIES`. Sizes are in elements; names are those of Hugging Face configs.

    ``dtype`` is what the config says the weights are saved in (float32, float16 or bfloat16), bfloat16 where it says
    nothing. ``context`` is how many tokens a request may have.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_position_embeddings: int
    context: ContextLimit
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    dtype: str


def decoder(config: Mapping[str, Any], where: str, folder: Path | None = None) -> Decoder:
    """The `Decoder` that the keys of a ``config.json`` describe; ``folder`` holds the file, if there is one.

    Keys left out have the defaults of transformers' configuration classes where those follow from others. ``where``
    names the model or its file in errors. Raises `InputError` for what is not described exactly: other families, other
    architectures, quantised weights, and sizes that make no sense.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise InputError(
            f"{where} is of type {_shown(family)}, which Loratory does not model: use one of {', '.join(FAMILIES)}"
        )
    if (sign := quantised(config, folder)) is not None:
        raise InputError(
            f"{where} is quantised, as {sign} says; quantised weights are not supported: "
            "use the unquantised 16-bit checkpoint"
        )
    _refuse_others(config, where)

    def number(key: str, default: int | None = None, most: int = _MOST) -> int:
        value = config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            limit = f"from 1 to {most}" if isinstance(value, int) and value > most else "above 0"
            raise InputError(f"{where}: {key} is {_shown(value)}; it must be a whole number {limit}")
        return value

    heads, hidden = number("num_attention_heads"), number("hidden_size")
    kv_heads = number("num_key_value_heads", heads if family == "llama" or "num_key_value_heads" in config else None)
    if heads % kv_heads:
        raise InputError(
            f"{where}: {heads} attention heads do not share {kv_heads} KV heads evenly, because "
            f"{kv_heads} key-value heads do not divide them: correct num_key_value_heads"
        )
    if config.get("head_dim") is None and family != "qwen3" and hidden % heads:
        raise InputError(f"{where}: hidden_size {hidden} is no multiple of {heads} attention heads: add head_dim")
    head_dim = number("head_dim", 128 if family == "qwen3" else hidden // heads)
    if head_dim % 2:
        raise InputError(f"{where}: head_dim is {head_dim}; rotary embeddings need an even number")
    bias = bool(config.get("attention_bias", False)) and family in ("llama", "qwen3")
    return Decoder(
        family=str(family),
        layers=number("num_hidden_layers", most=_MOST_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=number("intermediate_size"),
        vocab=number("vocab_size"),
        max_position_embeddings=number("max_position_embeddings"),
        context=context_limit(config, where),
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or bias,
        o_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)) and family == "llama",
        qk_norm=family == "qwen3",
        dtype=_dtype(config, where),
    )


def _refuse_others(config: Mapping[str, Any], where: str) -> None:
    for key, what in _OTHER_MODELS.items():
        value = config.get(key)
        if value and not (key.endswith("experts") and value == 1):
            raise InputError(
                f"{where} is {what} ({key} in its config.json), which is not supported: use a dense decoder"
            )
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        strange = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
        if strange:
            raise InputError(
                f"{where} has layers of type {several(strange)}, which are not supported: use a dense decoder"
            )
    named = config.get("architectures")
    if isinstance(named, list) and named and not any(str(name).endswith("ForCausalLM") for name in named):
        raise InputError(
            f"{where} has the architecture {several(named)}, which is not supported: use a model that generates text "
            "(...ForCausalLM)"
        )


def _dtype(config: Mapping[str, Any], where: str) -> str:
    key = "dtype" if config.get("dtype") else "torch_dtype"
    given = config.get(key) or "bfloat16"
    dtype = str(given).removeprefix("torch.")
    if dtype not in DTYPES:
        raise InputError(
            f"{where}: {key} {_shown(given)} is not supported: use a checkpoint saved in bfloat16, float16 or float32"
        )
    return {"float": "float32", "half": "float16"}.get(dtype, dtype)


def _shown(value: object) -> str:
    return shortened(repr(value), 60)
