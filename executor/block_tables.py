"""BlockTables: which physical KV blocks each sequence has."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class BlockTables:
    """Hands out the ids of ``num_blocks`` blocks of ``block_size`` tokens; the ledger decides how many a sequence has.

    A sequence keeps one row of an int64 table from its first `grow` to `free`. A batch takes the table's rows, so a
    step costs as much as has changed, however many sequences run. More blocks than there are is a bug of Loratory, and
    an assertion.

        _table    row 0 | 7  3  9  0  0 ...      _held [3, 0, 1]: row 0 has three blocks, row 1 is free
                  row 1 | 0  0  0  0  0
                  row 2 | 4  0  0  0  0
        _free     [ 8 6 5 2 1 0 | 3 9 7 4 ]      a stack: ids before _top are free, those behind it stale
                            _top ^

    Blocks are taken from the top of the stack and put back there, so blocks that were used last are used next.
    """

    __slots__ = ("_free", "_free_rows", "_held", "_rows", "_table", "_top", "block_size", "num_blocks")

    def __init__(self, num_blocks: int, block_size: int, max_sequences: int = 256) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free: NDArray[np.int64] = np.arange(num_blocks - 1, -1, -1, dtype=np.int64)
        self._top = num_blocks
        self._table: NDArray[np.int64] = np.zeros((max_sequences, 16), dtype=np.int64)
        self._held: NDArray[np.int64] = np.zeros(max_sequences, dtype=np.int64)
        self._rows: dict[str, int] = {}
        self._free_rows = list(range(max_sequences - 1, -1, -1))

    @property
    def free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return self._top

    @property
    def sequences(self) -> int:
        """Sequences that hold a row."""
        return len(self._rows)

    def grow(self, request_id: str, tokens: int) -> int:
        """Give the sequence blocks for ``tokens`` tokens in all; its row. Never takes blocks away."""
        row = self._rows.get(request_id)
        if row is None:
            row = self._rows[request_id] = self._new_row()
        self._extend(row, -(-tokens // self.block_size))
        return row

    def free(self, request_id: str) -> None:
        """Take back all of a sequence's blocks, and its row; nothing if it has none."""
        row = self._rows.pop(request_id, None)
        if row is None:
            return
        held = int(self._held[row])
        self._free[self._top : self._top + held] = self._table[row, :held][::-1]
        self._top += held
        self._table[row, :held] = 0
        self._held[row] = 0
        self._free_rows.append(row)

    def row(self, request_id: str) -> int:
        """The table row of a sequence that has blocks."""
        return self._rows[request_id]

    def blocks(self, request_id: str) -> tuple[int, ...]:
        """The ids of a sequence's blocks, in the order of its tokens."""
        row = self._rows[request_id]
        return tuple(int(block) for block in self._table[row, : self._held[row]])

    def select(self, rows: NDArray[np.int64]) -> Tensor:
        """(rows, blocks) int64: the tables of these rows, as `loratory.executor.batch.Batch` wants them."""
        width = max(1, int(self._held[rows].max(initial=1)))
        return torch.from_numpy(self._table[rows, :width])

    def _extend(self, row: int, blocks: int) -> None:
        held = int(self._held[row])
        count = blocks - held
        if count <= 0:
            return
        assert count <= self._top, f"{count} KV blocks wanted and {self._top} free: the ledger counts otherwise"
        if blocks > self._table.shape[1]:  # at least double, so that a long sequence copies the table a few times only
            wider = np.zeros((self._table.shape[0], max(blocks, 2 * self._table.shape[1])), dtype=np.int64)
            wider[:, : self._table.shape[1]] = self._table
            self._table = wider
        # Reversed, so that a sequence gets the ids in the order in which single blocks would be popped.
        self._top -= count
        self._table[row, held:blocks] = self._free[self._top : self._top + count][::-1]
        self._held[row] = blocks

    def _new_row(self) -> int:
        if not self._free_rows:
            count = self._table.shape[0]
            self._table = np.concatenate((self._table, np.zeros_like(self._table)))
            self._held = np.concatenate((self._held, np.zeros_like(self._held)))
            self._free_rows = list(range(2 * count - 1, count - 1, -1))
        return self._free_rows.pop()
