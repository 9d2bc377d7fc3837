"""InPlaceDecode: attention of decoding sequences that reads keys and values where they are.

The idea: a layer's keys, as they lie in the cache, are one matrix with a row for each (token, key-value head). A query
needs its product with the rows of its own sequence and head only. That is a product of two dense matrices of which a
few elements are wanted: `torch.sparse.sampled_addmm` computes exactly those that a sparse pattern lists. The weighted
sum of values is what an embedding layer does with the same list: `embedding_bag` adds up listed rows of a table.

                      rows of the cache, two a block, one key-value head
                        0 1   2 3   4 5   6 7
      sequence A, 3     . .   x x   . .   x .      its table is [1, 3]
      sequence B, 2     x x   . .   . .   . .      its table is [0]

Each x is one score. A group's rows of the pattern have equal length: a shorter sequence lists its first token again,
and a mask removes those scores before the softmax.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from loratory.executor.attention.decode import Heads, Ordered, length_groups
from loratory.executor.batch import Batch
from loratory.executor.kv_cache import KVCache

GROUP_COST_TOKENS = 8_000
"""Tokens that one query head reads in place in the time that one more group takes."""

MOST_SHARED = 2
"""Up to this many query heads on one key-value head, reading in place is faster (bench/decode_attention.py)."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """Decoding sequences ``begin`` to ``end`` of the order chosen, and the rows of the cache that they read.

    A row of the cache is one key-value head of one token. ``tokens``: ``longest`` rows for each sequence and query
    head, one after another; ``ends``: where each head's rows end; ``pattern``: a sparse matrix with one row a query
    head that has ``tokens`` as its columns. ``mask`` (sequences, 1, tokens) is added to the scores; None where all
    sequences have the same length.
    """

    begin: int
    end: int
    longest: int
    tokens: Tensor
    ends: Tensor
    pattern: Tensor
    mask: Tensor | None


class InPlaceDecode:
    """Reads keys and values where they are, with operators made for sparse matrices and for embeddings.

    The memory is read once and nothing is copied. Both operators work one query head at a time: where many share a
    key-value head, a product over gathered keys is faster. float32 only. Raises `RuntimeError` where this PyTorch lacks
    the operators.
    """

    def __init__(self, heads: Heads) -> None:
        self.group_cost_tokens = GROUP_COST_TOKENS
        self._heads = heads
        self._order: Tensor | None = None
        self._groups: list[_Listed] = []
        # A product of one number, to learn now whether the operators are there, and to warn about them once.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            ends, token = torch.tensor([0, 1]), torch.tensor([0])
            group = _Listed(0, 1, 1, token, ends, _pattern(ends, token, 1), None)
            self._attend(
                torch.ones(1, heads.head_dim), group, torch.ones(heads.head_dim, 1), torch.ones(1, heads.head_dim)
            )

    def begin(self, batch: Batch, cache: KVCache) -> None:
        """See `Decode.begin`."""
        heads, size = self._heads, cache.block_size
        ordered = Ordered.of(batch, size)
        rows = cache.num_blocks * size * heads.kv_heads
        listed = max(ordered.lengths) * batch.decodes * heads.heads
        kind = torch.int32 if max(rows, listed) < 2**31 else torch.int64  # indices are read as often as keys
        starts = (ordered.tables * (size * heads.kv_heads)).to(kind)
        within = torch.arange(size, dtype=kind) * heads.kv_heads
        head = torch.arange(heads.kv_heads, dtype=kind).view(-1, 1, 1)
        groups = length_groups(ordered.lengths, 1, self.group_cost_tokens // heads.heads, listed)
        self._order, self._groups = ordered.order, []
        for begin, end in groups:
            longest, count = ordered.lengths[begin], (end - begin) * heads.heads
            pages = -(-longest // size)
            # (sequences, longest): the row of each token's first key-value head; `head` then adds the head's own.
            tokens = (starts[begin:end, :pages].unsqueeze(2) + within).view(end - begin, -1)[:, :longest]
            mask = None
            if ordered.lengths[end - 1] < longest:
                past = ordered.past(begin, end, longest)
                tokens = torch.where(past, tokens[:, :1], tokens)
                mask = torch.zeros(past.shape, dtype=torch.float32).masked_fill_(past, -torch.inf).unsqueeze(1)
            tokens = (tokens[:, None, None] + head).expand(-1, -1, heads.shared, -1).reshape(-1)
            ends = torch.arange(0, count * longest + 1, longest, dtype=kind)
            self._groups.append(_Listed(begin, end, longest, tokens, ends, _pattern(ends, tokens, rows), mask))

    def run(self, q: Tensor, out: Tensor, keys: Tensor, values: Tensor) -> None:
        """See `Decode.run`."""
        heads, order = self._heads, self._order
        keys, values = keys.view(-1, heads.head_dim).t(), values.view(-1, heads.head_dim)
        queries = (q if order is None else q.index_select(0, order)).reshape(-1, heads.head_dim)
        parts = [
            self._attend(queries[g.begin * heads.heads : g.end * heads.heads], g, keys, values) for g in self._groups
        ]
        attended = (parts[0] if len(parts) == 1 else torch.cat(parts)).view(out.shape)
        if order is None:
            out.copy_(attended)
        else:
            out.index_copy_(0, order, attended)

    def _attend(self, queries: Tensor, group: _Listed, keys: Tensor, values: Tensor) -> Tensor:
        """(sequences * heads, head_dim) of a group's ``queries`` of that shape."""
        sampled = torch.sparse.sampled_addmm(group.pattern, queries, keys, beta=0.0, alpha=self._heads.scale).values()
        scores = sampled.view(group.end - group.begin, -1, group.longest)
        if group.mask is not None:
            scores.add_(group.mask)
        weights = scores.softmax(-1).view(-1)
        return functional.embedding_bag(
            group.tokens, values, group.ends, mode="sum", per_sample_weights=weights, include_last_offset=True
        )


def _pattern(ends: Tensor, columns: Tensor, width: int) -> Tensor:
    """A sparse matrix of zeros with ``columns`` in its rows, which end at ``ends``."""
    zeros = torch.zeros(columns.shape, dtype=torch.float32)
    return torch.sparse_csr_tensor(ends, columns, zeros, (ends.shape[0] - 1, width), check_invariants=False)
