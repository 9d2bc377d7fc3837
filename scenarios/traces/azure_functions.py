"""AzureFunctions: function invocations that stand in for adapter use, as in S-LoRA and AlpaServe.

Source: github.com/Azure/AzurePublicDataset, AzureFunctionsInvocationTrace2021.md (one row an invocation:
``app,func,end_timestamp,duration``) and AzureFunctionsDataset2019.md (one row a function with a count for each minute).
A function is an adapter. There are no token lengths: the scenario says them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scenarios.traces.files import Source, labels_of, read_frame, table_of
from scenarios.traces.format import Format, Head, ReadOptions
from scenarios.traces.table import TraceTable
from serving.errors import InputError

_INVOCATIONS = ("app", "func", "end_timestamp", "duration")
_COUNTS = ("HashApp", "HashFunction", "1")
_MOST = 20_000_000


def read(path: Path, options: ReadOptions) -> TraceTable:
    """One request an invocation, at its start; per-minute counts are spread evenly at random over their minute."""
    source = Source(path, read_frame(path))
    if "HashFunction" in source.frame.columns:
        return _from_counts(path, source, options)
    source.having(_INVOCATIONS, "azure_functions")
    start = source.times("end_timestamp", "s") - source.numbers("duration")
    return table_of("azure_functions", path, time=start, adapter=source.labels("func"), tenant=source.labels("app"))


def _from_counts(path: Path, source: Source, options: ReadOptions) -> TraceTable:
    minutes = [str(name) for name in source.frame.columns if str(name).isdigit()]
    counts = np.stack([source.tokens(name) for name in minutes], axis=1)
    per_cell = np.nan_to_num(counts).astype(np.int64)
    if per_cell.sum() > _MOST:
        raise InputError(f"{path}: holds {per_cell.sum():,} invocations: keep fewer rows or minutes")
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
        path,
        time=time[order],
        adapter=labels_of(function[owner].tolist()),
        tenant=labels_of(tenant[owner].tolist()),
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
