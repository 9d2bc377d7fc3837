"""TraceTable: the requests of a trace as columns, in the order of its file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.workload import Floats, Ints


@dataclass(frozen=True, slots=True)
class Labels:
    """A column of names: ``codes`` index ``names``; -1 is none (for an adapter: the base model)."""

    codes: Ints
    names: tuple[str, ...]

    def take(self, index: npt.NDArray[Any]) -> Labels:
        """The rows at ``index``; the names stay."""
        return Labels(self.codes[index], self.names)


@dataclass(frozen=True, slots=True)
class TraceTable:
    """What a trace says of each request; a column it does not have is None.

    ``time_s``: arrival, seconds from the earliest row. ``prompt``, ``output``, ``cached``: tokens. ``rows_read`` counts
    the file's rows, ``notes`` says what became of those that are not here or have changed. ``cut`` tells that the
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
    notes: tuple[str, ...] = field(default=())
    cut: bool = False

    def __len__(self) -> int:
        for item in fields(self):
            column = getattr(self, item.name)
            if isinstance(column, Labels):
                return len(column.codes)
            if isinstance(column, np.ndarray):
                return len(column)
        return 0

    def take(self, index: npt.NDArray[Any], *notes: str) -> TraceTable:
        """The rows at ``index`` (positions or a mask), with ``notes`` added."""
        columns: dict[str, Any] = {}
        for item in fields(self):
            column = getattr(self, item.name)
            if isinstance(column, Labels):
                columns[item.name] = column.take(index)
            elif isinstance(column, np.ndarray):
                columns[item.name] = column[index]
        return replace(self, **columns, notes=(*self.notes, *notes))

    def noted(self, *notes: str) -> TraceTable:
        """The same rows with ``notes`` added."""
        return replace(self, notes=(*self.notes, *notes))


def unsorted_rows(table: TraceTable) -> int:
    """How many rows are earlier than the row before them."""
    return 0 if table.time_s is None else int((np.diff(table.time_s) < 0).sum())


def zero_rows(table: TraceTable) -> npt.NDArray[np.bool_]:
    """Which rows have no prompt or no output tokens."""
    mask = np.zeros(len(table), dtype=np.bool_)
    for column in (table.prompt, table.output):
        if column is not None:
            mask |= column < 1
    return mask


def clean(
    table: TraceTable,
    *,
    zero_tokens: str = "drop",
    window: tuple[float, float] | None = None,
    rate_scale: float = 1.0,
) -> TraceTable:
    """The rows to replay: in time order, with tokens, inside ``window`` (s), times from 0, divided by ``rate_scale``.

    Every class of rows dropped or changed adds a note with its number.
    """
    if table.time_s is not None and (late := unsorted_rows(table)):
        order = np.argsort(table.time_s, kind="stable")
        table = table.take(order, f"sorted by time; rows that were earlier than the row before them: {late}")
    empty = zero_rows(table)
    if empty.any() and zero_tokens == "drop":
        table = table.take(~empty, f"rows left out (no prompt or no output tokens): {int(empty.sum())}")
    elif empty.any():
        prompt = None if table.prompt is None else np.maximum(table.prompt, 1)
        output = None if table.output is None else np.maximum(table.output, 1)
        table = replace(table, prompt=prompt, output=output)
        table = table.noted(f"rows changed (no prompt or no output tokens; counted as 1): {int(empty.sum())}")
    if table.time_s is None or table.cut:
        return table
    start = 0.0
    if window is not None:
        start, end = window
        inside = (table.time_s >= start) & (table.time_s < end)
        if not inside.all():
            table = table.take(
                inside, f"rows left out (outside the window [{start:g}, {end:g}) s): {int((~inside).sum())}"
            )
    assert table.time_s is not None
    return replace(table, time_s=(table.time_s - start) / rate_scale)
