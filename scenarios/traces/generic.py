"""Generic: any CSV, JSON Lines or Parquet of requests, its columns named in the scenario or by their usual names."""

from __future__ import annotations

from pathlib import Path

from loratory.scenarios.traces.format import Format, Head, ReadOptions
from loratory.scenarios.traces.layout import USUAL, Layout, folded
from loratory.scenarios.traces.rows import read_rows
from loratory.scenarios.traces.table import TraceTable


def read(path: Path, options: ReadOptions) -> TraceTable:
    """The requests of a file with a column a quantity.

    Without a time, or without lengths, the scenario has to say them. Raises `InputError` for a column that is not
    there, or a file in which none can be recognised.
    """
    return read_rows(path, options, Layout("generic", guess=True))


def _recognise(head: Head) -> bool:
    columns = {folded(name) for name in head.columns}
    return any(columns & set(map(folded, USUAL[key])) for key in ("time", "input", "output", "adapter"))


FORMAT = Format(
    "generic",
    "any CSV, JSON Lines or Parquet with a column a quantity: time, input, output, adapter, ...",
    _recognise,
    read,
)
