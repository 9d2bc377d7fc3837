"""ModelConfig: what the executor must know of a checkpoint's architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loratory.errors import InputError
from loratory.models.context_limit import rope_scaling
from loratory.models.decoder import decoder

ROPE_TYPES: tuple[str, ...] = ("default", "linear", "dynamic", "llama3", "yarn")
"""RoPE scalings, as Hugging Face names them, that `loratory.executor.rope` computes."""

PROJECTIONS: Mapping[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The fused projections of a layer and the checkpoint's modules in each, in order of their output rows."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer of the Llama, Mistral, Qwen2 or Qwen3 family.

    Sizes are in elements. ``max_positions``: tokens a sequence may have, prompt and output. ``rope``: the parameters
    that Hugging Face calls ``rope_parameters`` (with ``rope_type`` and ``rope_theta``). ``dtype``: the one the
    checkpoint says it was saved in: float32, bfloat16 or float16. ``eos_token_ids``: tokens that end a sequence.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_positions: int
    norm_eps: float = 1e-6
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope: Mapping[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    dtype: str = "bfloat16"
    eos_token_ids: tuple[int, ...] = ()

    @property
    def q_width(self) -> int:
        """Columns of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Columns of the key projection, and of the value projection."""
        return self.kv_heads * self.head_dim

    def linear(self, module: str) -> tuple[int, int, bool]:
        """(out_features, in_features, has a bias) of a layer's module such as ``self_attn.q_proj``."""
        kind = module.rpartition(".")[2]
        if kind == "q_proj":
            return self.q_width, self.hidden, self.qkv_bias
        if kind in ("k_proj", "v_proj"):
            return self.kv_width, self.hidden, self.qkv_bias
        if kind == "o_proj":
            return self.hidden, self.q_width, self.o_bias
        if kind in ("gate_proj", "up_proj"):
            return self.intermediate, self.hidden, self.mlp_bias
        assert kind == "down_proj", module
        return self.hidden, self.intermediate, self.mlp_bias

    def layer_tensors(self, layer: int) -> dict[str, tuple[int, ...]]:
        """The checkpoint's tensors of one layer, by name, with their shapes."""
        shapes: dict[str, tuple[int, ...]] = {}
        prefix = f"model.layers.{layer}."
        for modules in PROJECTIONS.values():
            for module in modules:
                out_features, in_features, bias = self.linear(module)
                shapes[f"{prefix}{module}.weight"] = (out_features, in_features)
                if bias:
                    shapes[f"{prefix}{module}.bias"] = (out_features,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{norm}.weight"] = (self.hidden,)
        if self.qk_norm:
            for norm in ("q_norm", "k_norm"):
                shapes[f"{prefix}self_attn.{norm}.weight"] = (self.head_dim,)
        return shapes

    def outer_tensors(self) -> dict[str, tuple[int, ...]]:
        """The checkpoint's tensors outside the layers, by name, with their shapes."""
        shapes = {"model.embed_tokens.weight": (self.vocab, self.hidden), "model.norm.weight": (self.hidden,)}
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab, self.hidden)
        return shapes

    @property
    def parameters(self) -> int:
        """Numbers in all tensors of the checkpoint."""
        per_layer = sum(_numbers(shape) for shape in self.layer_tensors(0).values())
        return self.layers * per_layer + sum(_numbers(shape) for shape in self.outer_tensors().values())

    def kv_bytes_per_token(self, item_bytes: int) -> int:
        """Bytes of keys and values of one token over all layers."""
        return 2 * self.layers * self.kv_width * item_bytes


def _numbers(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def from_hugging_face(config: Mapping[str, Any], where: str) -> ModelConfig:
    """A `ModelConfig` from the keys of a ``config.json`` completed with its family's defaults.

    ``where`` names the file in errors. `loratory.models.decoder` says what is refused and how long a sequence may be,
    for the simulator as well. Raises `InputError` for what the executor does not run.
    """
    found = decoder(config, where)
    if (act := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise InputError(f"{where}: hidden_act {act!r} is not supported: the executor runs silu")
    eos = config.get("eos_token_id")
    return ModelConfig(
        family=found.family,
        layers=found.layers,
        hidden=found.hidden,
        heads=found.heads,
        kv_heads=found.kv_heads,
        head_dim=found.head_dim,
        intermediate=found.intermediate,
        vocab=found.vocab,
        max_positions=found.context.default,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        tied=found.tied,
        qkv_bias=found.qkv_bias,
        o_bias=found.o_bias,
        mlp_bias=found.mlp_bias,
        qk_norm=found.qk_norm,
        rope=rope_parameters(config, where),
        dtype=found.dtype,
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
