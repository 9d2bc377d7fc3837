"""Known: the known trace formats, and which one a file has."""

from __future__ import annotations

from pathlib import Path

from loratory.errors import InputError, did_you_mean, several, shortened
from loratory.scenarios.traces import (
    azure,
    azure_functions,
    bailian,
    burstgpt,
    generic,
    gentd,
    mooncake,
    servegen,
    vidur,
)
from loratory.scenarios.traces.files import column_names, require
from loratory.scenarios.traces.format import Format, Head, ReadOptions
from loratory.scenarios.traces.table import TraceTable


def formats() -> tuple[Format, ...]:
    """Every format, in the order in which they are tried on an unnamed file; generic is last."""
    return (
        azure.FORMAT,
        burstgpt.FORMAT,
        vidur.FORMAT,
        gentd.FORMAT,
        azure_functions.FORMAT,
        bailian.FORMAT,
        mooncake.FORMAT,
        servegen.FORMAT,
        generic.FORMAT,
    )


def detect(path: Path, named: bool = False) -> Format:
    """The format of a file or folder. Raises `InputError` for an unknown format.

    With ``named``, its columns are named elsewhere, so an unknown file of rows is generic.
    """
    require(path)
    packed = path.is_dir() or path.name.endswith((".tgz", ".tar.gz", ".tar"))
    head = Head(path, () if packed else column_names(path))
    for entry in formats():
        if entry.recognise(head):
            return entry
    if named and not packed:
        return generic.FORMAT
    columns = f" (columns {several((shortened(name, 40) for name in head.columns), 8)})" if head.columns else ""
    if len(head.columns) == 1 and any(mark in head.columns[0] for mark in ";\t|"):
        raise InputError(
            f"{path} has one column, {shortened(head.columns[0], 60)!r}, because no commas separate its "
            "columns: save it with commas"
        )
    raise InputError(f"{path} is not in a known trace format{columns}: set format, or name its columns with columns")


def format_named(name: str) -> Format:
    """The format of that name. Raises `InputError` naming the nearest."""
    for entry in formats():
        if entry.name == name:
            return entry
    names = [entry.name for entry in formats()]
    hint = did_you_mean(name, names, f"choose one of {', '.join(names)}")
    raise InputError(f"trace format {name!r} is unknown; {hint}")


def format_of(path: Path, format: str | None, options: ReadOptions) -> Format:
    """The format of that name, or else the file's own."""
    named = any(name is not None for name in options.columns.model_dump().values())
    return detect(path, named) if format is None else format_named(format)


def read_trace(path: Path | str, format: str | None = None, options: ReadOptions | None = None) -> TraceTable:
    """Every row of a trace, in the order of the file; `clean` makes it ready to replay.

    Raises `InputError`, naming the file and, if possible, the line, for a trace that is missing, empty or broken, and
    for an option that its format does not read.
    """
    path = Path(path)
    options = options or ReadOptions()
    chosen = format_of(path, format, options)
    return chosen.read(require(path), options)
