"""Files: CSV, JSON Lines and Parquet as frames, and their columns as numbers, times and labels.

Whatever cannot be read is an `InputError` that names the file, the line and the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scenarios.traces.sessions import turns_of, without
from scenarios.traces.table import UNSET, Labels, TraceTable
from serving.errors import InputError
from serving.workload import Floats

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_JSON = (".jsonl", ".ndjson", ".json")
_PARQUET = (".parquet", ".pq")


def kind_of(path: Path) -> str:
    """csv, json or parquet, by the file's name."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    return "json" if suffix in _JSON else "parquet" if suffix in _PARQUET else "csv"


def require(path: Path) -> Path:
    """``path``, or an `InputError` when there is nothing there."""
    if not path.exists():
        raise InputError(f"{path}: no such trace: check the path")
    return path


def column_names(path: Path) -> tuple[str, ...]:
    """The column names of a file, from its beginning; for JSON Lines the keys of the first object."""
    frame = read_frame(path, rows=1, empty_ok=True)
    return tuple(str(name) for name in frame.columns)


def read_frame(path: Path, rows: int | None = None, empty_ok: bool = False) -> pd.DataFrame:
    """A file as a frame (its first ``rows``). Raises `InputError` when it cannot be read or has no rows."""
    require(path)
    try:
        frame = _read(path, rows)
    except pd.errors.EmptyDataError:
        raise InputError(f"{path}: the trace is empty: give a file with a header and rows") from None
    except (OSError, ValueError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as {kind_of(path)} ({_first_line(error)}): check the file") from error
    if frame.empty and not empty_ok:
        raise InputError(f"{path}: the trace is empty: it has no rows")
    return frame


def _read(path: Path, rows: int | None) -> pd.DataFrame:
    kind = kind_of(path)
    if kind == "parquet":
        import pyarrow.parquet as pq

        if rows is None:
            return pd.read_parquet(path)
        schema: Any = pq.read_schema(path)
        return pd.DataFrame(columns=list(schema.names))
    if kind == "json":
        return _read_json(path, rows)
    return pd.read_csv(path, nrows=rows, encoding="utf-8-sig", skipinitialspace=True)


def _read_json(path: Path, rows: int | None) -> pd.DataFrame:
    """Objects one a line, or a list of objects."""
    import gzip

    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = raw.decode("utf-8-sig")
    if text.lstrip().startswith("["):
        records = json.loads(text)
    else:
        records = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON") from error
            if rows is not None and len(records) >= rows:
                break
    if not all(isinstance(record, dict) for record in records):
        raise ValueError("it should hold objects, one a line")
    return pd.DataFrame.from_records(records)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True, slots=True)
class Source:
    """A file's frame, and how to read its columns."""

    path: Path
    frame: pd.DataFrame

    def having(self, columns: Sequence[str], format: str) -> Source:
        """Itself. Raises `InputError` when one of ``columns``, which ``format`` needs, is not there."""
        missing = [name for name in columns if name not in self.frame.columns]
        if missing:
            there = ", ".join(map(str, self.frame.columns[:12]))
            raise InputError(
                f"{self.path}: has no column {missing[0]!r}, which {format} needs (it has {there}): name another format"
            )
        return self

    def numbers(self, column: str) -> Floats:
        """A column of numbers; blank cells are NaN. Raises `InputError` with the line of one that is no number."""
        series = self.frame[column]
        if not pd.api.types.is_numeric_dtype(series) or pd.api.types.is_bool_dtype(series):
            text = series.astype("string").str.strip()
            blank = (text.isna() | (text == "")).to_numpy(dtype=bool)
            values = pd.to_numeric(text.where(~blank), errors="coerce")
            array: Floats = np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))
            self._refuse(np.isnan(array) & ~blank, column, "is not a number")
        else:
            array = np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)
        self._refuse(np.isinf(array), column, "is not a finite number")
        return array

    def integers(self, column: str) -> Floats:
        """A column of whole numbers; blank cells are NaN."""
        array = self.numbers(column)
        with np.errstate(invalid="ignore"):
            self._refuse(np.abs(array - np.rint(array)) > 0, column, "is not a whole number")
        return array

    def delays(self, column: str, unit: str) -> Floats:
        """A column of durations in ``unit``, as seconds; blank cells are NaN. Refuses negative ones."""
        array = self.numbers(column)
        with np.errstate(invalid="ignore"):
            self._refuse(array < 0, column, "is negative")
        return array * UNITS[unit]

    def tokens(self, column: str) -> Floats:
        """A column of token counts; blank cells are NaN. Refuses negative and broken numbers."""
        array = self.integers(column)
        with np.errstate(invalid="ignore"):
            self._refuse(array < 0, column, "is negative")
        return array

    def times(self, column: str, unit: str | None) -> Floats:
        """A column of times, seconds: numbers in ``unit``, or dates with or without a time zone (none means UTC)."""
        series = self.frame[column]
        text = series.astype("string").str.strip()
        dated = pd.api.types.is_datetime64_any_dtype(series) or (
            not pd.api.types.is_numeric_dtype(series) and bool(text.str.contains(r"\d[-/]\d", na=False).any())
        )
        if not dated:
            return self.numbers(column) * UNITS[unit or "s"]
        blank = (text.isna() | (text == "")).to_numpy(dtype=bool)
        parsed = pd.to_datetime(text.where(~blank), utc=True, format="ISO8601", errors="coerce")
        self._refuse(
            parsed.isna().to_numpy(dtype=bool) & ~blank, column, "is not a date such as 2023-11-16 18:17:03.98"
        )
        since = (parsed - parsed.min()).dt.total_seconds()
        return np.asarray(since.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)

    def labels(self, column: str) -> Labels:
        """A column of names; blank cells are -1. Names are ordered by how often they come, then by name."""
        series = self.frame[column]
        text = series.astype("string").str.strip()
        if pd.api.types.is_float_dtype(series):
            text = text.str.removesuffix(".0")
        return labels_of(text.where(text != "").tolist())

    def _refuse(self, bad: Any, column: str, why: str) -> None:
        where = np.flatnonzero(bad)
        if len(where):
            row = int(where[0])
            line = row + 2 if kind_of(self.path) == "csv" else row + 1
            value = self.frame[column].iloc[row]
            raise InputError(f"{self.path}: line {line}: {column} {value!r} {why}: correct or remove the row")


def labels_of(names: Sequence[Any]) -> Labels:
    """Names as labels; None and NaN are -1. Ordered by how often they come, then by name."""
    codes, unique = pd.factorize(pd.Series(names, dtype="object"), use_na_sentinel=True)
    counts = np.bincount(codes[codes >= 0], minlength=len(unique))
    order = sorted(range(len(unique)), key=lambda i: (-int(counts[i]), str(unique[i])))
    position = np.empty(len(unique) + 1, dtype=np.int64)
    position[order] = np.arange(len(unique))
    position[-1] = -1
    return Labels(position[codes].astype(np.int64), tuple(str(unique[i]) for i in order))


def table_of(
    name: str,
    path: Path,
    *,
    time: Floats | None = None,
    prompt: Floats | None = None,
    output: Floats | None = None,
    cached: Floats | None = None,
    adapter: Labels | None = None,
    client: Labels | None = None,
    tenant: Labels | None = None,
    session: Labels | None = None,
    delay: Floats | None = None,
    priority: Floats | None = None,
    notes: Sequence[str] = (),
) -> TraceTable:
    """A table of columns as read, where NaN means blank: rows with a blank are dropped and counted.

    A row without a time that has a session waits for the turn before it (see sessions.py). Times are shifted so that
    the earliest is 0. Raises `InputError` when no row is left.
    """
    columns = (
        time,
        prompt,
        output,
        *(label.codes for label in (adapter, client, tenant, session) if label is not None),
    )
    rows = next(len(column) for column in columns if column is not None)
    found = list(notes)
    keep = np.ones(rows, dtype=bool)
    if session is not None:
        turns = turns_of(time, delay, session, path)
        time, delay, keep = turns.time, turns.delay, turns.usable
        found.extend(turns.notes)
    else:
        delay = None
    blank = np.zeros(rows, dtype=bool)
    for column in (time, prompt, output):
        if column is not None:
            blank |= np.isnan(column) & (np.isnan(delay) if column is time and delay is not None else True)
    if (lost := int((blank & keep).sum())) > 0:
        found.append(f"rows left out (an empty time or token cell): {lost}")
    if not (keep & ~blank).any():
        raise InputError(f"{path}: the trace is empty: no row has a time and token counts")
    whole = TraceTable(
        format=name,
        rows_read=rows,
        time_s=time,
        prompt=None if prompt is None else np.nan_to_num(prompt).astype(np.int64),
        output=None if output is None else np.nan_to_num(output).astype(np.int64),
        cached=None if cached is None else np.nan_to_num(cached).astype(np.int64),
        adapter=adapter,
        client=client,
        tenant=tenant,
        session=session,
        delay_s=delay,
        priority=None
        if priority is None
        else np.where(np.isnan(priority), UNSET, np.nan_to_num(priority)).astype(np.int64),
        notes=tuple(found),
    )
    table = without(whole, keep & ~blank)
    return table if table.time_s is None else replace(table, time_s=table.time_s - float(np.nanmin(table.time_s)))
