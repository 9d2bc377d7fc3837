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

GROUP_COST_BYTES = 400_000
"""Keys and values that are gathered and read in the time that one more group of decoding sequences takes."""

GROUP_BYTES = 1_000_000
"""Keys and values a core gathers at once, so that they are still in its second-level cache when they are read."""


class Attention(Protocol):
    """Causal attention of a batch's tokens to their sequences: ``begin`` once a batch, ``run`` once a layer."""

    def begin(self, batch: Batch, cache: KVCache) -> None:
        """Lay out the work that is the same in all layers."""

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor, cache: KVCache) -> Tensor:
        """(T, heads * head_dim) from ``q`` of that shape and ``k``, ``v`` (T, kv_heads * head_dim), already written."""


@dataclass(frozen=True, slots=True)
class _Decodes:
    """Decoding sequences ``begin`` to ``end`` of the order chosen: their pages, and where they are gathered.

    ``flat``: the buffers as pages; ``heads``: as (sequences, kv_heads, context, head_dim), which attention reads.
    """

    begin: int
    end: int
    blocks: Tensor
    mask: Tensor
    flat: tuple[Tensor, Tensor]
    heads: tuple[Tensor, Tensor]


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
    size: int


class CPUAttention:
    """scaled_dot_product_attention over keys and values gathered from their pages.

    A decode step has one query a head; the query heads that share a key-value head are given as the queries of one
    head, so that its keys are read once. Sequences are taken in groups of similar length, longest first, each padded to
    its longest. A group ends when its keys and values would outgrow the cores' caches, or when padding would cost more
    than another group. Chunks that begin a sequence use their own keys; others gather the whole sequence.
    """

    def __init__(self, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        self.heads = heads
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.scale = 1.0 / math.sqrt(head_dim)
        self.group_cost_bytes = GROUP_COST_BYTES
        self.group_bytes = GROUP_BYTES * torch.get_num_threads()
        self._width = kv_heads * head_dim
        self._keys = torch.empty(0, self._width, dtype=dtype)
        self._values = torch.empty(0, self._width, dtype=dtype)
        self._order: Tensor | None = None
        self._count = 0
        self._decodes: list[_Decodes] = []
        self._fresh: list[_Fresh] = []
        self._later: list[_Later] = []

    def begin(self, batch: Batch, cache: KVCache) -> None:
        """See `Attention.begin`. Buffers grow to what the batch needs and are kept."""
        self._fresh, self._later, self._decodes = [], [], []
        self._count = batch.decodes
        for index, chunk in enumerate(batch.chunks, batch.decodes):
            if chunk.start:
                self._later.append(self._continue(chunk, batch.block_tables[index], cache))
                continue
            last = self._fresh[-1] if self._fresh else None
            if last and last.tokens == chunk.tokens and last.row + last.chunks * last.tokens == chunk.row:
                self._fresh[-1] = _Fresh(last.row, last.chunks + 1, last.tokens)
            else:
                self._fresh.append(_Fresh(chunk.row, 1, chunk.tokens))
        self._reserve(max((part.blocks.shape[0] * cache.block_size for part in self._later), default=0))
        if batch.decodes:
            self._group(batch, cache.block_size)

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor, cache: KVCache) -> Tensor:
        """See `Attention.run`."""
        out = torch.empty(q.shape, dtype=q.dtype)
        if self._decodes:
            self._decode(q[: self._count], out[: self._count], cache.keys[layer], cache.values[layer])
        for fresh in self._fresh:
            self._begin_sequences(fresh, q, k, v, out)
        for later in self._later:
            self._continue_sequence(later, q, out, cache.keys[layer], cache.values[layer])
        return out

    def _decode(self, q: Tensor, out: Tensor, keys: Tensor, values: Tensor) -> None:
        """Attention of the decoding sequences' queries ``q`` to one layer of the cache, into ``out``."""
        shape = (self._count, self.kv_heads, self.heads // self.kv_heads, self.head_dim)
        page = self._decodes[0].flat[0].shape[1]
        keys, values = keys.view(-1, page), values.view(-1, page)
        order = self._order
        queries = (q if order is None else q.index_select(0, order)).view(shape)
        found = out.view(shape) if order is None else torch.empty(shape, dtype=q.dtype)
        for group in self._decodes:
            torch.index_select(keys, 0, group.blocks, out=group.flat[0])
            torch.index_select(values, 0, group.blocks, out=group.flat[1])
            part = functional.scaled_dot_product_attention(
                queries[group.begin : group.end], *group.heads, group.mask, scale=self.scale
            )
            found[group.begin : group.end] = part
        if order is not None:
            out.index_copy_(0, order, found.view(self._count, -1))

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

    def _continue_sequence(self, later: _Later, q: Tensor, out: Tensor, keys: Tensor, values: Tensor) -> None:
        blocks, context = later.blocks, later.mask.shape[1]
        flat, (key, value) = self._buffers(1, blocks.shape[0], later.size)
        page = flat[0].shape[1]
        torch.index_select(keys.view(-1, page), 0, blocks, out=flat[0])
        torch.index_select(values.view(-1, page), 0, blocks, out=flat[1])
        rows = slice(later.row, later.row + later.tokens)
        query = q[rows].view(1, later.tokens, self.heads, self.head_dim).transpose(1, 2)
        found = functional.scaled_dot_product_attention(
            query, key[:, :, :context], value[:, :, :context], later.mask, scale=self.scale, enable_gqa=True
        )
        out[rows].view(1, later.tokens, self.heads, self.head_dim).copy_(found.transpose(1, 2))

    def _continue(self, chunk: Chunk, table: Tensor, cache: KVCache) -> _Later:
        length = chunk.start + chunk.tokens
        queries = torch.arange(chunk.start, length).unsqueeze(1)
        mask = torch.zeros(chunk.tokens, length, dtype=self._keys.dtype)
        mask.masked_fill_(torch.arange(length) > queries, -torch.inf)
        return _Later(chunk.row, chunk.tokens, table[: -(-length // cache.block_size)], mask, cache.block_size)

    def _group(self, batch: Batch, size: int) -> None:
        """Lay out the decoding sequences in groups."""
        count, token_bytes = batch.decodes, 2 * self._width * self._keys.element_size()
        lengths = sorted(batch.kv_lengths[:count], reverse=True)
        tables, length = batch.block_tables[:count], torch.tensor(batch.kv_lengths[:count]).unsqueeze(1)
        self._order = None
        if tuple(lengths) != batch.kv_lengths[:count]:
            self._order = length.squeeze(1).argsort(descending=True, stable=True)
            tables, length = tables.index_select(0, self._order), length.index_select(0, self._order)
        # A page past a sequence's end is one of its own: what another sequence wrote must not reach it, not even
        # multiplied by 0, which leaves NaN.
        tables = torch.where(torch.arange(tables.shape[1]) * size < length, tables, tables[:, :1])
        widest = -(-lengths[0] // size) * size
        mask = torch.zeros(count, 1, 1, widest, dtype=self._keys.dtype)
        mask.masked_fill_(torch.arange(widest) >= length.view(-1, 1, 1, 1), -torch.inf)
        groups = length_groups(lengths, size, self.group_cost_bytes // token_bytes, self.group_bytes // token_bytes)
        pages = [-(-lengths[begin] // size) for begin, _ in groups]
        self._reserve(max((end - begin) * count * size for (begin, end), count in zip(groups, pages, strict=True)))
        for (begin, end), wide in zip(groups, pages, strict=True):
            flat, heads = self._buffers(end - begin, wide, size)
            blocks = tables[begin:end, :wide].reshape(-1)
            self._decodes.append(_Decodes(begin, end, blocks, mask[begin:end, :, :, : wide * size], flat, heads))

    def _reserve(self, tokens: int) -> None:
        """Make the buffers hold so many tokens."""
        if tokens > self._keys.shape[0]:
            self._keys = self._keys.new_empty(tokens, self._width)
            self._values = self._values.new_empty(tokens, self._width)

    def _buffers(self, sequences: int, pages: int, size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Views of the buffers: as pages of ``size`` tokens, and as (sequences, kv_heads, tokens, head_dim)."""
        keys, values = self._keys[: sequences * pages * size], self._values[: sequences * pages * size]
        shape = (sequences, pages * size, self.kv_heads, self.head_dim)
        flat = keys.view(-1, size * self._width), values.view(-1, size * self._width)
        return flat, (keys.view(shape).transpose(1, 2), values.view(shape).transpose(1, 2))


def length_groups(lengths: Sequence[int], page: int, cost_tokens: int, most_tokens: int) -> list[tuple[int, int]]:
    """(begin, end) of groups of descending ``lengths``, each padded to the pages of its first.

    A group ends before its padding exceeds ``cost_tokens``, or its padded size ``most_tokens``; it has at least one.
    """
    groups: list[tuple[int, int]] = []
    begin = padding = 0
    for index, length in enumerate(lengths):
        longest = -(-lengths[begin] // page) * page
        padding += longest - length
        if index > begin and (padding > cost_tokens or (index - begin + 1) * longest > most_tokens):
            groups.append((begin, index))
            begin, padding = index, -(-length // page) * page - length
    groups.append((begin, len(lengths)))
    return groups
