"""Rows: measurements in a CSV file, read and checked against the columns that a reproduction needs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TypeVar

from loratory.errors import InputError, several, shortened

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RowOrigin:
    """Where the changes of a simulated row come from. ``place``: its file and line. ``columns``: the column from which
    each ``key=value`` was made."""

    place: str
    columns: tuple[tuple[str, str], ...]

    def told(self, error: InputError) -> InputError:
        """An error of the simulation as one of this row; an option that the user gave is named as it is."""
        text = str(error).replace(_LIFT, "")
        for change, column in self.columns:
            for label in (shortened(f"--set {change}", 160), shortened(f"--set {change}", 120)):
                if text.startswith(label):
                    return InputError(f"{self.place}: {column}{text[len(label) :]}")
        return InputError(text if text.startswith("--set ") else f"{self.place}: {text}")


_LIFT = ", or lift all limits with --unbounded (in Python: unbounded=True)"
"""What a reproduction does not offer."""

_YES, _NO = frozenset({"1", "true", "yes", "oom"}), frozenset({"", "0", "false", "no"})


@dataclass(frozen=True, slots=True)
class GivenRow:
    """One row of a file. ``place`` names it in errors: ``more.csv:7``. Its methods raise `InputError`."""

    place: str
    values: dict[str, str]

    def text(self, column: str) -> str:
        """The text in a column; refused if it is empty."""
        value = self.values[column].strip()
        if not value:
            raise InputError(f"{self.place}: {column} is empty: fill it in, or leave the row out")
        return value

    def number(self, column: str) -> float:
        """The number in a column, at least 0."""
        return self._number(column, self.text(column))

    def whole(self, column: str) -> int:
        """The whole number in a column, at least 0."""
        value = self.number(column)
        if value != int(value):
            raise InputError(f"{self.place}: {column} is {value:g}: give a whole number")
        return int(value)

    def numbers(self, column: str) -> tuple[float, ...]:
        """The numbers in a column, which spaces separate."""
        return tuple(self._number(column, part) for part in self.text(column).split())

    def flag(self, column: str) -> bool:
        """Whether a column says yes (1, true, yes, oom) or no (0, false, no, or empty, also where it is missing)."""
        value = self.values.get(column, "").strip().lower()
        if value not in _YES | _NO:
            shown = shortened(value, 60)
            raise InputError(
                f"{self.place}: {column} is {shown!r}: give 1, true, yes or oom, or 0, false, no or nothing"
            )
        return value in _YES

    def _number(self, column: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not isfinite(value) or value < 0:
            raise InputError(f"{self.place}: {column} is {text[:60]!r}: give a number of at least 0")
        return value


def read_rows(path: Path, columns: Iterable[str], read: Callable[[GivenRow], T]) -> list[T]:
    """Every row of a CSV file as ``read`` makes it; further columns are allowed.

    Raises `InputError` for a file that cannot be read, has no row, or lacks one of ``columns``; ``read`` may as well.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a mark of the encoding
            return [read(row) for row in _checked(csv.DictReader(file, skipinitialspace=True), path, list(columns))]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text: give a CSV file") from error
    except csv.Error as error:
        raise InputError(f"{path} is not CSV ({error}): correct it") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path") from error


def _checked(reader: csv.DictReader[str], path: Path, columns: list[str]) -> Iterator[GivenRow]:
    names = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}:1 has two columns {shortened(twice, 60)!r}: leave one of them out")
    missing = [column for column in columns if column not in names]
    if missing:
        raise InputError(f"{path} has no column {missing[0]}: its first line should name {several(columns, 20)}")
    line = 1
    for line, row in enumerate(reader, 2):
        if any(row[column] is None for column in columns):
            raise InputError(f"{path}:{line} has fewer columns than the first line: fill them in")
        if None in row:
            raise InputError(f"{path}:{line} has more columns than the first line: leave the rest out")
        yield GivenRow(f"{path}:{line}", {column: str(value or "") for column, value in row.items()})
    if line == 1:
        raise InputError(f"{path} has no rows: add at least one below the line of column names")
