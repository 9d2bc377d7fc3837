"""Ops: what a layer does between its linear layers and attention."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from loratory.executor.rope import rotate


class Ops(Protocol):
    """The operations around a layer's products, so that a device may fuse them."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm of the rows of ``x`` (T, hidden), computed in float32 and scaled by ``weight``."""

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add ``y`` to ``x`` in place; the norm of the sum."""

    def rotate_and_store(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, rows: Tensor, keys: Tensor, values: Tensor
    ) -> None:
        """Turn queries and keys of ``qkv`` in place, and write its keys and values to ``rows`` of a cache's layer.

        ``qkv``: (T, width), queries, keys and values one after the other. ``cos``, ``sin``:
        `loratory.executor.rope.tables`.
        """

    def gate(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up, (T, intermediate), of ``gate_up`` (T, 2 * intermediate)."""


class TorchOps:
    """`Ops` of plain torch calls."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.norm`. On CPU torch's own takes twice as many passes over memory."""
        if x.device.type != "cpu":
            return torch.rms_norm(x, weight.shape, weight, eps)
        wide = x.float()
        norms: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norms.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        if wide is x:
            return torch.mul(x, scale).mul_(weight)
        return torch.mul(wide.mul_(scale), weight, out=torch.empty_like(x))

    def add_norm(self, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.add_norm`."""
        return self.norm(x.add_(y), weight, eps)

    def rotate_and_store(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, rows: Tensor, keys: Tensor, values: Tensor
    ) -> None:
        """See `Ops.rotate_and_store`."""
        width = keys.shape[1]
        turned = qkv.shape[1] - width
        rotate(qkv[:, :turned].view(qkv.shape[0], -1, cos.shape[-1]), cos, sin)
        keys.index_copy_(0, rows, qkv[:, turned - width : turned])
        values.index_copy_(0, rows, qkv[:, turned:])

    def gate(self, gate_up: Tensor) -> Tensor:
        """See `Ops.gate`."""
        gate, up = gate_up.chunk(2, 1)
        return functional.silu(gate).mul_(up)
