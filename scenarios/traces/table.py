"""TraceTable: the requests of a trace as columns, in the order of its file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from loratory.scenarios.traces.blocks import Blocks
from loratory.serving.workload import Floats, Ints


@dataclass(frozen=True, slots=True)
class Labels:
    """A column of names: ``codes`` index ``names``; -1 is none (for an adapter: the base model)."""

    codes: Ints
    names: tuple[str, ...]

    def take(self, index: npt.NDArray[Any]) -> Labels:
        """The rows at ``index``; the names stay."""
        return Labels(self.codes[index], self.names)


UNSET = int(np.iinfo(np.int64).min)
"""In a column of priorities or max_tokens: the row has none."""


@dataclass(frozen=True, slots=True)
class TraceTable:
    """The requests of a trace, one column per quantity; a column that it does not have is None.

    ``time_s``: arrival, seconds from the earliest row; NaN for a row with a ``delay_s``. ``prompt``, ``output``,
    ``cached``: tokens. ``session``: rows of one session are its turns, in this order. ``delay_s``: seconds between the
    end of the turn before (the row before of the same session) and this one; NaN for a row that does not wait.
    A row with neither begins a session of a trace without times (``time_s`` is None); arrivals are given elsewhere.
    ``priority``: lower first; ``max_tokens``: most output tokens that the client allows; `UNSET` for a row without one.
    ``deadline_s``: seconds from arrival to the deadline; inf for a row without one. ``blocks``: hash ids of the
    prompt's blocks. ``columns``: pairs of a quantity and the file's column that holds it. ``time_unit``: of its times,
    None if they are dates.
    ``unread``: the file's other columns.
    ``rows_read`` counts the file's rows, ``notes`` describes rows that were left out or changed. ``cut``: the
    reader itself applied the window and the rate scale.
    """

    format: str
    rows_read: int
    time_s: Floats | None = None
    prompt: Ints | None = None
    output: Ints | None = None
    cached: Ints | None = None
    adapter: Labels | None = None
    client: Labels | None = None
    tenant: Labels | None = None
    session: Labels | None = None
    delay_s: Floats | None = None
    priority: Ints | None = None
    max_tokens: Ints | None = None
    deadline_s: Floats | None = None
    blocks: Blocks | None = None
    columns: tuple[tuple[str, str], ...] = ()
    time_unit: str | None = None
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    cut: bool = False

    def __len__(self) -> int:
        for item in fields(self):
            column = getattr(self, item.name)
            if isinstance(column, Labels):
                return len(column.codes)
            if isinstance(column, Blocks):
                return len(column.ids)
            if isinstance(column, np.ndarray):
                return len(column)
        return 0

    def take(self, index: npt.NDArray[Any], *notes: str) -> TraceTable:
        """The rows at ``index`` (positions or a mask), with ``notes`` added."""
        columns: dict[str, Any] = {}
        for item in fields(self):
            column = getattr(self, item.name)
            if isinstance(column, Labels | Blocks):
                columns[item.name] = column.take(index)
            elif isinstance(column, np.ndarray):
                columns[item.name] = column[index]
        return replace(self, **columns, notes=(*self.notes, *notes))

    def with_times(self, time_s: Floats | None, delay_s: Floats | None) -> TraceTable:
        """The same rows at other times; no delays at all are None."""
        waits = delay_s is not None and bool((~np.isnan(delay_s)).any())
        return replace(self, time_s=time_s, delay_s=delay_s if waits else None)

    def noted(self, *notes: str) -> TraceTable:
        """The same rows with ``notes`` added."""
        return replace(self, notes=(*self.notes, *notes))
