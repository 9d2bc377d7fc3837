"""context_limit: how many tokens a request may have on a base model, by vLLM's rules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loratory.errors import InputError, shortened

ROPE_TYPES: tuple[str, ...] = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "mrope")
"""RoPE scalings whose context limit is known. ``su`` is an older name of ``longrope``."""

_UNSCALED = ("default", "llama3", "longrope", "mrope")
_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
_MOST = 1 << 40


@dataclass(frozen=True, slots=True)
class ContextLimit:
    """Tokens of prompt and output together. ``default``: where no length is configured; ``most``: the largest allowed.

    ``note``: one sentence to show with the default where vLLM would take another; otherwise empty. ``window``: the
    sliding window, where that is the limit.
    """

    default: int
    most: int
    note: str = ""
    window: int | None = None


def context_limit(config: Mapping[str, Any], where: str) -> ContextLimit:
    """The limit of a model, from the keys of its config.json; ``where`` names it in errors.

    vLLM's rule (vllm/config/model.py, ``_get_and_verify_max_len``): ``model_max_length``, otherwise the smallest of the
    keys that hold a length. yarn multiplies its original length by its factor; other scalings multiply the length by
    theirs, except llama3 and longrope. longrope's default is its original length.

    Three limits differ from vLLM's. The sliding window is the most: within it attention is the same as without one, and
    beyond it Loratory models none. Under dynamic scaling the unscaled length is the default: up to it the scaling
    changes nothing, and beyond it results depend on how prompts are cut into chunks. Where yarn scales to less than
    max_position_embeddings, that is the limit. Raises `InputError` for a length, a factor or a type that makes no
    sense.
    """
    lengths = [_length(config[key], key, where) for key in _KEYS if config.get(key) is not None]
    if config.get("model_max_length") is not None:
        lengths = [_length(config["model_max_length"], "model_max_length", where)]
    if not lengths:
        raise InputError(f"{where}: max_position_embeddings is None; it must be a whole number above 0")
    plain = min(lengths)
    rope = rope_scaling(config, where)
    kind, factor = rope["rope_type"], rope.get("factor") or 1.0
    original = rope.get("original_max_position_embeddings")
    start = original if kind == "yarn" and original else plain
    scaled = most = start if kind in _UNSCALED else int(start * factor)
    if most < 1 or most > _MOST:
        raise InputError(
            f"{where}: RoPE scaling {kind} by {factor:g} makes {most} tokens of {start}: correct the factor"
        )
    if kind == "yarn":
        most = max(most, plain)
    default = most
    note = (
        "" if most == scaled else f"max_model_len is {most}, max_position_embeddings; vLLM takes the {scaled} of yarn"
    )
    if kind == "longrope" and original:
        default = min(original, most)
    elif kind == "dynamic" and most > plain:
        default = plain
        note = (
            f"max_model_len is {plain}, up to which dynamic RoPE scaling changes nothing; vLLM takes {most}, "
            "and so does a simulation where engine.max_model_len says so"
        )
    window = _window(config, where)
    if window is not None and window < most:
        note = (
            f"max_model_len is {window}, the model's sliding window, beyond which attention is not modelled; "
            f"vLLM takes {most}"
        )
        return ContextLimit(min(default, window), window, note, window)
    return ContextLimit(default, most, note)


def rope_scaling(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``rope_parameters`` of a config of transformers 5 on top of ``rope_scaling`` of 4, with ``rope_type`` set.

    ``factor`` is a float where there is one, and yarn's ``original_max_position_embeddings`` is filled in.
    Raises `InputError` for what is no mapping, an unknown or contradictory type, or a number that makes no sense.
    """
    rope: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        given = config.get(key)
        if given is not None and not isinstance(given, Mapping):
            raise InputError(f"{where}: {key} is {_shown(given)}; it must be a mapping, such as one with a rope_type")
        rope |= {name: value for name, value in (given or {}).items() if value is not None}
    if rope and all(isinstance(value, Mapping) for value in rope.values()):
        raise InputError(f"{where}: RoPE parameters by layer type ({', '.join(map(str, rope))[:60]}) are not modelled")
    given_types = [str(rope[key]) for key in ("rope_type", "type") if key in rope]
    named = {"longrope" if kind == "su" else kind for kind in given_types}
    if named == {"default", "mrope"}:
        named = {"mrope"}
    if len(named) > 1:
        raise InputError(f"{where}: RoPE scaling has the types {' and '.join(map(_shown, given_types))}: keep one")
    if not named and "factor" in rope:
        raise InputError(f"{where}: RoPE scaling has a factor and no rope_type: add it, such as linear or yarn")
    kind = named.pop() if named else "default"
    if kind not in ROPE_TYPES:
        raise InputError(f"{where}: RoPE scaling {_shown(kind)} is not known: it is one of {', '.join(ROPE_TYPES)}")
    rope["rope_type"] = kind
    if "factor" in rope:
        rope["factor"] = _factor(rope["factor"], kind, where)
    original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    if kind in ("llama3", "yarn") and original is None:
        original = config.get("max_position_embeddings")
    if original is not None:
        rope["original_max_position_embeddings"] = _length(original, "original_max_position_embeddings", where)
    if kind == "linear" and "factor" not in rope:
        raise InputError(f"{where}: RoPE scaling linear needs a number factor in rope_parameters")
    if kind == "yarn" and "factor" not in rope:
        positions = _length(config.get("max_position_embeddings"), "max_position_embeddings", where)
        rope["factor"] = positions / rope["original_max_position_embeddings"]
    return rope


def _window(config: Mapping[str, Any], where: str) -> int | None:
    """The sliding attention window of any layer; None where every layer sees everything.

    Keys left out have the defaults of transformers' configuration classes.
    """
    family = config.get("model_type")
    if family == "mistral":
        window = config.get("sliding_window", 4096)
    elif family in ("qwen2", "qwen3"):
        window = config.get("sliding_window", 4096)
        kinds = config.get("layer_types")
        layers = config.get("num_hidden_layers")
        full = config.get("max_window_layers", 28)
        some = isinstance(layers, int) and isinstance(full, int) and full < layers
        if isinstance(kinds, list | tuple):
            some = "sliding_attention" in kinds
        if not config.get("use_sliding_window") or not some:
            return None
    else:
        return None
    return None if window is None or window is False else _length(window, "sliding_window", where)


def _length(value: Any, key: str, where: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST:
        raise InputError(f"{where}: {key} is {_shown(value)}; it must be a whole number above 0")
    return value


def _factor(value: Any, kind: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise InputError(f"{where}: RoPE scaling {kind} has the factor {_shown(value)}; it must be a number above 0")
    return float(value)


def _shown(value: Any) -> str:
    return shortened(repr(value), 60)
