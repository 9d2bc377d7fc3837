"""ops_cuda: `loratory.executor.ops.Ops`, a Triton kernel each: at small batches a launch costs as much as the work."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _norm_kernel(  # type: ignore[no-untyped-def]
    x, y, weight, out, eps, width, add: tl.constexpr, block: tl.constexpr
):
    """One row: x += y (if ``add``), then its root-mean-square norm times ``weight``."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    wide = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if add:
        wide += tl.load(y + row * width + column, mask=inside, other=0.0).to(tl.float32)
        rounded = wide.to(x.dtype.element_ty)
        tl.store(x + row * width + column, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / width + eps)
    scaled = wide * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_kernel(  # type: ignore[no-untyped-def]
    qkv, cos, sin, rows, keys, values, stride, heads, kv_heads, half: tl.constexpr, block: tl.constexpr
):
    """One head of one token: turn queries and keys in place, and store keys and values in the cache."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    lane = tl.arange(0, block)
    inside = lane < half
    place = qkv + token * stride + head * 2 * half
    first = tl.load(place + lane, mask=inside, other=0.0)
    second = tl.load(place + half + lane, mask=inside, other=0.0)
    target = tl.load(rows + token) * kv_heads * 2 * half
    if head < heads + kv_heads:
        low = token * 2 * half + lane
        c0 = tl.load(cos + low, mask=inside, other=0.0).to(tl.float32)
        c1 = tl.load(cos + low + half, mask=inside, other=0.0).to(tl.float32)
        s0 = tl.load(sin + low, mask=inside, other=0.0).to(tl.float32)
        s1 = tl.load(sin + low + half, mask=inside, other=0.0).to(tl.float32)
        wide0, wide1 = first.to(tl.float32), second.to(tl.float32)
        turned0 = (wide0 * c0 + wide1 * s0).to(first.dtype)
        turned1 = (wide1 * c1 + wide0 * s1).to(first.dtype)
        tl.store(place + lane, turned0, mask=inside)
        tl.store(place + half + lane, turned1, mask=inside)
        if head >= heads:
            key = keys + target + (head - heads) * 2 * half + lane
            tl.store(key, turned0, mask=inside)
            tl.store(key + half, turned1, mask=inside)
    else:
        value = values + target + (head - heads - kv_heads) * 2 * half + lane
        tl.store(value, first, mask=inside)
        tl.store(value + half, second, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gate_kernel(gate_up, out, width, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """A stretch of one row: silu(gate) * up."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * width + column, product.to(out.dtype.element_ty), mask=inside)


class TritonOps:
    """See `loratory.executor.ops.Ops`. Rows of every argument but ``qkv`` are contiguous."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `loratory.executor.ops.Ops.norm`."""
        return self._norm(x, x, weight, eps, False)

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `loratory.executor.ops.Ops.add_norm`."""
        return self._norm(x, y, weight, eps, True)

    def rotate_and_store(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, rows: Tensor, keys: Tensor, values: Tensor
    ) -> None:
        """See `loratory.executor.ops.Ops.rotate_and_store`."""
        half = cos.shape[-1] // 2
        kv_heads = keys.shape[1] // (2 * half)
        every = qkv.shape[1] // (2 * half)
        _rotate_kernel[(qkv.shape[0], every)](
            qkv,
            cos,
            sin,
            rows,
            keys,
            values,
            qkv.stride(0),
            every - 2 * kv_heads,
            kv_heads,
            half=half,
            block=triton.next_power_of_2(half),
            num_warps=1,
        )

    def gate(self, gate_up: Tensor) -> Tensor:
        """See `loratory.executor.ops.Ops.gate`."""
        width = gate_up.shape[1] // 2
        out = torch.empty(gate_up.shape[0], width, dtype=gate_up.dtype, device=gate_up.device)
        _gate_kernel[(gate_up.shape[0], triton.cdiv(width, 1024))](gate_up, out, width, block=1024)
        return out

    def _norm(self, x: Tensor, y: Tensor, weight: Tensor, eps: float, add: bool) -> Tensor:
        out, width = torch.empty_like(x), x.shape[1]
        block = triton.next_power_of_2(width)
        warps = min(16, max(4, block // 512))
        _norm_kernel[(x.shape[0],)](x, y, weight, out, eps, width, add=add, block=block, num_warps=warps)
        return out
