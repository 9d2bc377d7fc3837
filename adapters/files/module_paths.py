"""Place: the linear layer of a served model that a module's path in an adapter's file means, with any wrapper."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from loratory.models.linear_layers import BLOCKS, HEAD, TARGETS

PREFIX = "base_model.model."
"""What PEFT puts before the path of a module in the base model."""

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of a path that torch.compile and torch.distributed insert before the module that they wrap."""

_CONTAINERS = frozenset({"model", "module", "language_model", "text_model", "llm", "thinker"})
"""Parts of a path that may come before a language model's layers: the model, DistributedDataParallel, a VLM."""

_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}", re.ASCII)
_PART = re.compile(r"\w+", re.ASCII)
_ELSEWHERE = "serve it with an engine that serves its base model"
_OTHERS: tuple[tuple[frozenset[str], str], ...] = (
    (
        frozenset({"qkv_proj", "query_key_value", "W_pack", "Wqkv", "qkv"}),
        "it fuses q, k and v: split the rows of its lora_B among q_proj, k_proj and v_proj, and give each its lora_A",
    ),
    (
        frozenset({"gate_up_proj"}),
        "it fuses gate and up: split the rows of its lora_B between gate_proj and up_proj, and give each its lora_A",
    ),
    (
        frozenset({"experts", "block_sparse_moe", "shared_expert", "shared_experts", "router"}),
        f"it belongs to a mixture of experts, but served models have none: {_ELSEWHERE}",
    ),
    (
        frozenset({"vision_tower", "visual", "vision_model", "multi_modal_projector", "mm_projector", "audio_tower"}),
        f"it is outside the language model, which alone is served: target that one's layers only, or {_ELSEWHERE}",
    ),
    (
        frozenset({"embed_tokens"}),
        "it is the embedding, on which no LoRA is served: retrain without embed_tokens, or merge the adapter",
    ),
)
"""Parts of paths of modules that no served model has: why, and the remedy."""


@dataclass(frozen=True, slots=True)
class Place:
    """Linear layer ``name`` of decoder layer ``layer``; or the output head, as if of layer 0.

    ``readings``: its path as PEFT may have seen it when it applied the configuration's patterns, with ``{layer}``,
    ``{parent}`` and ``{name}`` for what differs between modules: without what `WRAPPERS` put in, and as it is.
    """

    layer: int
    name: str
    readings: tuple[str, ...]

    @property
    def path(self) -> str:
        """The layer's name in a causal language model: ``model.layers.0.self_attn.q_proj``."""
        return HEAD if self.name == HEAD else f"model.layers.{self.layer}.{BLOCKS[self.name]}.{self.name}"

    @property
    def order(self) -> tuple[bool, int, int]:
        """Its place in the order in which a model runs its layers."""
        return self.name == HEAD, self.layer, TARGETS.index(self.name)


def bare(key: str) -> str:
    """A tensor's key without the wrappers of the whole PEFT model in front of it."""
    parts = key.split(".")
    while len(parts) > 1 and (parts[0] in WRAPPERS or parts[0] == "module"):
        parts.pop(0)
    return ".".join(parts)


def place_of(path: str) -> Place | None:
    """Where a module is; None for one that no served model has.

    >>> place_of("language_model.model.layers.3.mlp.up_proj").path
    'model.layers.3.mlp.up_proj'
    """
    parts = path.split(".")
    if not all(_PART.fullmatch(part) for part in parts):
        return None
    plain = [part for part in parts if part not in WRAPPERS]
    if plain and plain[-1] == HEAD and _CONTAINERS.issuperset(plain[:-1]):
        return Place(0, HEAD, tuple(dict.fromkeys((".".join(plain), ".".join(parts)))))
    if len(plain) < 4 or plain[-4] != "layers" or not _NUMBER.fullmatch(plain[-3]):
        return None
    if BLOCKS.get(plain[-1]) != plain[-2] or not _CONTAINERS.issuperset(plain[:-4]):
        return None
    variable = dict(zip(plain[-3:], ("{layer}", "{parent}", "{name}"), strict=True))
    # Only what follows the last "layers" differs between modules; no container is named like a linear layer.
    number = len(parts) - 1 - parts[::-1].index("layers")
    raw = [*parts[: number + 1], *(variable.get(part, part) for part in parts[number + 1 :])]
    clean = [*plain[:-3], *variable.values()]
    return Place(int(plain[-3]), plain[-1], tuple(dict.fromkeys((".".join(clean), ".".join(raw)))))


def read_as(reading: str, layer: int, name: str) -> str:
    """The path of another layer by the same reading."""
    return reading.replace("{layer}", str(layer)).replace("{parent}", BLOCKS[name]).replace("{name}", name)


def why_none(path: str) -> str:
    """Why no served model has this module, and the remedy."""
    parts = set(path.split("."))
    for names, reason in _OTHERS:
        if parts & names:
            return reason
    return f"if it is one of {', '.join(BLOCKS)} of a layer, rename the keys, otherwise {_ELSEWHERE}"


def not_linear(layers: int) -> Iterable[str]:
    """The paths of a served model's modules that are not linear layers: PEFT has another LoRA for them, or none."""
    yield from ("model", "model.embed_tokens", "model.norm", "model.rotary_emb", "model.layers")
    for layer in range(layers):
        path = f"model.layers.{layer}"
        yield path
        yield from (f"{path}.{name}" for name in ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm"))
        yield from (f"{path}.mlp.act_fn", f"{path}.self_attn.q_norm", f"{path}.self_attn.k_norm")
