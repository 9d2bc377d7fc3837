"""Linear layers: every layout gives the product, for any number of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import loratory.executor.linear
from loratory.executor.linear import ColumnMajor, Linear, Packed, PackedSingle, RowMajor, linear

_SIZES = st.one_of(st.integers(1, 100), st.sampled_from([512, 1024, 1408]))
_ROWS = st.one_of(st.integers(1, 300), st.sampled_from([1000, 2048, 5000]))
_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch is built without MKL")


def _layer(out_features: int, in_features: int, bias: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    torch.manual_seed(out_features * 7 + in_features)
    weight = torch.randn(out_features, in_features).div_(in_features**0.5).to(dtype)
    return weight, torch.randn(out_features).to(dtype) if bias else None


def _check(layer: Linear, weight: Tensor, bias: Tensor | None, rows: int) -> None:
    x = torch.randn(rows, weight.shape[1]).to(weight.dtype)
    expected = x.double() @ weight.double().t()
    if bias is not None:
        expected += bias.double()
    found = layer(x)
    assert found.dtype == weight.dtype and found.shape == expected.shape and found.is_contiguous()
    tolerance = 1e-5 if weight.dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * 4)


@given(out_features=_SIZES, in_features=_SIZES, bias=st.booleans(), rows=st.lists(st.integers(0, 300), min_size=1))
def test_float32_layers_give_the_product_for_any_rows(
    out_features: int, in_features: int, bias: bool, rows: list[int]
) -> None:
    weight, offset = _layer(out_features, in_features, bias, torch.float32)
    layers = (linear(weight, offset), RowMajor(weight, offset), ColumnMajor(weight, offset))
    for count in rows:
        for layer in layers:
            _check(layer, weight, offset, count)


@_mkl
@given(hint=st.integers(1, 300), rows=_ROWS, packing=st.integers(1, 2), computing=st.integers(1, 2))
def test_weights_packed_for_some_rows_and_threads_serve_others(
    hint: int, rows: int, packing: int, computing: int
) -> None:
    weight, bias = _layer(1024, 512, bias=True, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(packing)
        layer = PackedSingle(weight, bias, hint)
        torch.set_num_threads(computing)
        _check(layer, weight, bias, rows)
    finally:
        torch.set_num_threads(before)


@_mkl
def test_float32_weights_are_packed_and_not_kept_twice() -> None:
    weight, _ = _layer(64, 32, bias=False, dtype=torch.float32)
    layer = linear(weight)
    assert isinstance(layer, PackedSingle)
    weight.fill_(torch.nan)
    assert torch.isfinite(layer(torch.ones(3, 32))).all()
    assert layer._shape.untyped_storage().nbytes() == 4


@_mkl
def test_an_mkl_that_serves_only_the_rows_packed_for_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = _layer(48, 40, bias=True, dtype=torch.float32)
    right = PackedSingle.__call__

    def wrong(self: PackedSingle, x: Tensor) -> Tensor:
        return right(self, x) if x.shape[0] == 64 else right(self, x).roll(1, 1)

    assert PackedSingle(weight, bias).serves_any_rows(weight)
    monkeypatch.setattr(PackedSingle, "__call__", wrong)
    monkeypatch.setattr(loratory.executor.linear, "_SERVING", set())
    layer = linear(weight, bias)
    assert isinstance(layer, ColumnMajor)
    _check(layer, weight, bias, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_16_bit_layers_give_the_product_for_any_rows(dtype: torch.dtype, bias: bool) -> None:
    weight, offset = _layer(96, 64, bias, dtype)
    layer = linear(weight, offset)
    assert isinstance(layer, Packed | RowMajor)
    for rows in (1, 7, 64, 130):
        _check(layer, weight, offset, rows)
