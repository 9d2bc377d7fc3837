"""Rows: which rows of a batch a form computes, as a view where they are adjacent, otherwise as a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loratory.executor.onednn_rows import round_up_coarsely, window


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a batch in the order in which a form takes them: ``start`` to ``stop`` - 1, or those of ``index``.

    ``kept``: rows between ``start`` and ``stop`` that must stay as they are, bit for bit. (Adding a zero is not enough:
    it turns -0 into +0.)
    """

    start: int
    stop: int
    index: Tensor | None = None
    kept: Tensor | None = None

    @classmethod
    def of(cls, rows: Sequence[int]) -> Rows:
        """Exactly these rows; a view where they are consecutive and ascending."""
        start, count = rows[0], len(rows)
        if list(rows) == list(range(start, start + count)):
            return cls(start, start + count)
        return cls(0, count, torch.tensor(rows, dtype=torch.int64))

    @classmethod
    def span(cls, rows: Sequence[int]) -> Rows:
        """Ascending ``rows``, with those between them as ``kept`` where that copies less than gathering."""
        start, stop = rows[0], rows[-1] + 1
        if 2 * len(rows) < stop - start:
            return cls.of(rows)
        between = sorted(set(range(start, stop)).difference(rows))
        return cls(start, stop, None, torch.tensor(between, dtype=torch.int64) if between else None)

    @property
    def count(self) -> int:
        """How many rows `take` gives."""
        return self.stop - self.start

    def places(self, rows: Sequence[int]) -> Tensor:
        """Where the rows this was made of are among those that `take` gives."""
        return torch.arange(self.count) if self.index is not None else torch.tensor(rows) - self.start

    def take(self, batch: Tensor) -> Tensor:
        """These rows of ``batch`` (T, width): a view, or a copy in the order of the index."""
        if self.index is not None:
            return batch.index_select(0, self.index)
        return batch if self.count == batch.shape[0] else batch.narrow(0, self.start, self.count)

    def inputs(self, batch: Tensor) -> tuple[Tensor, int]:
        """These rows of ``batch`` for a product, and where they begin.

        Other rows lie before or after them where `round_up_coarsely` asks for more rows than these.
        """
        if self.index is None:
            return window(batch, self.start, self.count)
        more = round_up_coarsely(self.count, batch.dtype, batch.device) - self.count
        index = torch.cat((self.index, self.index[:1].expand(more))) if more else self.index
        return batch.index_select(0, index), 0

    def keep(self, batch: Tensor) -> Tensor | None:
        """A copy of the ``kept`` rows, for `give`."""
        return None if self.kept is None else batch.index_select(0, self.kept)

    def give(self, batch: Tensor, rows: Tensor, kept: Tensor | None = None) -> None:
        """Puts back what `take` copied, and the ``kept`` rows."""
        if self.index is not None:
            batch.index_copy_(0, self.index, rows)
        elif self.kept is not None and kept is not None:
            batch.index_copy_(0, self.kept, kept)
