"""Vidur: the request traces and length traces of the Vidur simulator (MLSys 2024).

Source: github.com/microsoft/vidur, data/processed_traces. Length traces have no ``arrived_at``: the scenario's arrivals
then say when requests come.
"""

from __future__ import annotations

from pathlib import Path

from scenarios.traces.files import Source, read_frame, table_of
from scenarios.traces.format import Format, Head, ReadOptions
from scenarios.traces.table import TraceTable

_LENGTHS = ("num_prefill_tokens", "num_decode_tokens")


def read(path: Path, options: ReadOptions) -> TraceTable:
    """The requests of a Vidur trace, times in seconds."""
    source = Source(path, read_frame(path)).having(_LENGTHS, "vidur")
    return table_of(
        "vidur",
        path,
        time=source.times("arrived_at", "s") if "arrived_at" in source.frame.columns else None,
        prompt=source.tokens("num_prefill_tokens"),
        output=source.tokens("num_decode_tokens"),
    )


def _recognise(head: Head) -> bool:
    return head.has(*_LENGTHS)


FORMAT = Format(
    "vidur",
    "Vidur CSV: arrived_at (s), num_prefill_tokens, num_decode_tokens; arrived_at may be absent",
    _recognise,
    read,
)
