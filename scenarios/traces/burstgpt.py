"""BurstGPT: ChatGPT and GPT-4 use at a university (KDD 2025), versions 1 to 3.

Source: github.com/HPMLL/BurstGPT. Columns are read by name, because version 3 inserts "Session ID" and "Elapsed time".
Rows with 0 response tokens are failures. The model is the client, the session the tenant. Times are seconds.
"""

from __future__ import annotations

from pathlib import Path

from loratory.scenarios.traces.format import Format, Head, ReadOptions
from loratory.scenarios.traces.layout import Layout
from loratory.scenarios.traces.rows import read_rows
from loratory.scenarios.traces.table import TraceTable


def read(path: Path, options: ReadOptions) -> TraceTable:
    """The requests of a BurstGPT trace."""
    own = {"time": "Timestamp", "client": "Model", "input": "Request tokens", "output": "Response tokens"}
    layout = Layout("burstgpt", own | {"tenant": "Session ID"}, needs=("time", "client", "input", "output"))
    return read_rows(path, options, layout)


def _recognise(head: Head) -> bool:
    return head.has("Timestamp", "Model", "Request tokens", "Response tokens")


FORMAT = Format(
    "burstgpt", "BurstGPT v1-v3 CSV, by column name; client = Model, tenant = Session ID (v3)", _recognise, read
)
