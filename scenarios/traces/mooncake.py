"""Mooncake: the traces of Kimi's serving platform (FAST 2025), one JSON object a line.

Source: github.com/kvcache-ai/Mooncake, FAST25-release/traces. ``timestamp`` is in milliseconds; ``hash_ids`` name the
prompt's blocks of 512 tokens, equal ids meaning equal prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scenarios.traces.files import Source, read_frame, table_of
from scenarios.traces.format import Format, Head, ReadOptions
from scenarios.traces.table import TraceTable
from serving.workload import Floats

BLOCK_TOKENS = 512
_COLUMNS = ("timestamp", "input_length", "output_length")


def read(path: Path, options: ReadOptions) -> TraceTable:
    """The requests of a Mooncake trace.

    With ``prefix_cache`` a prompt's leading blocks that an earlier request had count as cached, as if the prefix cache
    had no limit; at least one token stays to be computed.
    """
    source = Source(path, read_frame(path)).having(_COLUMNS, "mooncake")
    time, prompt = source.times("timestamp", "ms"), source.tokens("input_length")
    cached = None
    if options.prefix_cache:
        blocks = source.having(("hash_ids",), "mooncake with prefix_cache").frame["hash_ids"].tolist()
        cached = _cached(time, prompt, blocks)
    there = set(source.frame.columns)
    return table_of(
        "mooncake",
        path,
        time=time,
        prompt=prompt,
        output=source.tokens("output_length"),
        cached=cached,
        session=source.labels("session_id") if "session_id" in there else None,
        delay=source.delays("delay", "ms") if {"session_id", "delay"} <= there else None,
        priority=source.integers("priority") if "priority" in there else None,
    )


def _cached(time: Floats, prompt: Floats, blocks: Sequence[Sequence[int]]) -> Floats:
    seen: set[int] = set()
    cached = np.zeros(len(time))
    for row in np.argsort(time, kind="stable"):
        ids = blocks[row] if isinstance(blocks[row], list | tuple | np.ndarray) else ()
        hits = next((i for i, block in enumerate(ids) if block not in seen), len(ids))
        cached[row] = max(0.0, min(hits * BLOCK_TOKENS, prompt[row] - 1))
        seen.update(ids)
    return cached


def _recognise(head: Head) -> bool:
    return head.has(*_COLUMNS) and "adapter" not in head.columns


FORMAT = Format(
    "mooncake",
    "Mooncake JSONL: timestamp (ms), input_length, output_length, hash_ids (512-token blocks)",
    _recognise,
    read,
)
