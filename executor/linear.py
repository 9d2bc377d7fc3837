"""Linear layers in the memory layout that is fastest for their dtype and device."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Linear(Protocol):
    """x (T, in) -> (T, out), contiguous and new."""

    def __call__(self, x: Tensor) -> Tensor: ...


class RowMajor:
    """Weights as checkpoints store them, (out, in)."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class ColumnMajor:
    """Weights as (in, out). MKL's float32 product of few rows is up to 1.4 times faster so (64 rows, AVX-512)."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight.t().contiguous()
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return torch.mm(x, self.weight)
        return torch.addmm(self.bias, x, self.weight)


class Packed:
    """Weights in oneDNN's blocked layout, as torch's Inductor packs them when it freezes a model.

    `functional.linear` packs 16-bit weights anew in every call, which at 64 rows takes half of the time on a CPU with
    AMX. The layout is chosen for ``rows`` rows and serves any number.
    """

    __slots__ = ("bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int = 64) -> None:
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """A linear layer from ``weight`` (out, in) and ``bias`` (out,), in the layout for their dtype and device."""
    if weight.device.type != "cpu":
        return RowMajor(weight.contiguous(), bias)
    if weight.dtype == torch.float32:
        return ColumnMajor(weight, bias)
    return Packed(weight, bias) if _packs(weight.dtype) else RowMajor(weight.contiguous(), bias)


def _packs(dtype: torch.dtype) -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    ask = getattr(torch.ops.mkldnn, supported, None)
    return bool(ask()) if ask is not None else False
