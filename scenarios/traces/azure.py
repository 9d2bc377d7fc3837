"""Azure: the LLM inference traces of Microsoft Azure (2023 and 2024), one CSV row per request.

Source: github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md and 2024.md (Splitwise, ISCA 2024).
Timestamps have seven fractional digits, with a zone in 2024 and none in 2023; there is no tenant and no adapter.
"""

from __future__ import annotations

from pathlib import Path

from loratory.scenarios.traces.format import Format, Head, ReadOptions
from loratory.scenarios.traces.layout import Layout
from loratory.scenarios.traces.rows import read_rows
from loratory.scenarios.traces.table import TraceTable


def read(path: Path, options: ReadOptions) -> TraceTable:
    """The requests of an Azure LLM trace."""
    own = {"time": "TIMESTAMP", "input": "ContextTokens", "output": "GeneratedTokens"}
    return read_rows(path, options, Layout("azure", own, needs=("time", "input", "output"), guess=True))


def _recognise(head: Head) -> bool:
    return head.has("TIMESTAMP", "ContextTokens", "GeneratedTokens")


FORMAT = Format("azure", "Azure LLM inference 2023/2024 CSV: TIMESTAMP,ContextTokens,GeneratedTokens", _recognise, read)
