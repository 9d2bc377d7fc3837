"""Known: the trace formats there are, and which one a file has."""

from __future__ import annotations

import tarfile
from pathlib import Path

from scenarios.fields import nearest
from scenarios.traces import azure, azure_functions, burstgpt, generic, gentd, mooncake, servegen, vidur
from scenarios.traces.files import column_names, require
from scenarios.traces.format import Format, Head, ReadOptions
from scenarios.traces.table import TraceTable
from serving.errors import InputError


def formats() -> tuple[Format, ...]:
    """Every format, in the order in which they are tried on an unnamed file; generic is last."""
    return (
        azure.FORMAT,
        burstgpt.FORMAT,
        vidur.FORMAT,
        gentd.FORMAT,
        azure_functions.FORMAT,
        mooncake.FORMAT,
        servegen.FORMAT,
        generic.FORMAT,
    )


def detect(path: Path) -> Format:
    """The format of a file or folder. Raises `InputError` when it is none that is known."""
    require(path)
    packed = path.is_dir() or (path.suffix in (".tgz", ".tar", ".gz") and tarfile.is_tarfile(path))
    head = Head(path, () if packed else column_names(path))
    for entry in formats():
        if entry.recognise(head):
            return entry
    columns = f" (columns {', '.join(head.columns[:8])})" if head.columns else ""
    raise InputError(
        f"{path}: is no trace format that is known{columns}: say which with format, or name its columns with "
        "workload.columns and format: generic"
    )


def format_named(name: str) -> Format:
    """The format of that name. Raises `InputError` naming the nearest."""
    for entry in formats():
        if entry.name == name:
            return entry
    raise InputError(f"trace format {name!r}: unknown; {nearest(name, [entry.name for entry in formats()])}")


def read_trace(path: Path | str, format: str | None = None, options: ReadOptions | None = None) -> TraceTable:
    """Every row of a trace, in the order of the file; `clean` makes it ready to replay.

    Raises `InputError`, naming the file and where it can the line, for a trace that is missing, empty or broken.
    """
    path = Path(path)
    options = options or ReadOptions()
    if format is None:
        named = options.columns.time or options.columns.input or options.columns.output
        chosen = generic.FORMAT if named and path.is_file() else detect(path)
    else:
        chosen = format_named(format)
    return chosen.read(require(path), options)
