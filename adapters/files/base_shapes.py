"""BaseShapes: the widths of a base model's linear layers, which an adapter's matrices must agree with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loratory.adapters.files.strict_json import MAX_CONFIG_BYTES, parse_object
from loratory.errors import InputError

PARENTS: Mapping[str, str] = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
"""The linear layers a LoRA adapter can have matrices for, and the block of a decoder layer each is in."""

HEAD = "lm_head"
"""The output head, the one linear layer outside the decoder layers; ``all-linear`` leaves it out."""

TARGETS = (*PARENTS, HEAD)
"""What an adapter can have matrices for, in the order in which a model runs it."""

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""``model_type`` of the Hugging Face configurations whose layers are named and shaped as `PARENTS` says."""


@dataclass(frozen=True, slots=True)
class BaseShapes:
    """Widths of a Llama-like base model. Raises `InputError` for a width below 1 or heads that do not divide."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    model_type: str = "llama"

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "heads", "kv_heads", "head_dim", "intermediate", "vocab"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"the base model's {name} is {value!r}: it must be a whole number of at least 1")
        if self.heads % self.kv_heads:
            raise InputError(
                f"the base model has {self.heads} attention heads and {self.kv_heads} KV heads: "
                "the first must be a multiple of the second"
            )

    def widths(self, name: str) -> tuple[int, int]:
        """(in_features, out_features) of one of `TARGETS`."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, q),
            "k_proj": (self.hidden, kv),
            "v_proj": (self.hidden, kv),
            "o_proj": (q, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
            HEAD: (self.hidden, self.vocab),
        }[name]

    @classmethod
    def from_config(cls, config: Mapping[str, object] | str | os.PathLike[str]) -> BaseShapes:
        """Shapes from a Hugging Face ``config.json``: its path, its folder, or its content.

        Missing keys take the defaults of transformers' configuration classes: ``num_key_value_heads`` is
        ``num_attention_heads`` (llama only), ``head_dim`` is hidden_size / num_attention_heads (128 for qwen3).
        Raises `InputError` for a model that is not one of `MODEL_TYPES` or lacks a width.
        """
        where = "the base model's configuration"
        if not isinstance(config, Mapping):
            path = Path(config)
            path = path / "config.json" if path.is_dir() else path
            where = str(path)
            try:
                with path.open("rb") as file:
                    data = file.read(MAX_CONFIG_BYTES + 1)
            except OSError as error:
                raise InputError(
                    f"{where} cannot be read ({error.strerror}): give the base model's config.json"
                ) from None
            config = parse_object(data, where, MAX_CONFIG_BYTES)
        kind = config.get("model_type")
        if kind not in MODEL_TYPES:
            raise InputError(f"{where}: model_type is {kind!r}: adapters are served on {', '.join(MODEL_TYPES)} only")

        def width(key: str, default: int | None = None) -> int:
            value = config.get(key)
            value = default if value is None else value
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{where}: {key} is {value!r}: it must be a whole number of at least 1")
            return value

        hidden, heads = width("hidden_size"), width("num_attention_heads")
        return cls(
            hidden=hidden,
            layers=width("num_hidden_layers"),
            heads=heads,
            kv_heads=width("num_key_value_heads", heads if kind == "llama" else None),
            head_dim=width("head_dim", 128 if kind == "qwen3" else hidden // heads),
            intermediate=width("intermediate_size"),
            vocab=width("vocab_size"),
            model_type=str(kind),
        )
