"""Attention over the paged KV cache: what a model asks of it, and the CPU's implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from executor.batch import Batch, Chunk
from executor.kv_cache import KVCache

GROUP_COST_BYTES = 700_000
"""Keys and values that could be gathered and read in the time that one more group of decoding sequences takes."""

BUFFER_BYTES = 64_000_000
"""Keys gathered at once, and as much for values, unless one sequence alone has more."""


class Attention(Protocol):
    """Causal attention of a batch's tokens to their sequences: ``begin`` once a batch, ``run`` once a layer."""

    def begin(self, batch: Batch, cache: KVCache) -> None:
        """Lay out the work that is the same in all layers."""

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor, cache: KVCache) -> Tensor:
        """(T, heads * head_dim) from ``q`` of that shape and ``k``, ``v`` (T, kv_heads * head_dim), already written."""


@dataclass(frozen=True, slots=True)
class _Decodes:
    """Decoding sequences computed together: as many as fit, of similar length."""

    rows: Tensor | None
    blocks: Tensor
    mask: Tensor
    sequences: int
    context: int


@dataclass(frozen=True, slots=True)
class _Fresh:
    """Chunks of equal length that begin their sequences, in consecutive rows: plain causal attention."""

    row: int
    chunks: int
    tokens: int


@dataclass(frozen=True, slots=True)
class _Later:
    """A chunk that continues a sequence: earlier keys and values come from the cache."""

    row: int
    tokens: int
    blocks: Tensor
    mask: Tensor


class CPUAttention:
    """Decoding sequences gather their pages into one padded buffer; chunks go through scaled_dot_product_attention.

    A decode step has one query per head and sequence, so per key-value head the products are too small to fill the
    units. With keys gathered as (sequence, context, kv_heads * head_dim), the queries of all heads of a sequence become
    one block-diagonal matrix and both products are one `torch.bmm` over sequences: kv_heads times the multiplications,
    yet 2 to 3 times faster than scaled_dot_product_attention (context 128 to 1024, bfloat16 with AMX and float32) as
    long as the products stay cheaper than reading the keys, which ``wide`` decides.

    Sequences are grouped by length, longest first; a new group begins when padding would cost more than a group.
    """

    def __init__(self, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        self.heads = heads
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.scale = 1.0 / math.sqrt(head_dim)
        self.group_cost_bytes = GROUP_COST_BYTES
        self.wide = heads <= {torch.float32: 16, torch.bfloat16: 64}.get(dtype, 0)
        self._width = kv_heads * head_dim
        self._keys = torch.empty(0, self._width, dtype=dtype)
        self._values = torch.empty(0, self._width, dtype=dtype)
        self._queries = torch.empty(0, dtype=dtype)
        self._decodes: list[_Decodes] = []
        self._fresh: list[_Fresh] = []
        self._later: list[_Later] = []

    def begin(self, batch: Batch, cache: KVCache) -> None:
        """See `Attention.begin`. Buffers grow to what the batch needs and are kept."""
        self._decodes = self._group(batch, cache) if batch.decodes else []
        self._fresh, self._later = [], []
        for index, chunk in enumerate(batch.chunks, batch.decodes):
            if chunk.start:
                self._later.append(self._continue(chunk, batch.block_tables[index], cache))
            elif (
                (last := self._fresh[-1] if self._fresh else None)
                and last.tokens == chunk.tokens
                and (last.row + last.chunks * last.tokens == chunk.row)
            ):
                self._fresh[-1] = _Fresh(last.row, last.chunks + 1, last.tokens)
            else:
                self._fresh.append(_Fresh(chunk.row, 1, chunk.tokens))
        rows = [group.sequences * group.context for group in self._decodes]
        rows += [part.blocks.shape[0] * cache.block_size for part in self._later]
        if (need := max(rows, default=0)) > self._keys.shape[0]:
            self._keys = self._keys.new_empty(need, self._width)
            self._values = self._values.new_empty(need, self._width)
        if self.wide and batch.decodes:
            widest = max(group.sequences for group in self._decodes)
            if widest * self.heads * self._width > self._queries.numel():
                self._queries = self._queries.new_zeros(widest * self.heads * self._width)

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor, cache: KVCache) -> Tensor:
        """See `Attention.run`."""
        out = torch.empty(q.shape, dtype=q.dtype)
        for group in self._decodes:
            self._decode(group, layer, q, out, cache)
        for fresh in self._fresh:
            self._begin_sequences(fresh, q, k, v, out)
        for later in self._later:
            self._continue_sequence(later, layer, q, out, cache)
        return out

    def _gather(self, layer: int, blocks: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
        """Keys and values of ``blocks``, one after the other, each (tokens, kv_heads * head_dim)."""
        count, page = blocks.shape[0], cache.block_size * self._width
        keys, values = self._keys[: count * cache.block_size], self._values[: count * cache.block_size]
        torch.index_select(cache.keys[layer].view(-1, page), 0, blocks, out=keys.view(count, page))
        torch.index_select(cache.values[layer].view(-1, page), 0, blocks, out=values.view(count, page))
        return keys, values

    def _decode(self, group: _Decodes, layer: int, q: Tensor, out: Tensor, cache: KVCache) -> None:
        count, context, heads, dim = group.sequences, group.context, self.kv_heads, self.head_dim
        share = self.heads // heads
        keys, values = self._gather(layer, group.blocks, cache)
        one = q[:count] if group.rows is None else q.index_select(0, group.rows)
        one = one.view(count, heads, share, dim)
        if self.wide:
            keys, values = keys.view(count, context, -1), values.view(count, context, -1)
            queries = self._queries[: count * self.heads * self._width]
            blocks = queries.view(count, heads, share, heads, dim).diagonal(dim1=1, dim2=3)
            blocks.copy_(one.permute(0, 2, 3, 1))
            scores = torch.baddbmm(
                group.mask, queries.view(count, self.heads, self._width), keys.transpose(1, 2), alpha=self.scale
            )
            mixed = torch.bmm(torch.softmax(scores, -1), values).view(count, heads, share, heads, dim)
            found = mixed.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
        else:
            keys = keys.view(count, context, heads, dim).transpose(1, 2)
            values = values.view(count, context, heads, dim).transpose(1, 2)
            mask = group.mask.unsqueeze(1)
            found = functional.scaled_dot_product_attention(one, keys, values, attn_mask=mask, scale=self.scale)
        if group.rows is None:
            out[:count].view(count, heads, share, dim).copy_(found)
        else:
            out.index_copy_(0, group.rows, found.reshape(count, -1))

    def _begin_sequences(self, fresh: _Fresh, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        end = fresh.row + fresh.chunks * fresh.tokens
        query, key, value = (
            part[fresh.row : end].view(fresh.chunks, fresh.tokens, -1, self.head_dim).transpose(1, 2)
            for part in (q, k, v)
        )
        found = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.scale, enable_gqa=True
        )
        out[fresh.row : end].view(fresh.chunks, fresh.tokens, self.heads, self.head_dim).copy_(found.transpose(1, 2))

    def _continue_sequence(self, later: _Later, layer: int, q: Tensor, out: Tensor, cache: KVCache) -> None:
        context = later.mask.shape[1]
        keys, values = (
            part[:context].view(1, context, self.kv_heads, self.head_dim).transpose(1, 2)
            for part in self._gather(layer, later.blocks, cache)
        )
        rows = slice(later.row, later.row + later.tokens)
        one = q[rows].view(1, later.tokens, self.heads, self.head_dim).transpose(1, 2)
        found = functional.scaled_dot_product_attention(
            one, keys, values, attn_mask=later.mask, scale=self.scale, enable_gqa=True
        )
        out[rows].view(1, later.tokens, self.heads, self.head_dim).copy_(found.transpose(1, 2))

    def _continue(self, chunk: Chunk, table: Tensor, cache: KVCache) -> _Later:
        length = chunk.start + chunk.tokens
        queries = torch.arange(chunk.start, length).unsqueeze(1)
        mask = torch.zeros(chunk.tokens, length, dtype=self._keys.dtype)
        mask.masked_fill_(torch.arange(length) > queries, -torch.inf)
        return _Later(chunk.row, chunk.tokens, table[: -(-length // cache.block_size)], mask)

    def _group(self, batch: Batch, cache: KVCache) -> list[_Decodes]:
        size, token_bytes = cache.block_size, self._width * self._keys.element_size()
        lengths = batch.kv_lengths[: batch.decodes]
        parts = length_groups(lengths, self.group_cost_bytes // (2 * token_bytes), BUFFER_BYTES // token_bytes)
        groups = []
        for part in parts:
            rows = None if len(parts) == 1 else torch.tensor(part)
            length = torch.tensor([lengths[row] for row in part])
            pages = -(-max(lengths[row] for row in part) // size)
            tables = batch.block_tables[: batch.decodes] if rows is None else batch.block_tables.index_select(0, rows)
            tables = tables[:, :pages]
            # A page past a sequence's end is one of its own: what another sequence wrote must not reach it, not even
            # multiplied by 0, which leaves NaN.
            tables = torch.where(torch.arange(pages) * size < length.unsqueeze(1), tables, tables[:, :1])
            mask = torch.zeros(len(part), 1, pages * size, dtype=self._keys.dtype)
            mask.masked_fill_(torch.arange(pages * size) >= length.view(-1, 1, 1), -torch.inf)
            groups.append(_Decodes(rows, tables.reshape(-1), mask, len(part), pages * size))
        return groups


def length_groups(lengths: Sequence[int], cost_tokens: int, buffer_tokens: int) -> list[list[int]]:
    """Indices of ``lengths`` in groups, each padded to its longest; a batch that makes one group keeps its order.

    A group ends when its padding would exceed ``cost_tokens``, or its padded size ``buffer_tokens``.
    """
    longest = max(lengths)
    if len(lengths) * longest - sum(lengths) <= cost_tokens and len(lengths) * longest <= buffer_tokens:
        return [list(range(len(lengths)))]
    groups: list[list[int]] = []
    padding = longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        padding += longest - lengths[index]
        if not groups or padding > cost_tokens or (len(groups[-1]) + 1) * longest > buffer_tokens:
            groups.append([])
            padding, longest = 0, lengths[index]
        groups[-1].append(index)
    return groups
