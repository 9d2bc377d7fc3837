"""Arrow arrays from numpy arrays and back. pyarrow's own functions do the same, but import pandas, which takes time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def numeric(values: npt.NDArray[Any], null: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Numbers or booleans as an array of the same type, null where ``null`` is true. The values must not change."""
    valid = None if null is None or not null.any() else _bits(~null)
    data = _bits(values) if values.dtype == bool else pa.py_buffer(np.ascontiguousarray(values))
    missing = 0 if valid is None or null is None else int(null.sum())
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [valid, data], missing)


def texts(values: Sequence[str]) -> pa.Array:
    """Texts as an array of strings."""
    encoded = [value.encode() for value in values]
    ends = np.zeros(len(encoded) + 1, dtype=np.int32)
    np.cumsum([len(each) for each in encoded], out=ends[1:])
    return pa.Array.from_buffers(
        pa.string(), len(encoded), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))], 0
    )


def values_of(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """The numbers of a column, booleans as 0 and 1; if some are null, as floats that are NaN there."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    kind = np.dtype(column.type.to_pandas_dtype())
    found = [_values(chunk, kind) for chunk in column.chunks if len(chunk)]
    return np.concatenate(found) if found else np.zeros(0, kind)


def _values(chunk: pa.Array, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    valid, data = chunk.buffers()
    here = slice(chunk.offset, chunk.offset + len(chunk))
    values: npt.NDArray[Any] = np.frombuffer(data, kind)[here]
    if not chunk.null_count:
        return values
    there = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[here]
    return np.where(there, values, np.nan)


def _bits(flags: npt.NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))
