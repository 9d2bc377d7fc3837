"""Convert: any trace to the generic format, as CSV, JSON Lines or Parquet."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from scenarios.traces.clean import clean
from scenarios.traces.files import kind_of
from scenarios.traces.format import ReadOptions
from scenarios.traces.known import read_trace
from scenarios.traces.table import Labels, TraceTable
from serving.errors import InputError

_SUFFIXES = (".csv", ".jsonl", ".parquet")


def convert(
    path: Path | str, out: Path | str, format: str | None = None, options: ReadOptions | None = None
) -> TraceTable:
    """Write a trace as ``timestamp_s,input_tokens,output_tokens`` and whichever of adapter, client, tenant it has.

    Rows are in time order; rows without tokens are left out and counted in the notes of the table returned. ``out``
    ends in .csv, .jsonl or .parquet and is replaced as a whole. Raises `InputError` for another ending, or a file that
    cannot be read or written.
    """
    target = Path(out)
    if target.suffix not in _SUFFIXES:
        raise InputError(f"{out}: should end in {', '.join(_SUFFIXES)}, which says how to write it")
    options = options or ReadOptions()
    table = clean(read_trace(path, format, options), window=options.window, rate_scale=options.rate_scale)
    frame = pd.DataFrame(_columns(table))
    draft = target.with_name(f".{target.name}.{os.getpid()}{target.suffix}")
    try:
        if kind_of(target) == "parquet":
            frame.to_parquet(draft, index=False)
        elif kind_of(target) == "json":
            frame.to_json(draft, orient="records", lines=True, double_precision=9)
        else:
            frame.to_csv(draft, index=False, lineterminator="\n")
        os.replace(draft, target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise InputError(f"{out}: cannot be written ({error.strerror or error}): choose another place") from error
    return table


def _columns(table: TraceTable) -> dict[str, object]:
    plain = {
        "timestamp_s": None if table.time_s is None else table.time_s.round(9),
        "input_tokens": table.prompt,
        "output_tokens": table.output,
        "cached_tokens": table.cached,
    }
    columns: dict[str, object] = {name: values for name, values in plain.items() if values is not None}
    for name, labels in (("adapter", table.adapter), ("client", table.client), ("tenant", table.tenant)):
        if labels is not None and not (name == "client" and labels is table.adapter):
            columns[name] = _names(labels)
    return columns


def _names(labels: Labels) -> list[str | None]:
    names = [*labels.names, None]
    return [names[code] for code in labels.codes.tolist()]
