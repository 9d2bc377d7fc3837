"""ModelConfig: what the executor takes from a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loratory.errors import InputError
from loratory.models.context_limit import rope_scaling
from loratory.models.decoder import decoder
from loratory.models.linear_layers import BLOCKS
from loratory.models.shape import ModelShape

ROPE_TYPES: tuple[str, ...] = ("default", "linear", "dynamic", "llama3", "yarn")
"""RoPE scalings, as Hugging Face names them, that `loratory.executor.rope` computes."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer of the Llama, Mistral, Qwen2 or Qwen3 family.

    ``max_positions``: tokens a sequence may have, prompt and output. ``rope``: the parameters
    that Hugging Face calls ``rope_parameters`` (with ``rope_type`` and ``rope_theta``). ``dtype``: the one the
    checkpoint was saved in: float32, bfloat16 or float16. ``eos_token_ids``: tokens that end a sequence.
    """

    shape: ModelShape
    max_positions: int
    norm_eps: float = 1e-6
    rope: Mapping[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    dtype: str = "bfloat16"
    eos_token_ids: tuple[int, ...] = ()

    def layer_tensors(self, layer: int) -> dict[str, tuple[int, ...]]:
        """The checkpoint's tensors of one layer, by name, with their shapes."""
        shape, prefix = self.shape, f"model.layers.{layer}."
        tensors: dict[str, tuple[int, ...]] = {}
        for module, block in BLOCKS.items():
            in_features, out_features = shape.widths(module)
            tensors[f"{prefix}{block}.{module}.weight"] = (out_features, in_features)
            if shape.has_bias(module):
                tensors[f"{prefix}{block}.{module}.bias"] = (out_features,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = (shape.hidden,)
        if shape.qk_norm:
            for norm in ("q_norm", "k_norm"):
                tensors[f"{prefix}self_attn.{norm}.weight"] = (shape.head_dim,)
        return tensors

    def outer_tensors(self) -> dict[str, tuple[int, ...]]:
        """The checkpoint's tensors outside the layers, by name, with their shapes."""
        embedding = (self.shape.vocab, self.shape.hidden)
        tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": (self.shape.hidden,)}
        if not self.shape.tied:
            tensors["lm_head.weight"] = embedding
        return tensors


def from_hugging_face(config: Mapping[str, Any], where: str) -> ModelConfig:
    """A `ModelConfig` from the keys of a ``config.json`` completed with its family's defaults.

    ``where`` names the file in errors. `loratory.models.decoder` decides what is refused and how long a sequence may
    be, for the simulator as well. Raises `InputError` for what the executor does not run.
    """
    described = decoder(config, where)
    if (act := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise InputError(f"{where}: hidden_act {act!r} is not supported: the executor runs silu")
    eos = config.get("eos_token_id")
    return ModelConfig(
        shape=described.shape,
        max_positions=described.context.default,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope=rope_parameters(config, where),
        dtype=described.dtype,
        eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (int(eos),),
    )


def rope_parameters(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``rope_parameters`` of a config of transformers 5, or the same from ``rope_theta`` and ``rope_scaling`` of 4."""
    rope = rope_scaling(config, where)
    if rope.get("rope_theta") is None:
        rope["rope_theta"] = config.get("rope_theta") or 10000.0
    if rope["rope_type"] not in ROPE_TYPES:
        raise InputError(
            f"{where}: RoPE scaling {rope['rope_type']!r} is not supported: the executor runs {', '.join(ROPE_TYPES)}"
        )
    if float(rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0) != 1.0:
        raise InputError(f"{where}: partial_rotary_factor is not supported: the executor rotates whole heads")
    needed = {"dynamic": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
    for key in needed.get(rope["rope_type"], ()):
        if not isinstance(rope.get(key), int | float):
            raise InputError(f"{where}: RoPE scaling {rope['rope_type']} needs a number {key} in rope_parameters")
    return rope
