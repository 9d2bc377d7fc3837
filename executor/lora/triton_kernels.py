"""Triton kernels: shrink (x to each row's rank) and expand (back to the layer's output), fused over a group's parts.

A program works on one tile: up to block_m rows of one slot. Tiles without rows, and ranks beyond the slot's own, cost a
load and a return. Shrink splits the input features over splits programs; each writes its partial sum to a place of its
own, and expand adds them in a fixed order, so results do not vary from run to run.

upcast turns operands of products into float32: Triton's interpreter computes bfloat16 products wrongly.
"""

# Triton is untyped, and its operators exist in compiled code alone.
# mypy: disable-error-code="untyped-decorator,operator"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def shrink(
    x: Any,
    a: Any,
    hidden: Any,
    tile_slots: Any,
    tile_rows: Any,
    ranks: Any,
    in_features: int,
    x_row: int,
    a_part: int,
    a_rank: int,
    a_slot: int,
    hidden_rank: int,
    parts: tl.constexpr,
    block_m: tl.constexpr,
    block_r: tl.constexpr,
    block_k: tl.constexpr,
    splits: tl.constexpr,
    upcast: tl.constexpr,
) -> None:
    """hidden[split, tile, part, m, r] = the split's share of x[row(tile, m)] . a[part, r, slot(tile)].

    Grid: (tiles, parts * blocks of ranks, splits). ``hidden``: float32, (splits, tiles, parts, block_m, hidden_rank).
    """
    tile = tl.program_id(0)
    part = tl.program_id(1) % parts
    first_rank = (tl.program_id(1) // parts) * block_r
    split = tl.program_id(2)
    slot = tl.load(tile_slots + tile)
    if slot < 0:
        return
    rank = tl.load(ranks + slot)
    if first_rank >= rank:
        return
    m = tl.arange(0, block_m)
    r = first_rank + tl.arange(0, block_r)
    rows = tl.load(tile_rows + tile * block_m + m)
    x_rows = x + rows.to(tl.int64)[:, None] * x_row
    a_ranks = a + part * a_part + slot.to(tl.int64) * a_slot + r.to(tl.int64)[None, :] * a_rank
    total = tl.zeros((block_m, block_r), dtype=tl.float32)
    for start in range(split * block_k, in_features, splits * block_k):
        k = start + tl.arange(0, block_k)
        inside = k < in_features
        left = tl.load(x_rows + k[None, :], mask=(rows >= 0)[:, None] & inside[None, :], other=0.0)
        right = tl.load(a_ranks + k[:, None], mask=(r < rank)[None, :] & inside[:, None], other=0.0)
        if upcast:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        total += tl.dot(left, right, input_precision="ieee")
    place = (((split * tl.num_programs(0) + tile) * parts + part) * block_m + m[:, None]) * hidden_rank + r[None, :]
    tl.store(hidden + place, total, mask=(r < hidden_rank)[None, :])


@triton.jit
def expand(
    hidden: Any,
    b: Any,
    y: Any,
    tile_slots: Any,
    tile_rows: Any,
    ranks: Any,
    blocks: Any,
    y_row: int,
    b_rank: int,
    b_slot: int,
    hidden_rank: int,
    parts: tl.constexpr,
    block_m: tl.constexpr,
    block_r: tl.constexpr,
    block_n: tl.constexpr,
    splits: tl.constexpr,
    upcast: tl.constexpr,
) -> None:
    """y[row(tile, m), offset + n] += hidden[tile, part, m] . b[:, slot(tile), column + n].

    Grid: (tiles, blocks of columns). ``blocks``: int32, (blocks, 4): part, column in b, offset in y, columns.
    """
    tile = tl.program_id(0)
    block = tl.program_id(1)
    slot = tl.load(tile_slots + tile)
    if slot < 0:
        return
    rank = tl.load(ranks + slot)
    if rank == 0:
        return
    part = tl.load(blocks + block * 4)
    column = tl.load(blocks + block * 4 + 1)
    offset = tl.load(blocks + block * 4 + 2)
    columns = tl.load(blocks + block * 4 + 3)
    m = tl.arange(0, block_m)
    n = tl.arange(0, block_n)
    rows = tl.load(tile_rows + tile * block_m + m)
    total = tl.zeros((block_m, block_n), dtype=tl.float32)
    for first_rank in range(0, rank, block_r):
        r = first_rank + tl.arange(0, block_r)
        left = tl.zeros((block_m, block_r), dtype=tl.float32)
        for split in tl.static_range(splits):
            place = ((split * tl.num_programs(0) + tile) * parts + part) * block_m + m[:, None]
            left += tl.load(hidden + place * hidden_rank + r[None, :], mask=(r < rank)[None, :], other=0.0)
        b_rows = b + slot.to(tl.int64) * b_slot + r.to(tl.int64)[:, None] * b_rank + column
        right = tl.load(b_rows + n[None, :], mask=(r < rank)[:, None] & (n < columns)[None, :], other=0.0)
        left = left.to(right.dtype)
        if upcast:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        total += tl.dot(left, right, input_precision="ieee")
    target = y + rows.to(tl.int64)[:, None] * y_row + offset + n[None, :]
    inside = (rows >= 0)[:, None] & (n < columns)[None, :]
    before = tl.load(target, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, (before + total).to(y.dtype.element_ty), mask=inside)
