"""Clean: the rows of a trace that are replayed, and a note on every class of rows that is left out or changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from loratory.scenarios.traces.sessions import earliest_s, without
from loratory.scenarios.traces.table import TraceTable


def unsorted_rows(table: TraceTable) -> int:
    """How many rows with a time are earlier than the one before them."""
    return 0 if table.time_s is None else int((np.diff(table.time_s[~np.isnan(table.time_s)]) < 0).sum())


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

    A row that waits for the turn before it is placed as if no turn took any time; delays are not scaled. A note counts
    each class of rows that was dropped or changed.
    """
    if table.time_s is not None:
        late = unsorted_rows(table)
        notes = [f"sorted by time; rows that were earlier than the row before them: {late}"] if late else []
        if late or table.delay_s is not None:
            table = table.take(np.argsort(earliest_s(table), kind="stable"), *notes)
    empty = zero_rows(table)
    if empty.any() and zero_tokens == "drop":
        table = without(table, ~empty, f"rows left out (no prompt or no output tokens): {int(empty.sum())}")
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
        time = earliest_s(table)
        inside = (time >= start) & (time < end)
        if not inside.all():
            note = f"rows left out (outside the window [{start:g}, {end:g}) s): {int((~inside).sum())}"
            table = without(table, inside, note)
    assert table.time_s is not None
    return replace(table, time_s=(table.time_s - start) / rate_scale)
