"""KVCache: keys and values of all sequences, in preallocated pages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loratory.executor.batch import Batch
from loratory.executor.device_memory import allocate


class KVCache:
    """``num_blocks`` blocks of ``block_size`` tokens, for each layer a tensor of keys and one of values.

    ``keys[layer]``, ``values[layer]``: (num_blocks * block_size, kv_heads * head_dim); token p of a sequence lies in
    row ``table[p // block_size] * block_size + p % block_size``. Raises `InputError` when the memory is not there.
    """

    __slots__ = ("block_size", "device", "dtype", "head_dim", "keys", "kv_heads", "num_blocks", "values")

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.dtype = dtype
        self.device = device
        shape = (layers, num_blocks * block_size, kv_heads * head_dim)
        what, remedy = f"a KV cache of {num_blocks} blocks of {block_size} tokens", "lower num_gpu_blocks"
        self.keys = tuple(allocate(shape, dtype, device, what, remedy).unbind(0))
        self.values = tuple(allocate(shape, dtype, device, what, remedy).unbind(0))

    @property
    def bytes(self) -> int:
        """Bytes of all pages."""
        return 2 * len(self.keys) * self.keys[0].nbytes

    def rows(self, batch: Batch) -> Tensor:
        """(T,) int64: the row of the cache that each token of ``batch`` is written to."""
        size = self.block_size
        decodes, tables, positions = batch.decodes, batch.block_tables, batch.positions
        pages = positions // size
        blocks = tables[:decodes].gather(1, pages[:decodes].unsqueeze(1)).squeeze(1)
        if batch.chunks:
            parts = [blocks]
            for index, chunk in enumerate(batch.chunks, decodes):
                parts.append(tables[index].index_select(0, pages[chunk.row : chunk.row + chunk.tokens]))
            blocks = torch.cat(parts)
        return blocks * size + positions % size

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero ``blocks``. For those of a sequence whose adapter gave NaN: even a masked NaN spoils a product."""
        size = self.block_size
        for pages in (*self.keys, *self.values):
            for block in blocks:
                pages[block * size : (block + 1) * size].zero_()
