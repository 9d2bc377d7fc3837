"""AzureFunctions: function invocations that stand in for adapter use, as in S-LoRA and AlpaServe.

Source: github.com/Azure/AzurePublicDataset, AzureFunctionsInvocationTrace2021.md (one row per invocation:
``app,func,end_timestamp,duration``) and AzureFunctionsDataset2019.md (one row per function, with a count
for each minute). A function is an adapter. There are no token lengths: the scenario gives them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loratory.errors import InputError
from loratory.scenarios.traces.column_reader import ColumnReader, labels_of
from loratory.scenarios.traces.files import FileColumns, open_columns
from loratory.scenarios.traces.format import Format, Head, ReadOptions
from loratory.scenarios.traces.layout import Layout
from loratory.scenarios.traces.rows import read_rows, table_of
from loratory.scenarios.traces.table import TraceTable

_INVOCATIONS = ("app", "func", "end_timestamp", "duration")
_COUNTS = ("HashApp", "HashFunction", "1")
_MOST = 20_000_000


def read(path: Path, options: ReadOptions) -> TraceTable:
    """One request per invocation, at its start; per-minute counts are spread evenly at random over their minute."""
    file = open_columns(path)
    if set(_COUNTS[:2]) <= set(file.names):
        options.refuse_columns(path, "Azure Functions counts", "which have one column a minute")
        return _from_counts(file, options)
    own = {"time": "end_timestamp", "adapter": "func", "tenant": "app"}
    return read_rows(path, options, Layout("azure_functions", own, needs=tuple(own), duration="duration"))


def _from_counts(file: FileColumns, options: ReadOptions) -> TraceTable:
    minutes = [name for name in file.names if name.isdigit()]
    source = ColumnReader(file, file.frame([*_COUNTS[:2], *minutes], _COUNTS[:2]))
    counts = np.stack([source.tokens(name) for name in minutes], axis=1)
    per_cell = np.nan_to_num(counts).astype(np.int64)
    if per_cell.sum() > _MOST:
        raise InputError(
            f"{file.path} holds {per_cell.sum():,} invocations, above {_MOST:,}: keep fewer rows or minutes"
        )
    row, column = np.nonzero(per_cell)
    repeat = per_cell[row, column]
    start = (np.array(minutes, dtype=np.float64)[column] - 1.0) * 60.0
    time = np.repeat(start, repeat) + options.rng.uniform(0.0, 60.0, int(repeat.sum()))
    order = np.argsort(time, kind="stable")
    function = source.frame["HashFunction"].astype(str).to_numpy()
    tenant = source.frame["HashApp"].astype(str).to_numpy()
    owner = np.repeat(row, repeat)[order]
    return table_of(
        "azure_functions",
        file.path,
        time=time[order],
        adapter=labels_of(function[owner].tolist()),
        tenant=labels_of(tenant[owner].tolist()),
        columns=(("adapter", "HashFunction"), ("tenant", "HashApp")),
        notes=["counts per minute were spread evenly at random over each minute"],
    )


def _recognise(head: Head) -> bool:
    return head.has(*_INVOCATIONS) or head.has(*_COUNTS)


FORMAT = Format(
    "azure_functions",
    "Azure Functions 2021 invocations or 2019 counts per minute; one function = one adapter",
    _recognise,
    read,
)
