"""Generic: any CSV, JSON Lines or Parquet of requests, its columns named in the scenario or by their usual names."""

from __future__ import annotations

from pathlib import Path

from loratory.scenarios.traces.format import Format, Head, ReadOptions
from loratory.scenarios.traces.layout import USUAL, Layout, folded
from loratory.scenarios.traces.rows import read_rows
from loratory.scenarios.traces.table import TraceTable


def read(path: Path, options: ReadOptions) -> TraceTable:
    """The requests of a file with one column per quantity.

    The scenario gives times or lengths that the file does not have. Raises `InputError` for a missing column, or a file
    in which no column is recognised.
    """
    return read_rows(path, options, Layout("generic", guess=True))


def _recognise(head: Head) -> bool:
    columns = {folded(name) for name in head.columns}
    return any(columns & set(map(folded, USUAL[key])) for key in ("time", "input", "output", "adapter"))


FORMAT = Format(
    "generic",
    "any CSV, JSON Lines or Parquet with one column per quantity: time, input, output, adapter, ...",
    _recognise,
    read,
)
