"""Forward passes for tests: sequences in a paged cache, and batches of any composition over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from loratory.executor.batch import Batch, Chunk, LoRA
from loratory.executor.block_tables import BlockTables
from loratory.executor.kv_cache import KVCache
from loratory.executor.model import Model


@dataclass
class Passes:
    """A model with a cache of ``blocks`` blocks; ``lengths`` counts the tokens of each sequence in the cache."""

    model: Model
    blocks: int = 64
    block_size: int = 4
    lengths: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cache: KVCache = self.model.new_cache(self.blocks, self.block_size)
        self.tables = BlockTables(self.blocks, self.block_size, max_sequences=2)

    def run(
        self,
        decodes: Mapping[str, int],
        chunks: Mapping[str, Sequence[int]],
        slots: Mapping[str, int] | None = None,
        lora: LoRA | None = None,
    ) -> dict[str, Tensor]:
        """Feed one token to each of ``decodes`` and some to each of ``chunks``; logits (tokens, vocab) of each."""
        batch = self.batch(decodes, chunks, slots or {})
        logits = self.model.forward(batch, self.cache, lora)
        counts = [1] * len(decodes) + [len(tokens) for tokens in chunks.values()]
        return dict(zip([*decodes, *chunks], logits.split(counts), strict=True))  # type: ignore[no-untyped-call]

    def batch(self, decodes: Mapping[str, int], chunks: Mapping[str, Sequence[int]], slots: Mapping[str, int]) -> Batch:
        """The batch of `run`, with every row sampled."""
        tokens: list[int] = list(decodes.values())
        positions = [self.lengths[name] for name in decodes]
        owners = list(decodes)
        parts = []
        for name, some in chunks.items():
            start = self.lengths.setdefault(name, 0)
            parts.append(Chunk(len(tokens), len(some), start))
            tokens += some
            positions += range(start, start + len(some))
            owners += [name] * len(some)
        for name in (*decodes, *chunks):
            self.lengths[name] += len(chunks.get(name, (0,)))
        names = [*decodes, *chunks]
        rows = np.array([self.tables.grow(name, self.lengths[name]) for name in names])
        device = self.model.device
        return Batch(
            token_ids=torch.tensor(tokens, device=device),
            positions=torch.tensor(positions, device=device),
            slots=torch.tensor([slots.get(owner, -1) for owner in owners], device=device),
            decodes=len(decodes),
            chunks=tuple(parts),
            block_tables=self.tables.select(rows).to(device),
            kv_lengths=tuple(self.lengths[name] for name in names),
            sample_rows=torch.arange(len(tokens), device=device),
        )

    def drop(self, name: str) -> None:
        """Forget a sequence; its blocks keep what was written."""
        self.tables.free(name)
        del self.lengths[name]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of ``wanted``."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
