"""BurstGPT: ChatGPT and GPT-4 use at a university (KDD 2025), versions 1 to 3.

Source: github.com/HPMLL/BurstGPT. Columns are read by name, because version 3 inserts "Session ID" and "Elapsed time".
Rows with 0 response tokens are failures. The model is the client, the session the tenant.
"""

from __future__ import annotations

from pathlib import Path

from scenarios.traces.files import Source, read_frame, table_of
from scenarios.traces.format import Format, Head, ReadOptions
from scenarios.traces.table import TraceTable

_COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens")


def read(path: Path, options: ReadOptions) -> TraceTable:
    """The requests of a BurstGPT trace, times in seconds."""
    source = Source(path, read_frame(path)).having(_COLUMNS, "burstgpt")
    return table_of(
        "burstgpt",
        path,
        time=source.times("Timestamp", "s"),
        prompt=source.tokens("Request tokens"),
        output=source.tokens("Response tokens"),
        client=source.labels("Model"),
        tenant=source.labels("Session ID") if "Session ID" in source.frame.columns else None,
    )


def _recognise(head: Head) -> bool:
    return head.has(*_COLUMNS)


FORMAT = Format(
    "burstgpt", "BurstGPT v1-v3 CSV, by column name; client = Model, tenant = Session ID (v3)", _recognise, read
)
