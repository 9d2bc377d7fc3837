"""Vidur: the request traces and length traces of the Vidur simulator (MLSys 2024).

Source: github.com/microsoft/vidur, data/processed_traces. Length traces have no ``arrived_at``: then the scenario's
arrivals are used. Times are seconds.
"""

from __future__ import annotations

from pathlib import Path

from loratory.scenarios.traces.format import Format, Head, ReadOptions
from loratory.scenarios.traces.layout import Layout
from loratory.scenarios.traces.rows import read_rows
from loratory.scenarios.traces.table import TraceTable


def read(path: Path, options: ReadOptions) -> TraceTable:
    """The requests of a Vidur trace."""
    own = {"time": "arrived_at", "input": "num_prefill_tokens", "output": "num_decode_tokens"}
    return read_rows(path, options, Layout("vidur", own, needs=("input", "output"), guess=True))


def _recognise(head: Head) -> bool:
    return head.has("num_prefill_tokens", "num_decode_tokens")


FORMAT = Format(
    "vidur",
    "Vidur CSV: arrived_at (s), num_prefill_tokens, num_decode_tokens; arrived_at may be absent",
    _recognise,
    read,
)
