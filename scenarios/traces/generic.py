"""Generic: any CSV, JSON Lines or Parquet of requests, its columns named in the scenario or by their usual names."""

from __future__ import annotations

from pathlib import Path

from scenarios.traces.files import Source, read_frame, table_of
from scenarios.traces.format import Format, Head, ReadOptions
from scenarios.traces.table import TraceTable
from serving.errors import InputError

USUAL: dict[str, tuple[str, ...]] = {
    "time": ("timestamp_s", "arrival_s", "arrival", "arrived_at", "timestamp_ms", "timestamp", "time", "arrival_time"),
    "input": ("input_tokens", "input_length", "prompt_tokens", "num_prefill_tokens", "context_tokens", "prompt_len"),
    "output": ("output_tokens", "output_length", "completion_tokens", "num_decode_tokens", "generated_tokens"),
    "adapter": ("adapter", "lora_name", "lora", "adapter_id", "lora_id"),
    "client": ("client", "client_id", "user", "user_id"),
    "tenant": ("tenant", "tenant_id", "org"),
    "cached": ("cached_tokens",),
    "session": ("session_id", "session", "conversation_id"),
    "delay": ("delay", "delay_s", "delay_ms"),
    "priority": ("priority",),
}
"""Names each column is looked for under, best first; case does not matter."""


def read(path: Path, options: ReadOptions) -> TraceTable:
    """The requests of a file with a column a quantity.

    Without a time, or without lengths, the scenario has to say them. Times are numbers in ``time_unit`` (seconds, or
    milliseconds where the column's name ends in _ms) or dates. Raises `InputError` for a column that is not there, or a
    file in which none can be recognised.
    """
    source = Source(path, read_frame(path))
    columns = _mapping(source, options)
    if not columns:
        known = ", ".join(map(str, source.frame.columns))
        raise InputError(f"{path}: no column is recognised (it has {known}): name them with workload.columns")
    time = columns.get("time")
    unit = options.time_unit or ("ms" if time is not None and time.lower().endswith("_ms") else "s")
    return table_of(
        "generic",
        path,
        time=None if time is None else source.times(time, unit),
        prompt=source.tokens(columns["input"]) if "input" in columns else None,
        output=source.tokens(columns["output"]) if "output" in columns else None,
        cached=source.tokens(columns["cached"]) if "cached" in columns else None,
        adapter=source.labels(columns["adapter"]) if "adapter" in columns else None,
        client=source.labels(columns["client"]) if "client" in columns else None,
        tenant=source.labels(columns["tenant"]) if "tenant" in columns else None,
        session=source.labels(columns["session"]) if "session" in columns else None,
        delay=source.delays(columns["delay"], unit) if "delay" in columns else None,
        priority=source.integers(columns["priority"]) if "priority" in columns else None,
    )


def _mapping(source: Source, options: ReadOptions) -> dict[str, str]:
    """Which column holds each quantity: what the options say, else a usual name that no other quantity uses."""
    given = {key: name for key, name in options.columns.model_dump().items() if name is not None}
    source.having(tuple(given.values()), "the generic format as workload.columns says")
    there = {str(name).lower(): str(name) for name in source.frame.columns}
    found = dict(given)
    for key, names in USUAL.items():
        usual = next((there[name] for name in names if name in there and there[name] not in found.values()), None)
        if key not in found and usual is not None:
            found[key] = usual
    return found


def _recognise(head: Head) -> bool:
    columns = {name.lower() for name in head.columns}
    return any(columns & set(USUAL[key]) for key in ("time", "input", "output", "adapter"))


FORMAT = Format(
    "generic",
    "any CSV, JSON Lines or Parquet with a column a quantity: time, input, output, adapter, ...",
    _recognise,
    read,
)
