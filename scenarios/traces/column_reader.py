"""ColumnReader: the columns of a trace as numbers, dates, labels and lists; an error names the line of a bad cell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loratory.errors import InputError, shortened
from loratory.scenarios.traces.dates import DATED, parse_dates
from loratory.scenarios.traces.files import BLANK, FileColumns
from loratory.scenarios.traces.lazy_pandas import pd
from loratory.scenarios.traces.table import Labels
from loratory.serving.workload import Floats

_NO_NAME = ("", "null", "NULL", "None", "none", "nan", "NaN", "<NA>")
MOST_TOKENS = 10_000_000
_MOST_PRIORITY = 2**31


@dataclass(frozen=True, slots=True)
class ColumnReader:
    """A file's frame, and how to read its columns."""

    columns: FileColumns
    frame: pd.DataFrame

    def numbers(self, column: str) -> Floats:
        """A column of numbers; blank cells are NaN. Raises `InputError` with the line of any other cell."""
        series = self.frame[column]
        if pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series):
            array: Floats = np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)
        else:
            text, blank = self._text(column, BLANK)
            values = pd.to_numeric(text.where(~blank), errors="coerce")
            array = np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))
            self.refuse(np.isnan(array) & ~blank, column, "is not a number")
        self.refuse(np.isinf(array), column, "is not a finite number")
        return array

    def numeric(self, column: str) -> bool:
        """Whether any cell of a column is a number."""
        return bool(pd.to_numeric(self.frame[column].astype("string"), errors="coerce").notna().any())

    def whole(self, column: str) -> Floats:
        """A column of whole numbers, such as priorities; blank cells are NaN."""
        array = self.numbers(column)
        with np.errstate(invalid="ignore"):
            self.refuse(np.abs(array - np.rint(array)) > 0, column, "is not a whole number")
            self.refuse(np.abs(array) > _MOST_PRIORITY, column, f"is beyond {_MOST_PRIORITY:,}")
        return array

    def tokens(self, column: str) -> Floats:
        """A column of token counts; blank cells are NaN. Refuses negative, broken and implausible numbers."""
        array = self.numbers(column)
        with np.errstate(invalid="ignore"):
            self.refuse(array < 0, column, "is negative")
            self.refuse(array > MOST_TOKENS, column, f"is more tokens than any request has ({MOST_TOKENS:,})")
            self.refuse(np.abs(array - np.rint(array)) > 0, column, "is not a whole number")
        return array

    def dated(self, column: str) -> bool:
        """Whether a column holds dates rather than numbers."""
        series = self.frame[column]
        if pd.api.types.is_datetime64_any_dtype(series):
            return True
        if pd.api.types.is_numeric_dtype(series):
            return False
        return bool(series.astype("string").str.contains(DATED, na=False).any())

    def dates(self, column: str) -> tuple[Floats, tuple[str, ...]]:
        """A column of dates with or without a time zone (none means UTC), as seconds from the earliest, and notes."""
        text, blank = self._text(column, BLANK)
        parsed, notes = parse_dates(text.where(~blank), column)
        self.refuse(parsed.isna().to_numpy(dtype=bool) & ~blank, column, "is not a date such as 2023-11-16 18:17:03.98")
        since = (parsed - parsed.min()).dt.total_seconds()
        return np.asarray(since.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64), notes

    def labels(self, column: str, first_of: str | None = None) -> Labels:
        """A column of names; blank cells are -1. Of several names joined by ``first_of``, the first is used.

        Names are ordered by frequency, then by name. Raises `InputError` for a list, object or true.
        """
        series = self.frame[column]
        if series.dtype == object:
            odd = series.map(lambda value: isinstance(value, bool | list | dict | tuple | np.ndarray))
            self.refuse(odd.to_numpy(dtype=bool), column, "is not a name")
        text, blank = self._text(column, _NO_NAME)
        if pd.api.types.is_float_dtype(series):
            text = text.str.removesuffix(".0")
        if first_of is not None:
            text = text.str.split(first_of, regex=False).str[0].str.strip()
            blank = blank | (text == "").fillna(True).to_numpy(dtype=bool)
        return labels_of(text.where(~blank).tolist())

    def lists(self, column: str) -> list[tuple[Any, ...]]:
        """A column of lists of names or numbers, written as JSON in a CSV; blank cells are empty."""
        found: list[tuple[Any, ...]] = []
        for row, value in enumerate(self.frame[column].tolist()):
            if isinstance(value, str):
                try:
                    value = json.loads(value) if value.strip() not in BLANK else ()
                except (ValueError, RecursionError):
                    self._refuse_row(row, column, "is not a list such as [1, 2]")
            if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
                value = ()
            if not isinstance(value, list | tuple | np.ndarray):
                self._refuse_row(row, column, "is not a list such as [1, 2]")
            items = tuple(value.tolist() if isinstance(value, np.ndarray) else value)
            if not all(isinstance(item, int | str) and not isinstance(item, bool) for item in items):
                self._refuse_row(row, column, "should hold whole numbers or names only")
            found.append(items)
        return found

    def refuse(self, bad: Any, column: str, why: str) -> None:
        """Raises `InputError` with the line of the first cell that is ``bad``."""
        where = np.flatnonzero(bad)
        if len(where):
            self._refuse_row(int(where[0]), column, why)

    def _refuse_row(self, row: int, column: str, why: str) -> None:
        value = self.frame[column].iloc[row]
        shown = shortened(repr(value.item() if isinstance(value, np.generic) else value), 60)
        where = self.columns.line(row)
        raise InputError(f"{self.columns.path}: {where}: {column} {shown} {why}: correct or remove the row")

    def _text(self, column: str, none: Sequence[str]) -> tuple[Any, Any]:
        """The cells as stripped texts, and which of them are blank."""
        text = self.frame[column].astype("string").str.strip()
        return text, (text.isna() | text.isin(none)).to_numpy(dtype=bool)


def labels_of(names: Sequence[Any]) -> Labels:
    """Names as labels; None and NaN are -1. Ordered by frequency, then by name."""
    codes, unique = pd.factorize(pd.Series(names, dtype="object"), use_na_sentinel=True)
    counts = np.bincount(codes[codes >= 0], minlength=len(unique))
    order = sorted(range(len(unique)), key=lambda i: (-int(counts[i]), str(unique[i])))
    position = np.empty(len(unique) + 1, dtype=np.int64)
    position[order] = np.arange(len(unique))
    position[-1] = -1
    return Labels(position[codes].astype(np.int64), tuple(str(unique[i]) for i in order))
