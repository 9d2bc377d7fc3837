"""traces_cli: the commands ``loratory traces ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loratory.terminal import Json, dump, show
from serving.errors import InputError

app = typer.Typer(help="List trace formats, check and convert traces.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _traces(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_traces()


@app.command("list")
def list_traces(as_json: Json = False) -> None:
    """List the trace formats Loratory reads."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from scenarios.traces import formats

    if as_json:
        dump([{"name": entry.name, "description": entry.description} for entry in formats()])
        return
    table = Table("format", "what it is", box=SIMPLE_HEAD, pad_edge=False)
    for entry in formats():
        table.add_row(entry.name, entry.description)
    show(table)


@app.command("check")
def check_trace(
    file: Annotated[Path, typer.Argument(help="a trace file or folder")],
    format: Annotated[str | None, typer.Option("--format", help="by default found out from the file")] = None,
    as_json: Json = False,
) -> None:
    """Report rows, span, rate, burstiness, ties, failures and adapter popularity of a trace."""
    from rich.table import Table

    from scenarios.traces import check

    report = check(file, format)
    if as_json:
        dump(report.as_dict())
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in report.rows():
        table.add_row(name, value)
    show(table)


@app.command("convert")
def convert_trace(
    file: Annotated[Path, typer.Argument(help="a trace file or folder")],
    out: Annotated[Path, typer.Argument(help="a .csv, .jsonl or .parquet file in the generic format")],
    format: Annotated[str | None, typer.Option("--format", help="by default found out from the file")] = None,
    window: Annotated[
        tuple[float, float] | None, typer.Option(help="for fits (ServeGen): draw requests from T0 to T1 seconds")
    ] = None,
    rate_scale: Annotated[float, typer.Option("--rate-scale", help="for fits: multiply their rate")] = 1.0,
) -> None:
    """Convert a trace to the generic format."""
    from scenarios.traces import ReadOptions, convert

    if not rate_scale > 0:
        raise InputError(f"--rate-scale is {rate_scale:g}: it is above 0")
    table = convert(file, out, format, ReadOptions(window=window, rate_scale=rate_scale))
    print(f"{out}: {len(table)} rows")
    for note in table.notes:
        print(f"note: {note}")
