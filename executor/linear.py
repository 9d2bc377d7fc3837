"""Linear layers in the memory layout that is fastest for their dtype and device."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

_SERVING: set[torch.Size] = set()
"""Shapes of weights for which `PackedSingle` was seen to serve any number of rows."""


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


class PackedSingle:
    """float32 weights in MKL's packed layout, at 16 to 128 rows 1.1 to 1.5 times as fast as column-major.

    The layout is chosen for ``rows`` rows. torch's operator takes the number of rows that the weights were packed for,
    and falls back to the unpacked weights if the input has another; MKL itself takes the number of rows in every call.
    So the operator is always given the input's own number, and no second copy of the weights is kept. MKL does not
    promise that this works: `serves_any_rows` tries it.
    """

    __slots__ = ("_shape", "bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int = 128) -> None:
        self.weight: Tensor = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), rows)
        self._shape = weight.new_empty(1).expand(weight.shape)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkl._mkl_linear(x, self.weight, self._shape, self.bias, x.shape[0])
        return y

    def serves_any_rows(self, weight: Tensor) -> bool:
        """Whether products with ``weight``, which this is made from, are right for other numbers of rows too."""
        inputs = torch.arange(200.0 * weight.shape[1]).sin_().view(200, -1)
        wanted = functional.linear(inputs, weight, self.bias)
        tolerance = 1e-5 * float(inputs.norm(dim=1).max() * weight.norm(dim=1).max())
        cases = ((inputs[:rows], wanted[:rows]) for rows in (1, 5, 64, 65, 200))
        return all(torch.allclose(self(x), y, rtol=1e-4, atol=tolerance) for x, y in cases)


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
        return _single(weight, bias)
    return Packed(weight, bias) if _packs(weight.dtype) else RowMajor(weight.contiguous(), bias)


def _single(weight: Tensor, bias: Tensor | None) -> Linear:
    if torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear"):  # type: ignore[no-untyped-call]
        packed = PackedSingle(weight, bias)
        if weight.shape in _SERVING:
            return packed
        if packed.serves_any_rows(weight):
            _SERVING.add(weight.shape)
            return packed
    return ColumnMajor(weight, bias)


def _packs(dtype: torch.dtype) -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    ask = getattr(torch.ops.mkldnn, supported, None)
    return bool(ask()) if ask is not None else False
