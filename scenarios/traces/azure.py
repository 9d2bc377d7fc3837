"""Azure: the LLM inference traces of Microsoft Azure (2023 and 2024), one CSV row a request.

Source: github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md and 2024.md (Splitwise, ISCA 2024).
Timestamps have seven fractional digits, with a zone in 2024 and none in 2023; there is no tenant and no adapter.
"""

from __future__ import annotations

from pathlib import Path

from scenarios.traces.files import Source, read_frame, table_of
from scenarios.traces.format import Format, Head, ReadOptions
from scenarios.traces.table import TraceTable

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read(path: Path, options: ReadOptions) -> TraceTable:
    """The requests of an Azure LLM trace."""
    source = Source(path, read_frame(path)).having(_COLUMNS, "azure")
    return table_of(
        "azure",
        path,
        time=source.times("TIMESTAMP", None),
        prompt=source.tokens("ContextTokens"),
        output=source.tokens("GeneratedTokens"),
    )


def _recognise(head: Head) -> bool:
    return head.has(*_COLUMNS)


FORMAT = Format("azure", "Azure LLM inference 2023/2024 CSV: TIMESTAMP,ContextTokens,GeneratedTokens", _recognise, read)
