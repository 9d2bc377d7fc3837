"""CPUAttention: attention over the paged KV cache; Attention: the interface that a model calls."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from loratory.executor.attention.decode import Decode, Heads
from loratory.executor.attention.decode_gathered import GatheredDecode, PageBuffers
from loratory.executor.attention.decode_in_place import MOST_SHARED, InPlaceDecode
from loratory.executor.batch import Batch, Chunk
from loratory.executor.kv_cache import KVCache


class Attention(Protocol):
    """Causal attention of a batch's tokens to their sequences: ``begin`` once a batch, ``run`` once a layer."""

    def begin(self, batch: Batch, cache: KVCache) -> None:
        """Lay out the work that is the same in all layers."""

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor, cache: KVCache) -> Tensor:
        """(T, heads * head_dim) from ``q`` of that shape and ``k``, ``v`` (T, kv_heads * head_dim), already written."""


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
    """Decoding sequences by `loratory.executor.attention.decode`; chunks by scaled_dot_product_attention.

    Chunks that begin a sequence use their own keys and values; others gather the whole sequence from its pages.
    """

    def __init__(self, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        self.heads = Heads(heads, kv_heads, head_dim)
        self.decode = faster_decode(self.heads, dtype)
        self._gathered = PageBuffers(self.heads, dtype)
        self._count = 0
        self._fresh: list[_Fresh] = []
        self._later: list[_Later] = []

    def begin(self, batch: Batch, cache: KVCache) -> None:
        """See `Attention.begin`. Buffers grow to what the batch needs and are kept."""
        self._fresh, self._later = [], []
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
        self._gathered.reserve(max((part.blocks.shape[0] * cache.block_size for part in self._later), default=0))
        if batch.decodes:
            self.decode.begin(batch, cache)

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor, cache: KVCache) -> Tensor:
        """See `Attention.run`."""
        out = torch.empty(q.shape, dtype=q.dtype)
        if self._count:
            self.decode.run(q[: self._count], out[: self._count], cache.keys[layer], cache.values[layer])
        for fresh in self._fresh:
            self._begin_sequences(fresh, q, k, v, out)
        for later in self._later:
            self._continue_sequence(later, q, out, cache.keys[layer], cache.values[layer])
        return out

    def _begin_sequences(self, fresh: _Fresh, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        end = fresh.row + fresh.chunks * fresh.tokens
        heads = self.heads
        query, key, value = (
            part[fresh.row : end].view(fresh.chunks, fresh.tokens, -1, heads.head_dim).transpose(1, 2)
            for part in (q, k, v)
        )
        attended = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=heads.scale, enable_gqa=True
        )
        out[fresh.row : end].view(fresh.chunks, fresh.tokens, heads.heads, -1).copy_(attended.transpose(1, 2))

    def _continue_sequence(self, later: _Later, q: Tensor, out: Tensor, keys: Tensor, values: Tensor) -> None:
        blocks, context, heads = later.blocks, later.mask.shape[1], self.heads
        pages = self._gathered.pages(1, blocks.shape[0], later.size)
        pages.gather(keys, values, blocks)
        rows = slice(later.row, later.row + later.tokens)
        query = q[rows].view(1, later.tokens, heads.heads, -1).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(
            query, pages.keys[:, :, :context], pages.values[:, :, :context], later.mask, scale=heads.scale,
            enable_gqa=True,
        )  # fmt: skip
        out[rows].view(1, later.tokens, heads.heads, -1).copy_(attended.transpose(1, 2))

    def _continue(self, chunk: Chunk, table: Tensor, cache: KVCache) -> _Later:
        length = chunk.start + chunk.tokens
        queries = torch.arange(chunk.start, length).unsqueeze(1)
        mask = torch.zeros(chunk.tokens, length, dtype=self._gathered.dtype)
        mask.masked_fill_(torch.arange(length) > queries, -torch.inf)
        return _Later(chunk.row, chunk.tokens, table[: -(-length // cache.block_size)], mask, cache.block_size)


def faster_decode(heads: Heads, dtype: torch.dtype) -> Decode:
    """The faster `Decode` for these heads in ``dtype`` (bench/decode_attention.py) that this PyTorch supports."""
    if dtype == torch.float32 and heads.shared <= MOST_SHARED:
        with contextlib.suppress(RuntimeError):
            return InPlaceDecode(heads)
    return GatheredDecode(heads, dtype)
