"""Mooncake: the traces of Kimi's serving platform (FAST 2025), one JSON object per line.

Source: github.com/kvcache-ai/Mooncake, FAST25-release/traces. ``timestamp`` is in milliseconds; ``hash_ids`` name the
prompt's blocks of 512 tokens, equal ids meaning equal prefixes. AIPerf and Dynamo write rows like these with a
``session_id``, whose later turns have a ``delay`` (ms) instead of a ``timestamp``.
"""

from __future__ import annotations

from pathlib import Path

from loratory.scenarios.traces.format import Format, Head, ReadOptions
from loratory.scenarios.traces.layout import Layout
from loratory.scenarios.traces.rows import read_rows
from loratory.scenarios.traces.table import TraceTable


def read(path: Path, options: ReadOptions) -> TraceTable:
    """The requests of a Mooncake trace, and the blocks of their prompts if they are wanted."""
    own = {"time": "timestamp", "input": "input_length", "output": "output_length", "hash_ids": "hash_ids"}
    own |= {"session": "session_id", "delay": "delay"}
    layout = Layout("mooncake", own, needs=("input", "output"), unit="ms", guess=True, block_tokens=512)
    return read_rows(path, options, layout)


def _recognise(head: Head) -> bool:
    timed = any(head.has(name) for name in ("timestamp", "session_id", "delay"))
    return head.has("input_length", "output_length") and timed and "adapter" not in head.columns


FORMAT = Format(
    "mooncake",
    "Mooncake JSONL: timestamp (ms), input_length, output_length, hash_ids (512-token blocks)",
    _recognise,
    read,
)
