"""Files: a trace's file, packed or not, as named columns: CSV, JSON Lines, a JSON list or Parquet.

A file that cannot be read raises `InputError` with the file, the line if there is one, and the remedy.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from loratory.errors import InputError, several, shortened
from loratory.git_lfs import HEAD_BYTES, LFS_POINTER, lfs_pointer
from loratory.scenarios.traces.lazy_pandas import pd

_JSON = (".jsonl", ".ndjson", ".json")
_PARQUET = (".parquet", ".pq")
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_HEAD_ROWS = 100
BLANK = ("", "nan", "NaN", "NA", "N/A", "null", "NULL", "None", "none", "<NA>")
"""What counts as an empty cell in a column of numbers."""


def kind_of(path: Path) -> str:
    """csv, json or parquet, by the file's name."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    return "json" if last in _JSON else "parquet" if last in _PARQUET else "csv"


def require(path: Path) -> Path:
    """``path``, or an `InputError` if there is no file, or only a Git LFS pointer."""
    if not path.exists():
        raise InputError(f"{path} does not exist: check the path")
    if not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} is a device or a pipe, which may never end: give a file")
    if path.is_file():
        try:
            with path.open("rb") as handle:
                pointer = lfs_pointer(handle.read(HEAD_BYTES))
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error}): check the file") from None
        if pointer:
            raise InputError(f"{path} {LFS_POINTER}")
    return path


def too_large(path: Path, most_rows: int, most_bytes: int) -> str:
    """``more than 10,000,000 rows`` if a file, unpacked, exceeds a limit; empty otherwise, and for other files.

    Reads as little as possible: a file too short for that many rows is not opened; a Parquet file states its rows.
    """
    rows = size = 0
    packed = path.suffix.lower() in _PACKED
    try:
        if not path.is_file() or (not packed and path.stat().st_size < 2 * most_rows):
            return ""
        if kind_of(path) == "parquet" and not packed:
            import pyarrow.parquet as pq

            rows = pq.read_metadata(path).num_rows
        else:
            with _opened(path) as handle:
                while rows <= most_rows and size <= most_bytes and (block := handle.read(1 << 20)):
                    rows, size = rows + block.count(b"\n"), size + len(block)
    except _BROKEN:
        return ""  # its reader reports what is wrong
    if rows > most_rows:
        return f"more than {most_rows:,} rows"
    return f"more than {most_bytes:,} bytes" if size > most_bytes else ""


@dataclass(frozen=True, slots=True)
class FileColumns:
    """A file's columns: their names and, for JSON, its objects with their lines. ``notes``: on lines left out."""

    path: Path
    names: tuple[str, ...]
    records: Sequence[dict[str, Any]] | None = None
    lines: Sequence[int] | None = None
    notes: tuple[str, ...] = ()

    def frame(self, wanted: Sequence[str], labels: Sequence[str]) -> pd.DataFrame:
        """The columns ``wanted``, those in ``labels`` as written (a CSV's 007 stays 007).

        Raises `InputError` if the file cannot be read or has no rows.
        """
        try:
            frame = self._frame(list(dict.fromkeys(wanted)), set(labels))
        except pd.errors.EmptyDataError:
            raise _empty(self.path) from None
        except (*_BROKEN, pd.errors.ParserError, pd.errors.ParserWarning) as error:
            raise _unreadable(self.path, error) from error
        if frame.empty:
            raise InputError(f"{self.path}: the trace is empty: it has no rows")
        return frame

    def line(self, row: int) -> str:
        """The place of a row in the file: ``line 7``, or ``row 7`` if the file has no lines."""
        if self.lines is not None:
            return f"line {self.lines[row]}"
        if kind_of(self.path) == "csv":
            with _opened(self.path) as handle, _text(handle) as text:
                reader = csv.reader(text, skipinitialspace=True)
                next(islice((cells for cells in reader if cells), row + 1, None), None)
                return f"line {reader.line_num}"
        return f"row {row + 1}"

    def _frame(self, wanted: list[str], labels: set[str]) -> pd.DataFrame:
        if self.records is not None:
            data = {name: pd.Series([r.get(name) for r in self.records], dtype="object") for name in wanted}
            return pd.DataFrame(data, index=range(len(self.records)))
        with _opened(self.path) as handle:
            if kind_of(self.path) == "parquet":
                packed = io.BytesIO(handle.read())
                return pd.read_parquet(packed, columns=wanted or None, dtype_backend="numpy_nullable")
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # a row longer than the header
                frame = pd.read_csv(
                    handle,
                    encoding="utf-8-sig",
                    skipinitialspace=True,
                    index_col=False,
                    low_memory=False,
                    keep_default_na=False,
                    header=0,
                    names=list(self.names),
                    na_values={name: list(BLANK) for name in wanted if name not in labels},
                    dtype={name: str for name in self.names if name in labels or name not in wanted},
                )
        return frame[wanted] if wanted else frame


def column_names(path: Path) -> tuple[str, ...]:
    """The column names of a file, from its beginning; for JSON the keys of its first hundred objects."""
    return open_columns(path, _HEAD_ROWS).names


def open_columns(path: Path, rows: int | None = None) -> FileColumns:
    """A file's columns; of JSON the first ``rows`` objects. Raises `InputError` when it cannot be read."""
    if require(path).is_dir():
        raise InputError(f"{path} is a folder, which only the format servegen reads: give a file")
    try:
        with _opened(path) as handle:
            if kind_of(path) == "parquet":
                import pyarrow.parquet as pq

                schema: Any = pq.read_schema(io.BytesIO(handle.read()))
                names = tuple(str(name) for name in schema.names)
                return FileColumns(path, _once(path, names))
            if kind_of(path) == "json":
                records, lines, notes = _records(handle, rows)
                if not records:
                    raise _empty(path)
                names = tuple(dict.fromkeys(key for record in records for key in record))
                return FileColumns(path, names, records, lines, notes)
            with _text(handle) as text:
                header = next((cells for cells in csv.reader(text, skipinitialspace=True) if cells), None)
    except (*_BROKEN, RecursionError) as error:
        raise _unreadable(path, error) from error
    if header is None:
        raise _empty(path)
    return FileColumns(path, _once(path, tuple(name.strip() for name in header)))


_BROKEN = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, csv.Error)


def _opened(path: Path) -> BinaryIO:
    """The file's bytes, unpacked according to its suffix."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix == ".bz2":
        return cast(BinaryIO, bz2.open(path, "rb"))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if suffix == ".zst":
        import pyarrow

        return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd")))
    if suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if len(members) != 1:
                raise ValueError(f"it holds {len(members)} files, not one")
            return cast(BinaryIO, archive.open(members[0]))
    return path.open("rb")


def _text(handle: BinaryIO) -> io.TextIOWrapper:
    return io.TextIOWrapper(handle, "utf-8-sig", newline="")


_Records = tuple[list[dict[str, Any]], list[int] | None, tuple[str, ...]]


def _records(handle: BinaryIO, rows: int | None) -> _Records:
    """Objects, one per line, with their lines, or a list of objects, and notes. Only a newline ends a line.

    A last line without its newline that is not JSON was being written when its writer ended: it is left out.
    """
    records: list[Any] = []
    lines: list[int] = []
    for number, line in enumerate(handle, 1):
        text = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip(b" \t\r\n")
        if not text:
            continue
        if not records and text.startswith(b"["):
            whole = _parsed(text + b"\n" + handle.read(), "it")
            return *_objects(whole if isinstance(whole, list) else [whole], None), ()
        try:
            records.append(_parsed(text, f"line {number}"))
        except ValueError:
            if line.endswith(b"\n") or not records:
                raise
            return *_objects(records, lines), ("the last line is cut short and was left out",)
        lines.append(number)
        if len(records) == rows:
            break
    return *_objects(records, lines), ()


def _objects(records: list[Any], lines: list[int] | None) -> tuple[list[dict[str, Any]], list[int] | None]:
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            where = f"entry {row + 1}" if lines is None else f"line {lines[row]}"
            raise ValueError(f"{where} is not an object such as {{...}}")
    return records, lines


def _parsed(text: bytes, where: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _RefusedError(f"{where} repeats a key")
        return found

    def constant(name: str) -> Any:
        raise _RefusedError(f"{where} holds {name}, which is not JSON")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=constant)
    except _RefusedError:
        raise
    except UnicodeDecodeError:
        raise ValueError(f"{where} is not UTF-8") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None
    except ValueError:
        raise ValueError(f"{where} is not JSON") from None


class _RefusedError(ValueError):
    """JSON that Python accepts but other readers refuse."""


def _once(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise InputError(f"{path} has several columns named {several(map(repr, twice))}: give each its own name")
    return names


def _empty(path: Path) -> InputError:
    return InputError(f"{path}: the trace is empty: give a file with rows")


def _unreadable(path: Path, error: BaseException) -> InputError:
    if isinstance(error, EOFError | zlib.error | lzma.LZMAError):
        return InputError(f"{path} is cut short or damaged ({shortened(str(error), 120)}): copy it again")
    why = next(iter(str(error).splitlines()), "") or type(error).__name__
    return InputError(f"{path} cannot be read as {kind_of(path)} ({shortened(why, 200)}): check the file")
