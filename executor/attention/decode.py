"""Decode: attention of decoding sequences on a CPU, one query a sequence; what its two implementations share.

An engine keeps a sequence's keys and values in pages that lie anywhere in the cache. `GatheredDecode` copies them
together first and then computes dense products; `InPlaceDecode` reads them where they are. Both take sequences of
similar length together (`Ordered`, `length_groups`), so that little padding is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loratory.executor.batch import Batch
from loratory.executor.kv_cache import KVCache


class Decode(Protocol):
    """Attention of a batch's decoding sequences, its first rows: ``begin`` once a batch, ``run`` once a layer."""

    def begin(self, batch: Batch, cache: KVCache) -> None:
        """Lay out the work that is the same in all layers. The batch has at least one decoding sequence."""

    def run(self, q: Tensor, out: Tensor, keys: Tensor, values: Tensor) -> None:
        """Into ``out`` from ``q``, both (decodes, heads * head_dim), and a layer's pages as `KVCache` has them."""


@dataclass(frozen=True, slots=True)
class Heads:
    """``heads`` query heads of ``head_dim`` numbers; ``shared`` of them use one key-value head."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def shared(self) -> int:
        """Query heads on one key-value head."""
        return self.heads // self.kv_heads

    @property
    def scale(self) -> float:
        """What scores are multiplied with."""
        return 1.0 / math.sqrt(self.head_dim)


@dataclass(frozen=True, slots=True)
class Ordered:
    """The decoding sequences by length, longest first. ``order``: their places in the batch; None: the batch's order.

    ``tables``: (sequences, blocks); an entry past a sequence's end is replaced by its first block. Padding thus reads
    the sequence's own numbers: another sequence's could be NaN, and NaN times 0 is NaN. ``column``: ``lengths`` as
    (sequences, 1).
    """

    lengths: list[int]
    column: Tensor
    order: Tensor | None
    tables: Tensor

    @classmethod
    def of(cls, batch: Batch, size: int) -> Ordered:
        """Of a batch's decoding sequences, in blocks of ``size`` tokens."""
        count = batch.decodes
        lengths = sorted(batch.kv_lengths[:count], reverse=True)
        tables, column, order = batch.block_tables[:count], torch.tensor(batch.kv_lengths[:count]).unsqueeze(1), None
        if tuple(lengths) != batch.kv_lengths[:count]:
            order = column.squeeze(1).argsort(descending=True, stable=True)
            tables, column = tables.index_select(0, order), column.index_select(0, order)
        tables = torch.where(torch.arange(tables.shape[1]) * size < column, tables, tables[:, :1])
        return cls(lengths, column, order, tables)

    def past(self, begin: int, end: int, longest: int) -> Tensor:
        """(end - begin, longest) bool: true where a token is past the end of its sequence."""
        return torch.arange(longest) >= self.column[begin:end]


def length_groups(lengths: Sequence[int], page: int, cost_tokens: int, most_tokens: int) -> list[tuple[int, int]]:
    """(begin, end) of groups of descending ``lengths``, each padded to the pages of its first.

    A group ends before its padding exceeds ``cost_tokens``, or its padded size ``most_tokens``; it has at least one.

        lengths   900 880 860 | 310 300 | 40      x are tokens, . is padding
                  xxxxxxxxx     xxx       x
                  xxxxxxxx.     xx.
                  xxxxxxxx.
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
