"""Decoder: what the Hugging Face config.json of a base model describes, or why Loratory does not support it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.errors import InputError, several, shortened
from loratory.models.config_file import read_object
from loratory.models.context_limit import ContextLimit, context_limit
from loratory.models.quantisation import quantised
from loratory.models.shape import ModelShape

FAMILIES: tuple[str, ...] = ("llama", "mistral", "qwen2", "qwen3")
"""``model_type`` values of a Hugging Face config whose models a `Decoder` describes exactly."""

DTYPES: Mapping[str, str] = {
    "float32": "fp32",
    "float": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
}
"""The dtypes that a config may name, and their names in the catalogue."""

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
"""Keys that show another architecture, whatever the model_type."""

_MOST_LAYERS = 1000
_MOST = 1 << 32


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder-only transformer of one of `FAMILIES`.

    ``context``: how many tokens a request may have. ``dtype``: the one the weights are saved in (float32, float16 or
    bfloat16), bfloat16 where the config names none.
    """

    shape: ModelShape
    context: ContextLimit
    dtype: str


def decoder(config: Mapping[str, Any], where: str, folder: Path | None = None) -> Decoder:
    """The `Decoder` that the keys of a ``config.json`` describe; ``folder`` holds the file, if there is one.

    ``where`` names the model or its file in errors. Raises `InputError` for what a `Decoder` does not describe exactly:
    other families, other architectures, quantised weights, and sizes that make no sense.
    """
    _check_family(config, where)
    if (sign := quantised(config, folder)) is not None:
        raise InputError(
            f"{where} is quantised, as {sign} shows; quantised weights are not supported: "
            "use the unquantised 16-bit checkpoint"
        )
    _refuse_others(config, where)
    shape = shape_of(config, where)
    _size(config, where, "max_position_embeddings")
    return Decoder(shape, context_limit(config, where), _dtype(config, where))


def read_shape(path: Path | str) -> ModelShape:
    """The shape in a Hugging Face ``config.json``, or in the one of a folder; also of a quantised checkpoint.

    Raises `InputError` for a file that cannot be read, and as `shape_of`.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    return shape_of(read_object(path), str(path))


def shape_of(config: Mapping[str, Any], where: str) -> ModelShape:
    """The shape that the keys of a ``config.json`` describe; ``where`` names the model or its file in errors.

    Keys left out have the defaults of transformers' configuration classes where those follow from others:
    ``num_key_value_heads`` is ``num_attention_heads`` (llama only), ``head_dim`` is hidden_size / num_attention_heads
    (128 for qwen3). Raises `InputError` for another family, and for a size that is missing or makes no sense.
    """
    family = _check_family(config, where)
    heads, hidden = _size(config, where, "num_attention_heads"), _size(config, where, "hidden_size")
    # null stands for as many as there are attention heads.
    same = heads if family == "llama" or "num_key_value_heads" in config else None
    kv_heads = _size(config, where, "num_key_value_heads", same)
    if heads % kv_heads:
        raise InputError(
            f"{where}: num_key_value_heads {kv_heads} does not divide the {heads} attention heads: correct it"
        )
    if config.get("head_dim") is None and family != "qwen3" and hidden % heads:
        raise InputError(f"{where}: hidden_size {hidden} is no multiple of {heads} attention heads: add head_dim")
    head_dim = _size(config, where, "head_dim", 128 if family == "qwen3" else hidden // heads)
    if head_dim % 2:
        raise InputError(f"{where}: head_dim is {head_dim}; rotary embeddings need an even number")
    bias = bool(config.get("attention_bias", False)) and family in ("llama", "qwen3")
    return ModelShape(
        hidden=hidden,
        layers=_size(config, where, "num_hidden_layers", most=_MOST_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=_size(config, where, "intermediate_size"),
        vocab=_size(config, where, "vocab_size"),
        family=family,
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or bias,
        o_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)) and family == "llama",
        qk_norm=family == "qwen3",
    )


def _check_family(config: Mapping[str, Any], where: str) -> str:
    family = config.get("model_type")
    if family not in FAMILIES:
        raise InputError(
            f"{where} has model_type {_shown(family)}, which Loratory does not model: use one of {', '.join(FAMILIES)}"
        )
    return str(family)


def _size(config: Mapping[str, Any], where: str, key: str, default: int | None = None, most: int = _MOST) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        limit = f"from 1 to {most}" if isinstance(value, int) and value > most else "above 0"
        raise InputError(f"{where}: {key} is {_shown(value)}; it must be a whole number {limit}")
    return value


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
