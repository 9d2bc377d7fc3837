"""Samples: whole numbers read from a file, to draw lengths from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from loratory.errors import InputError
from loratory.git_lfs import HEAD_BYTES, LFS_POINTER, lfs_pointer
from loratory.serving.workload import Ints

_MOST = 100_000_000
"""Most lengths in a file."""


def read_samples(file: str, column: str | None = None) -> Ints:
    """The lengths in a file, tokens.

    Text holds one number per line, CSV and Parquet a column (``column`` where there are several), JSON a list or an
    object ``{length: how often}``. Raises `InputError` naming the file when it holds no lengths, or anything below 1.
    """
    path = Path(file)
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{file} is not a regular file: name one with lengths")
        with path.open("rb") as opened:
            if lfs_pointer(opened.read(HEAD_BYTES)):
                raise InputError(f"{file} {LFS_POINTER}")
        values = _READERS.get(path.suffix.lower(), _text)(path, column)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): check the path") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        text = str(error).splitlines()[0]
        raise InputError(f"{file} holds something that is not a whole number ({text}): keep lengths only") from error
    if len(values) == 0:
        raise InputError(f"{file} holds no lengths: give at least one number")
    if int(values.min()) < 1:
        raise InputError(f"{file} holds a length of {int(values.min())}: remove lengths below 1")
    return values


def _text(path: Path, column: str | None) -> Ints:
    return _whole([float(line) for line in path.read_text().split()])


def _json(path: Path, column: str | None) -> Ints:
    data: Any = json.loads(path.read_text())
    if isinstance(data, dict) and column is not None and isinstance(data.get(column), list | dict):
        data = data[column]
    if isinstance(data, dict):
        lengths = _whole([float(key) for key in data])
        times = _whole([float(count) for count in data.values()])
        if times.sum() > _MOST or (times < 0).any():
            raise InputError(f"{path} counts {float(times.sum()):g} lengths: give counts from 0, {_MOST:,} in all")
        return np.repeat(lengths, times)
    return _whole([float(value) for value in data])


def _table(path: Path, column: str | None) -> Ints:
    import pandas as pd

    frame = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else pd.read_csv(path)
    if column is None and len(frame.columns) != 1:
        raise InputError(f"{path} has columns {', '.join(map(str, frame.columns))}: name one with 'column'")
    if column is not None and column not in frame.columns:
        raise InputError(f"{path} has no column {column!r}; it has {', '.join(map(str, frame.columns))}")
    return _whole(frame[column if column is not None else frame.columns[0]].astype(float).tolist())


def _whole(values: list[float]) -> Ints:
    array = np.asarray(values, dtype=np.float64)
    if not bool(np.isfinite(array).all()) or bool((array != np.rint(array)).any()):
        bad = array[~np.isfinite(array) | (array != np.rint(array))][0]
        raise ValueError(f"{bad}")
    return array.astype(np.int64)


_READERS = {".json": _json, ".csv": _table, ".parquet": _table}
