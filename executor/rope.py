"""rope: rotary position embedding, with inverse frequencies under the scalings Hugging Face checkpoints name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def inverse_frequencies(rope: Mapping[str, Any], head_dim: int) -> tuple[Tensor, float]:
    """(head_dim / 2,) float32 angles per position, and the factor on cosine and sine.

    ``rope`` is `loratory.executor.model_config.ModelConfig.rope`. The formulas are those of transformers'
    ``modeling_rope_utils``: linear (Chen et al. 2023, position interpolation), llama3 (Llama 3.1), yarn (Peng et al.
    2023, section 3); dynamic NTK equals the default up to ``max_position_embeddings``, to which the executor limits it.
    """
    base = float(rope["rope_theta"])
    plain = 1.0 / (base ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
    match rope["rope_type"]:
        case "linear":
            return plain / float(rope["factor"]), 1.0
        case "llama3":
            return _llama3(plain, rope), 1.0
        case "yarn":
            return _yarn(base, head_dim, rope)
        case _:
            return plain, 1.0


def _llama3(plain: Tensor, rope: Mapping[str, Any]) -> Tensor:
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope["original_max_position_embeddings"])
    wavelength = 2 * math.pi / plain
    smooth = (original / wavelength - low) / (high - low)
    between = (1 - smooth) * plain / factor + smooth * plain
    scaled = torch.where(wavelength > original / low, plain / factor, plain)
    return torch.where((wavelength <= original / low) & (wavelength >= original / high), between, scaled)


def _yarn(base: float, dim: int, rope: Mapping[str, Any]) -> tuple[Tensor, float]:
    factor, original = float(rope["factor"]), float(rope["original_max_position_embeddings"])

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    def dimension(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(float(rope.get("beta_fast") or 32)), dimension(float(rope.get("beta_slow") or 1))
    if rope.get("truncate", True):
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, dim - 1.0)
    if low == high:
        high += 0.001
    ramp = torch.clamp((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    positions = base ** (torch.arange(0, dim, 2).float() / dim)
    frequencies = ramp / (factor * positions) + (1 - ramp) / positions
    attention = rope.get("attention_factor")
    if attention is None:
        both = rope.get("mscale") and rope.get("mscale_all_dim")
        attention = scale(float(rope["mscale"])) / scale(float(rope["mscale_all_dim"])) if both else scale(1.0)
    return frequencies, float(attention)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn ``heads`` (T, n, head_dim) in place, by what `tables` gave."""
    half = heads.shape[-1] // 2
    turned = heads.roll(half, -1).mul_(sin)
    torch.addcmul(turned, heads, cos, out=heads)


def tables(positions: Tensor, frequencies: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What `rotate` needs for tokens at ``positions`` (T,): cosine and signed sine, each (T, 1, head_dim)."""
    angles = positions.unsqueeze(1).float() * frequencies
    cos, sin = angles.cos().mul_(scale), angles.sin().mul_(scale)
    return torch.cat((cos, cos), 1).to(dtype).unsqueeze(1), torch.cat((-sin, sin), 1).to(dtype).unsqueeze(1)
