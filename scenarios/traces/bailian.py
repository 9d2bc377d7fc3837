"""Bailian: the traces of Alibaba's Bailian platform (Qwen, ATC 2025), one JSON object per line.

Source: github.com/alibaba-edu/qwen-bailian-usagetraces-anon. ``timestamp`` is in seconds; ``hash_ids`` name blocks of
16 tokens; ``parent_chat_id`` is the ``chat_id`` of the turn before, -1 for a first turn.
"""

from __future__ import annotations

from pathlib import Path

from loratory.scenarios.traces.format import Format, Head, ReadOptions
from loratory.scenarios.traces.layout import Layout
from loratory.scenarios.traces.rows import read_rows
from loratory.scenarios.traces.table import TraceTable


def read(path: Path, options: ReadOptions) -> TraceTable:
    """The requests of a Bailian trace; a chat and those that continue it are a session."""
    own = {"time": "timestamp", "input": "input_length", "output": "output_length", "hash_ids": "hash_ids"}
    parent = ("chat_id", "parent_chat_id")
    needs = ("time", "input", "output")
    return read_rows(path, options, Layout("bailian", own, needs=needs, guess=True, block_tokens=16, parent=parent))


def _recognise(head: Head) -> bool:
    return head.has("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length")


FORMAT = Format(
    "bailian",
    "Bailian JSONL: chat_id, parent_chat_id, timestamp (s), input_length, output_length, hash_ids (16-token blocks)",
    _recognise,
    read,
)
