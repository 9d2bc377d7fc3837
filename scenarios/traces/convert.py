"""Convert: any trace to the generic format, as CSV, JSON Lines or Parquet."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loratory.errors import InputError
from loratory.scenarios.traces.clean import clean
from loratory.scenarios.traces.files import kind_of
from loratory.scenarios.traces.format import ReadOptions
from loratory.scenarios.traces.known import read_trace
from loratory.scenarios.traces.lazy_pandas import pd
from loratory.scenarios.traces.table import UNSET, Labels, TraceTable
from loratory.serving.workload import Floats, Ints

_SUFFIXES = (".csv", ".jsonl", ".parquet")


def convert(
    path: Path | str, out: Path | str, format: str | None = None, options: ReadOptions | None = None
) -> TraceTable:
    """Write a trace as ``timestamp_s,input_tokens,output_tokens`` and the other columns that it has.

    Rows are in time order; rows without tokens are left out and counted in the notes of the table returned. ``out``
    ends in .csv, .jsonl or .parquet and is replaced as a whole. Raises `InputError` for another ending, or a file that
    cannot be read or written.
    """
    target = Path(out)
    if target.suffix not in _SUFFIXES:
        raise InputError(f"{out} should end in {', '.join(_SUFFIXES)}, which selects the format")
    options = replace(options or ReadOptions(), blocks=True)
    table = clean(read_trace(path, format, options), window=options.window, rate_scale=options.rate_scale)
    frame = pd.DataFrame(_columns(table, kind_of(target)))
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
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise InputError(f"{out} cannot be written ({error.strerror or error}): choose another place") from error
    return table


def _columns(table: TraceTable, kind: str) -> dict[str, object]:
    plain = {
        "timestamp_s": None if table.time_s is None else table.time_s.round(9),
        "input_tokens": table.prompt,
        "output_tokens": table.output,
        "cached_tokens": table.cached,
        "delay_s": None if table.delay_s is None else table.delay_s.round(9),
        "priority": None if table.priority is None else _blank(table.priority),
        "max_tokens": None if table.max_tokens is None else _blank(table.max_tokens),
        "deadline_s": _finite(table.deadline_s),
    }
    columns: dict[str, object] = {name: values for name, values in plain.items() if values is not None}
    for name, labels in _labels(table):
        if labels is not None and not (name == "client" and labels is table.adapter):
            columns[name] = _names(labels)
    if table.blocks is not None:
        lists = [list(ids) for ids in table.blocks.ids]
        columns["hash_ids"] = [json.dumps(ids) for ids in lists] if kind == "csv" else lists
    return columns


def _labels(table: TraceTable) -> tuple[tuple[str, Labels | None], ...]:
    return ("adapter", table.adapter), ("client", table.client), ("tenant", table.tenant), ("session_id", table.session)


def _finite(deadline_s: Floats | None) -> Floats | None:
    return None if deadline_s is None else np.where(np.isinf(deadline_s), np.nan, deadline_s)


def _blank(values: Ints) -> pd.Series[Any]:
    return pd.Series(values, dtype="Int64").mask(values == UNSET)


def _names(labels: Labels) -> list[str | None]:
    names = [*labels.names, None]
    return [names[code] for code in labels.codes.tolist()]
