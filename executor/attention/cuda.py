"""Attention on CUDA: a Triton split-KV kernel over pages for decoding, scaled_dot_product_attention for chunks.

The kernels also run in Triton's interpreter on CPU tensors (TRITON_INTERPRET=1), where the tests check them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from loratory.executor.batch import Batch, Chunk
from loratory.executor.kv_cache import KVCache

SPLIT_TOKENS = 512
"""Keys that one program reads at least, so that a split is worth the pass that joins the splits."""

TARGET_PROGRAMS = 512
"""Programs that keep a large GPU busy (an H200 has 132 multiprocessors): more splits than this gain nothing."""


@triton.jit  # type: ignore[untyped-decorator]
def _split_kernel(  # type: ignore[no-untyped-def]
    q,
    keys,
    values,
    tables,
    positions,
    partial,
    sums,
    scale,
    q_stride,
    table_stride,
    split_pages,
    kv_heads: tl.constexpr,
    share: tl.constexpr,
    rows: tl.constexpr,
    dims: tl.constexpr,
    page: tl.constexpr,
    dim_block: tl.constexpr,
    tile: tl.constexpr,
    operand: tl.constexpr,
):
    """One (sequence, key-value head, split): softmax over the split's keys, unnormalised output, maximum and sum.

    Online softmax in base 2. Query heads that share a key-value head are the rows of one product; rows pads them to
    what `tl.dot` takes. operand is the dtype of the products' operands: float32 in the interpreter, whose bfloat16
    `tl.dot` is wrong.
    """
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    split = tl.program_id(2)
    splits = tl.num_programs(2)
    length = tl.load(positions + sequence) + 1
    first = split * split_pages * page
    last = tl.minimum(length, first + split_pages * page)
    row = tl.arange(0, rows)
    dim = tl.arange(0, dim_block)
    heads = head * share + row
    inside = (row[:, None] < share) & (dim[None, :] < dims)
    one = tl.load(q + sequence * q_stride + heads[:, None] * dims + dim[None, :], mask=inside, other=0.0)
    top = tl.full([rows], -1.0e38, tl.float32)
    total = tl.zeros([rows], tl.float32)
    mixed = tl.zeros([rows, dim_block], tl.float32)
    for begin in range(first, last, tile):
        token = begin + tl.arange(0, tile)
        here = token < last
        block = tl.load(tables + sequence * table_stride + token // page, mask=here, other=0)
        place = (block * page + token % page) * (kv_heads * dims) + head * dims
        wanted = here[:, None] & (dim[None, :] < dims)
        key = tl.load(keys + place[:, None] + dim[None, :], mask=wanted, other=0.0)
        score = tl.dot(one.to(operand), tl.trans(key).to(operand), input_precision="ieee") * scale
        score = tl.where(here[None, :], score, -1.0e38)
        peak = tl.maximum(top, tl.max(score, 1))
        weight = tl.where(here[None, :], tl.exp2(score - peak[:, None]), 0.0)
        shrink = tl.exp2(top - peak)
        value = tl.load(values + place[:, None] + dim[None, :], mask=wanted, other=0.0)
        product = tl.dot(weight.to(value.dtype).to(operand), value.to(operand), input_precision="ieee")
        mixed = mixed * shrink[:, None] + product
        total = total * shrink + tl.sum(weight, 1)
        top = peak
    place = (sequence * kv_heads * share + heads) * splits + split
    tl.store(partial + place[:, None] * dims + dim[None, :], mixed, mask=inside)
    tl.store(sums + place * 2, top, mask=row < share)
    tl.store(sums + place * 2 + 1, total, mask=row < share)


@triton.jit  # type: ignore[untyped-decorator]
def _join_kernel(  # type: ignore[no-untyped-def]
    partial,
    sums,
    out,
    out_stride,
    splits,
    dims: tl.constexpr,
    dim_block: tl.constexpr,
    split_block: tl.constexpr,
):
    """One (sequence, head): the splits' outputs, weighted by their share of the softmax. Empty splits have sum 0."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    base = (sequence * tl.num_programs(1) + head) * splits
    split = tl.arange(0, split_block)
    dim = tl.arange(0, dim_block)
    there = split < splits
    top = tl.load(sums + (base + split) * 2, mask=there, other=-1.0e38)
    total = tl.load(sums + (base + split) * 2 + 1, mask=there, other=0.0)
    weight = tl.where(there, tl.exp2(top - tl.max(top, 0)), 0.0)
    wanted = there[:, None] & (dim[None, :] < dims)
    part = tl.load(partial + (base + split)[:, None] * dims + dim[None, :], mask=wanted, other=0.0)
    joined = tl.sum(part * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(out + sequence * out_stride + head * dims + dim, joined.to(out.dtype.element_ty), mask=dim < dims)


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, positions: Tensor, out: Tensor, page: int, kv_heads: int
) -> None:
    """Attention of one query token a sequence to its pages, into ``out``.

    ``q``, ``out``: (sequences, heads * head_dim), rows may be strided. ``keys``, ``values``: one layer of a `KVCache`.
    ``tables``: (sequences, blocks) int64. ``positions``: (sequences,) int64, each token's own place. The launch depends
    on shapes alone, so it can be captured in a CUDA graph.
    """
    count, pages = tables.shape
    dim = keys.shape[1] // kv_heads
    heads = q.shape[1] // dim
    splits, split_pages = split(count * kv_heads, pages, page)
    partial = torch.empty(count, heads, splits, dim, dtype=torch.float32, device=q.device)
    sums = torch.empty(count, heads, splits, 2, dtype=torch.float32, device=q.device)
    dim_block = max(16, triton.next_power_of_2(dim))
    _split_kernel[(count, kv_heads, splits)](
        q,
        keys,
        values,
        tables,
        positions,
        partial,
        sums,
        math.log2(math.e) / math.sqrt(dim),
        q.stride(0),
        tables.stride(0),
        split_pages,
        kv_heads=kv_heads,
        share=heads // kv_heads,
        rows=max(16, triton.next_power_of_2(heads // kv_heads)),
        dims=dim,
        page=page,
        dim_block=dim_block,
        tile=64,
        operand=_operand(q),
    )
    _join_kernel[(count, heads)](
        partial,
        sums,
        out,
        out.stride(0),
        splits,
        dims=dim,
        dim_block=dim_block,
        split_block=triton.next_power_of_2(splits),
    )


def split(programs: int, pages: int, page: int) -> tuple[int, int]:
    """(splits, pages in each) of ``programs`` programs that each read ``pages`` pages of ``page`` tokens."""
    most = max(1, pages * page // SPLIT_TOKENS)
    splits = max(1, min(most, TARGET_PROGRAMS // max(1, programs)))
    each = -(-pages // splits)
    return -(-pages // each), each


def _operand(q: Tensor) -> Any:
    """The dtype of `tl.dot`'s operands: float32 where the interpreter runs, which gets 16-bit products wrong."""
    if q.device.type == "cpu":
        return tl.float32
    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[q.dtype]


@dataclass(frozen=True, slots=True)
class _Part:
    """A chunk, and the cache rows of all its sequence's keys if it continues one."""

    row: int
    tokens: int
    rows: Tensor | None


class CUDAAttention:
    """See `loratory.executor.attention.cpu.Attention`. A batch of decodes alone copies nothing between host and
    device."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int) -> None:
        self.heads = heads
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self._batch: Batch | None = None
        self._parts: list[_Part] = []

    def begin(self, batch: Batch, cache: KVCache) -> None:
        """See `loratory.executor.attention.cpu.Attention.begin`."""
        self._batch = batch
        tables = batch.block_tables[batch.decodes :]
        self._parts = [self._part(chunk, table, cache) for chunk, table in zip(batch.chunks, tables, strict=True)]

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor, cache: KVCache) -> Tensor:
        """See `loratory.executor.attention.cpu.Attention.run`."""
        batch = self._batch
        assert batch is not None, "begin comes before run"
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if count := batch.decodes:
            decode_attention(
                q[:count],
                cache.keys[layer],
                cache.values[layer],
                batch.block_tables[:count],
                batch.positions[:count],
                out[:count],
                cache.block_size,
                self.kv_heads,
            )
        for part in self._parts:
            rows = slice(part.row, part.row + part.tokens)
            if part.rows is None:
                keys, values = k[rows], v[rows]
            else:
                keys = cache.keys[layer].index_select(0, part.rows)
                values = cache.values[layer].index_select(0, part.rows)
            query, key, value = (
                one.view(1, one.shape[0], -1, self.head_dim).transpose(1, 2) for one in (q[rows], keys, values)
            )
            # A bias that names its pattern takes the flash kernel, which a tensor of the same pattern does not.
            mask = causal_lower_right(part.tokens, keys.shape[0])
            attended = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, enable_gqa=self.heads != self.kv_heads
            )
            out[rows].view(part.tokens, -1, self.head_dim).copy_(attended[0].transpose(0, 1))
        return out

    def _part(self, chunk: Chunk, table: Tensor, cache: KVCache) -> _Part:
        if not chunk.start:
            return _Part(chunk.row, chunk.tokens, None)
        length = chunk.start + chunk.tokens
        place = torch.arange(length, device=table.device)
        rows = table.index_select(0, place // cache.block_size) * cache.block_size + place % cache.block_size
        return _Part(chunk.row, chunk.tokens, rows)
