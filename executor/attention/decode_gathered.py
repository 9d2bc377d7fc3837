"""GatheredDecode: attention of decoding sequences over keys and values that are copied together from their pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from loratory.executor.attention.decode import Heads, Ordered, length_groups
from loratory.executor.batch import Batch
from loratory.executor.kv_cache import KVCache

GROUP_COST_BYTES = 400_000
"""Bytes of keys and values gathered and read in the time that one more group of decoding sequences takes."""

GROUP_BYTES = 1_000_000
"""Bytes of keys and values a core gathers at once, so that its second-level cache still holds them when read."""


class Pages(NamedTuple):
    """Views of gathered pages: flat, a row a page, and as (sequences, kv_heads, tokens, head_dim)."""

    flat_keys: Tensor
    flat_values: Tensor
    keys: Tensor
    values: Tensor

    def gather(self, keys: Tensor, values: Tensor, blocks: Tensor) -> None:
        """Copy ``blocks`` of a layer's pages here."""
        page = self.flat_keys.shape[1]
        torch.index_select(keys.view(-1, page), 0, blocks, out=self.flat_keys)
        torch.index_select(values.view(-1, page), 0, blocks, out=self.flat_values)


class PageBuffers:
    """Two buffers, for keys and for values. They grow to the largest size reserved and are kept."""

    def __init__(self, heads: Heads, dtype: torch.dtype) -> None:
        self._heads = heads
        self._width = heads.kv_heads * heads.head_dim
        self._keys = torch.empty(0, self._width, dtype=dtype)
        self._values = torch.empty(0, self._width, dtype=dtype)
        self.dtype = dtype
        self.token_bytes = 2 * self._width * dtype.itemsize

    def reserve(self, tokens: int) -> None:
        """Make the buffers hold at least ``tokens`` tokens."""
        if tokens > self._keys.shape[0]:
            self._keys = self._keys.new_empty(tokens, self._width)
            self._values = self._values.new_empty(tokens, self._width)

    def pages(self, sequences: int, pages: int, size: int) -> Pages:
        """Room for ``pages`` pages of ``size`` tokens for each of ``sequences`` sequences."""
        keys, values = self._keys[: sequences * pages * size], self._values[: sequences * pages * size]
        shape = (sequences, pages * size, self._heads.kv_heads, self._heads.head_dim)
        flat = keys.view(-1, size * self._width), values.view(-1, size * self._width)
        return Pages(*flat, keys.view(shape).transpose(1, 2), values.view(shape).transpose(1, 2))


@dataclass(frozen=True, slots=True)
class _Group:
    """Decoding sequences ``begin`` to ``end`` of the order chosen: their blocks, and where they are gathered."""

    begin: int
    end: int
    blocks: Tensor
    mask: Tensor
    pages: Pages


class GatheredDecode:
    """scaled_dot_product_attention over keys and values gathered from their pages.

    The query heads that share a key-value head are given as the queries of one head, so that its keys are read once.
    Sequences are taken in groups of similar length, longest first, each padded to its longest. A group ends when its
    keys and values would outgrow the cores' caches, or when padding would cost more than another group.
    """

    def __init__(self, heads: Heads, dtype: torch.dtype) -> None:
        self.group_cost_bytes = GROUP_COST_BYTES
        self.group_bytes = GROUP_BYTES * torch.get_num_threads()
        self._heads = heads
        self._gathered = PageBuffers(heads, dtype)
        self._order: Tensor | None = None
        self._groups: list[_Group] = []

    def begin(self, batch: Batch, cache: KVCache) -> None:
        """See `Decode.begin`."""
        size, gathered = cache.block_size, self._gathered
        ordered = Ordered.of(batch, size)
        cost, most = (limit // gathered.token_bytes for limit in (self.group_cost_bytes, self.group_bytes))
        groups = length_groups(ordered.lengths, size, cost, most)
        pages = [-(-ordered.lengths[begin] // size) for begin, _ in groups]
        gathered.reserve(max((end - begin) * wide * size for (begin, end), wide in zip(groups, pages, strict=True)))
        past = ordered.past(0, batch.decodes, pages[0] * size)
        mask = torch.zeros(past.shape, dtype=gathered.dtype).masked_fill_(past, -torch.inf)[:, None, None]
        self._order, self._groups = ordered.order, []
        for (begin, end), wide in zip(groups, pages, strict=True):
            blocks = ordered.tables[begin:end, :wide].reshape(-1)
            room = gathered.pages(end - begin, wide, size)
            self._groups.append(_Group(begin, end, blocks, mask[begin:end, :, :, : wide * size], room))

    def run(self, q: Tensor, out: Tensor, keys: Tensor, values: Tensor) -> None:
        """See `Decode.run`."""
        heads, order, count = self._heads, self._order, q.shape[0]
        shape = (count, heads.kv_heads, heads.shared, heads.head_dim)
        queries = (q if order is None else q.index_select(0, order)).view(shape)
        attended = out.view(shape) if order is None else torch.empty(shape, dtype=q.dtype)
        for group in self._groups:
            pages = group.pages
            pages.gather(keys, values, group.blocks)
            part = queries[group.begin : group.end]
            attended[group.begin : group.end] = functional.scaled_dot_product_attention(
                part, pages.keys, pages.values, group.mask, scale=heads.scale
            )
        if order is not None:
            out.index_copy_(0, order, attended.view(count, -1))
