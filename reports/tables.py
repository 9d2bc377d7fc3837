"""Tables: the record tables of a run: their columns, the buffers that fill them, and where they go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from loratory.reports.arrow_arrays import numeric, texts, values_of
from loratory.serving.events import Stepped
from loratory.serving.plan import BatchShape
from loratory.serving.workload import Floats

CHUNK_ROWS = 128
"""Rows kept as Python objects: few, so that they stay in the processor's cache."""

BATCH_CHUNKS = 256
"""Chunks that make one Arrow batch, which is also one Parquet row group."""

_NAME = pa.dictionary(pa.int32(), pa.string())

REQUEST_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("adapter", _NAME),
        ("tenant", _NAME),
        ("replica", pa.int16()),
        ("arrival", pa.float64()),
        ("admitted", pa.float64()),
        ("first_token", pa.float64()),
        ("finish", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("max_tokens", pa.int64()),
        ("status", _NAME),
        ("why", _NAME),
        ("queue_s", pa.float64()),
        ("load_wait_s", pa.float64()),
        ("prefill_s", pa.float64()),
        ("decode_s", pa.float64()),
        ("preempted_s", pa.float64()),
        ("preemptions", pa.int32()),
        ("hit", pa.bool_()),
        ("truncated", pa.bool_()),
        ("deadline", pa.float64()),
        ("priority", pa.int64()),
    ]
)

STEP_COLUMNS = (
    "replica",
    *(column for name in Stepped._fields for column in (BatchShape._fields if name == "shape" else (name,))),
)
_STEP_FLOATS = {"start", "end", "load_s", "prefill_attention"}
_STEP_LONGS = {"kv_tokens", "lora_token_ranks"}
STEP_TYPES: Mapping[str, type[np.number[Any]]] = {
    name: np.float64 if name in _STEP_FLOATS else np.int64 if name in _STEP_LONGS else np.int32 for name in STEP_COLUMNS
} | {"replica": np.int16}
STEP_SCHEMA = pa.schema([(name, pa.from_numpy_dtype(kind)) for name, kind in STEP_TYPES.items()])

KINDS = ("load", "prefetch", "loaded", "prefetched", "evicted", "preempted")
"""The kinds of adapter events. ``load`` and ``prefetch`` are starts; ``loaded`` and ``prefetched`` the ends."""

EVENT_SCHEMA = pa.schema(
    [("time", pa.float64()), ("replica", pa.int16()), ("kind", _NAME), ("adapter", _NAME), ("tier", _NAME)]
)


class Codes(dict[str | None, int]):
    """Small numbers for names, in the order first seen; None is -1. Looking up a new name numbers it."""

    def __init__(self, *names: str) -> None:
        super().__init__({None: -1})
        for name in names:
            self[name]

    def __missing__(self, name: str | None) -> int:
        code = self[name] = len(self) - 1
        return code

    @property
    def names(self) -> list[str]:
        """The names by code."""
        return [name for name in self if name is not None]

    def array(self, codes: Floats) -> pa.DictionaryArray:
        """Codes as an Arrow dictionary array, null where -1."""
        indices = numeric(codes.astype(np.int32), codes < 0)
        return pa.DictionaryArray.from_arrays(indices, texts(self.names))


RowList = list[tuple[Any, ...]]


class TableBuffer:
    """Rows on their way into one table. The code that fills `rows` calls `flush` when there are `CHUNK_ROWS`.

        rows --numbers--> {name: numbers} --kept, as floats--> {name: array} --convert--> {name: Arrow array}

    ``numbers(rows)`` gives numbers of the rows by name, the same names each time; ``convert`` turns them into the
    columns of ``schema``, by name. With a ``path`` the batches stream to a Parquet file, else they stay in memory.
    Equal rows give an equal file, byte for byte.
    """

    __slots__ = ("_batches", "_chunks", "_convert", "_names", "_numbers", "_path", "_schema", "_writer", "rows")

    def __init__(
        self,
        path: Path | None,
        schema: pa.Schema,
        numbers: Callable[[RowList], Mapping[str, Sequence[float]]],
        convert: Callable[[Mapping[str, Floats]], Mapping[str, pa.Array]],
    ) -> None:
        self.rows: RowList = []
        self._path = path
        self._schema = schema
        self._numbers = numbers
        self._convert = convert
        self._names: tuple[str, ...] = ()
        self._writer: pq.ParquetWriter | None = None
        self._chunks: list[Floats] = []
        self._batches: list[pa.RecordBatch] = []

    def flush(self) -> None:
        """Move the rows out of `rows`; call it when there are `CHUNK_ROWS`."""
        count = len(self.rows)
        if count:
            pack = _PACK if count == CHUNK_ROWS else Struct(f"{count}d").pack
            columns = self._numbers(self.rows)
            self._names = tuple(columns)
            packed = [pack(*column) for column in columns.values()]
            self._chunks.append(np.frombuffer(b"".join(packed)).reshape(-1, count))
            self.rows.clear()
        if len(self._chunks) >= BATCH_CHUNKS:
            self._move()

    def _move(self) -> None:
        numbers = dict(zip(self._names, np.concatenate(self._chunks, axis=1), strict=True))
        columns = self._convert(numbers)
        batch = pa.RecordBatch.from_arrays([columns[name] for name in self._schema.names], schema=self._schema)
        self._chunks.clear()
        if self._path is None:
            self._batches.append(batch)
        else:
            self._open(self._path).write_batch(batch)

    def _open(self, path: Path) -> pq.ParquetWriter:
        if self._writer is None:
            names = [field.name for field in self._schema if pa.types.is_dictionary(field.type)]
            self._writer = pq.ParquetWriter(
                path, self._schema, compression="zstd", compression_level=1, use_dictionary=names
            )
        return self._writer

    def close(self) -> TableSource:
        """Flush, finish the file (an empty table gets one too) and return where the table can be read."""
        self.flush()
        if self._chunks:
            self._move()
        if self._path is not None:
            self._open(self._path).close()
        return TableSource(self._path, self._schema, tuple(self._batches))

    def abandon(self) -> None:
        """Close an open file without finishing the table; for a run that failed, perhaps because the disk is full."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
            self._writer.is_open = False  # else it would try again when it is collected


_PACK = Struct(f"{CHUNK_ROWS}d").pack


def columns_of(rows: RowList) -> Iterator[tuple[float, ...]]:
    """The columns of rows; a tuple in a row counts as one column per item."""
    for column in zip(*rows, strict=True):
        if isinstance(column[0], tuple):
            yield from columns_of(list(column))
        else:
            yield column


class TableSource:
    """A finished table: in memory, or in a Parquet file that is read again at each call."""

    __slots__ = ("_batches", "_path", "_schema")

    def __init__(self, path: Path | None, schema: pa.Schema, batches: tuple[pa.RecordBatch, ...]) -> None:
        self._path = path
        self._schema = schema
        self._batches = batches

    def read(self, columns: list[str] | None = None, rows: int | None = None) -> pa.Table:
        """The table, or only the named columns or first rows, with one dictionary for each name column."""
        if self._path is None:
            table = pa.Table.from_batches(self._batches, self._schema)
            table = (table if columns is None else table.select(columns)).slice(0, rows)
        elif rows is None:
            with pq.ParquetFile(self._path) as file:  # pq.read_table would import pandas
                table = file.read(columns, use_threads=False)
        else:
            with pq.ParquetFile(self._path) as file:
                first = next(file.iter_batches(batch_size=rows, columns=columns, use_threads=False), None)
                table = file.schema_arrow.empty_table() if first is None else pa.Table.from_batches([first])
        return table.unify_dictionaries()


def floats(table: pa.Table, column: str) -> Floats:
    """A numeric column as float64, NaN where null."""
    return values_of(table.column(column)).astype(np.float64, copy=False)


def codes(table: pa.Table, column: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """A name column as (codes, names); -1 where null."""
    array = table.column(column).combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        if array.num_chunks == 0:
            return np.zeros(0, np.int64), []
        array = array.chunk(0)
    found = values_of(pa.chunked_array([array.indices]))
    return np.where(np.isnan(found), -1, found).astype(np.int64), array.dictionary.to_pylist()
