"""Batch: one flattened forward pass over decode tokens and prefill chunks, without padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """One sequence's prefill chunk: rows ``row`` to ``row + tokens - 1``, after ``start`` tokens in the KV cache."""

    row: int
    tokens: int
    start: int


@dataclass(frozen=True, slots=True)
class Batch:
    """T rows, one a token: the first ``decodes`` rows are decoding sequences, then come the chunks in order.

    ``token_ids``, ``positions``: (T,) int64. ``slots``: (T,) int64, the LoRA slot of each row, -1 for the base model.
    ``block_tables``: (sequences, blocks) int64, one row a decoding sequence and then one a chunk, padded with 0; KV
    token p of a sequence lies in block ``table[p // block_size]`` at offset ``p % block_size``. ``kv_lengths``: for the
    same sequences, tokens in the cache once this pass has written its own. ``sample_rows``: (S,) int64, ascending, the
    rows whose logits are wanted.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    decodes: int
    chunks: tuple[Chunk, ...]
    block_tables: Tensor
    kv_lengths: tuple[int, ...]
    sample_rows: Tensor

    @property
    def rows(self) -> int:
        """Tokens computed: T."""
        return self.token_ids.shape[0]


class LoRA(Protocol):
    """What a model asks for its adapters' part of a linear layer's output.

    ``group`` is ``qkv``, ``o``, ``gate_up`` or ``down``: the fused projections of a layer; or ``head``, of layer 0: the
    output head.
    """

    def begin(self, slots: Tensor) -> None:
        """Choose how to compute the next rows, whose LoRA slots are ``slots`` (T,); see `Batch.slots`."""

    def add(self, y: Tensor, x: Tensor, layer: int, group: str) -> None:
        """Add each row's adapter's delta to ``y`` (T, out) in place, from the layer's input ``x`` (T, in)."""
