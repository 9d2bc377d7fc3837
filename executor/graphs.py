"""DecodeGraphs: the forward pass over decoding sequences alone, captured in CUDA graphs at padded batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loratory.executor.batch import Batch, LoRA
from loratory.executor.kv_cache import KVCache
from loratory.executor.model import Model

SIZES: tuple[int, ...] = (1, 2, 4, 8, *range(16, 257, 16), *range(288, 1025, 32))
"""Batch sizes captured; vLLM's are similar. A batch is padded to the next of them."""


class DecodeGraphs:
    """Runs batches of at most ``max_seqs`` decode rows through static buffers, with ``pages`` blocks a sequence.

    ``scratch`` is a block of the cache that no sequence has: padded rows write their keys there, as base-model rows of
    one token, and their logits are dropped. A size is captured at its first use, with adapters or without. On a CPU the
    same padded batches are computed without a graph.
    """

    def __init__(self, model: Model, kv: KVCache, lora: LoRA | None, max_seqs: int, pages: int, scratch: int) -> None:
        self._model = model
        self._kv = kv
        self._lora = lora
        self._sizes = [size for size in SIZES if size < max_seqs]
        self._sizes.append(next((size for size in SIZES if size >= max_seqs), max_seqs))
        largest = self._sizes[-1]
        device = model.device
        self._tokens = torch.zeros(largest, dtype=torch.int64, device=device)
        self._positions = torch.zeros(largest, dtype=torch.int64, device=device)
        self._slots = torch.full((largest,), -1, dtype=torch.int64, device=device)
        self._tables = torch.full((largest, pages), scratch, dtype=torch.int64, device=device)
        self._rows = torch.arange(largest, device=device)
        self._scratch = scratch
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool: Any = None

    def covers(self, batch: Batch) -> bool:
        """Whether a batch is decode rows alone, no more and no longer than was prepared for."""
        fits = batch.decodes <= self._sizes[-1] and batch.block_tables.shape[1] <= self._tables.shape[1]
        return not batch.chunks and batch.decodes > 0 and fits

    def forward(self, batch: Batch, adapters: bool) -> Tensor:
        """Logits (decodes, vocab) of a batch that `covers`; ``adapters``: whether any row has one.

        The result is overwritten by the next call for the same size.
        """
        count = batch.decodes
        size = next(size for size in self._sizes if size >= count)
        width = batch.block_tables.shape[1]
        self._tokens[:count].copy_(batch.token_ids)
        self._positions[:count].copy_(batch.positions)
        self._positions[count:size].zero_()
        self._slots[:count].copy_(batch.slots)
        self._slots[count:size].fill_(-1)
        self._tables[:count, :width].copy_(batch.block_tables)
        self._tables[count:size, 0].fill_(self._scratch)
        lengths = (*batch.kv_lengths, *(1,) * (size - count))
        if self._model.device.type != "cuda":
            return self._compute(size, lengths, adapters)[:count]
        key = (size, adapters)
        if key not in self._graphs:
            self._graphs[key] = self._capture(size, lengths, adapters)
        graph, logits = self._graphs[key]
        graph.replay()
        return logits[:count]

    def _compute(self, size: int, lengths: Sequence[int], adapters: bool) -> Tensor:
        batch = Batch(
            token_ids=self._tokens[:size],
            positions=self._positions[:size],
            slots=self._slots[:size],
            decodes=size,
            chunks=(),
            block_tables=self._tables[:size],
            kv_lengths=tuple(lengths),
            sample_rows=self._rows[:size],
        )
        return self._model.forward(batch, self._kv, self._lora if adapters else None)

    def _capture(self, size: int, lengths: Sequence[int], adapters: bool) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Two runs to compile kernels and settle the allocator, then one that is recorded.

        The runs write the very keys that the replay writes again. Loads in other threads go on during the capture.
        """
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                self._compute(size, lengths, adapters)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self._compute(size, lengths, adapters)
        self._pool = self._pool or graph.pool()
        return graph, logits
