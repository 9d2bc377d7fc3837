"""The linear layers of a base model by name: the block each is in, those computed together, and LoRA's targets."""

from __future__ import annotations

from collections.abc import Mapping

BLOCKS: Mapping[str, str] = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
"""The linear modules of a decoder layer, in the order in which it runs them, and the block that holds each."""

LINEAR_MODULES: tuple[str, ...] = tuple(BLOCKS)
"""What PEFT calls ``all-linear``."""

HEAD = "lm_head"
"""The output head, the one linear layer outside the decoder layers. An adapter can target it, too."""

TARGETS: tuple[str, ...] = (*LINEAR_MODULES, HEAD)
"""All that a LoRA adapter can target."""

FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""The modules of a layer that engines compute as one product, in the order of their output columns."""
