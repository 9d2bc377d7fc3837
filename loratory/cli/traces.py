"""traces: the commands ``loratory traces ...``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loratory.cli.terminal import Json, dump, say, show
from loratory.errors import InputError, did_you_mean, several

if TYPE_CHECKING:
    from loratory.scenarios.traces import ReadOptions

_Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="KEY=COLUMN",
        help="which column holds a key, such as adapter=lora; may be repeated or joined by commas",
    ),
]
_TimeUnit = Annotated[
    str | None, typer.Option("--time-unit", help="unit of the times: s, ms, us or ns; by default detected")
]
_BlockTokens = Annotated[
    int | None,
    typer.Option("--block-tokens", min=1, help="number of tokens in a block of hash_ids; by default detected"),
]

app = typer.Typer(help="List trace formats, check traces and convert them.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _traces(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_traces()


@app.command("list")
def list_traces(as_json: Json = False) -> None:
    """List the trace formats Loratory reads."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from loratory.scenarios.traces import formats

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
    format: Annotated[str | None, typer.Option("--format", help="the trace's format; by default detected")] = None,
    columns: _Columns = None,
    time_unit: _TimeUnit = None,
    block_tokens: _BlockTokens = None,
    as_json: Json = False,
) -> None:
    """Report what a trace holds.

    Prints its rows, time span, rate, burstiness, ties, failures and how requests spread over adapters.
    """
    from rich.table import Table

    from loratory.scenarios.traces import check

    report = check(file, format, _options(columns, time_unit, block_tokens))
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
    out: Annotated[Path, typer.Argument(help="the file to write: .csv, .jsonl or .parquet")],
    format: Annotated[str | None, typer.Option("--format", help="the trace's format; by default detected")] = None,
    window: Annotated[
        tuple[float, float] | None,
        typer.Option(help="keep requests between T0 and T1 seconds (ServeGen: draw them there)"),
    ] = None,
    rate_scale: Annotated[float, typer.Option("--rate-scale", help="multiply the request rate by this number")] = 1.0,
    columns: _Columns = None,
    time_unit: _TimeUnit = None,
    block_tokens: _BlockTokens = None,
) -> None:
    """Convert a trace to the generic format."""
    from loratory.scenarios.traces import convert

    if not rate_scale > 0:
        raise InputError(f"--rate-scale is {rate_scale:g}, but should be above 0: correct it")
    options = replace(_options(columns, time_unit, block_tokens), window=window, rate_scale=rate_scale)
    table = convert(file, out, format, options)
    print(f"{out}: {len(table)} rows")
    for note in table.notes:
        say(f"note: {note}")


def _options(columns: list[str] | None, time_unit: str | None, block_tokens: int | None) -> ReadOptions:
    from loratory.scenarios.traces import ReadOptions
    from loratory.scenarios.traces.columns import ColumnsSpec
    from loratory.scenarios.traces.times import UNITS

    if time_unit is not None and time_unit not in UNITS:
        raise InputError(f"--time-unit is {time_unit!r}, which is not a unit: use one of {several(UNITS)}")
    named: dict[str, str] = {}
    for pair in (pair for text in columns or () for pair in text.split(",")):
        key, equals, column = (part.strip() for part in pair.partition("="))
        if not equals or not column:
            raise InputError(f"--columns has {pair!r}: write KEY=COLUMN, for example adapter=lora")
        if key not in ColumnsSpec.model_fields:
            hint = did_you_mean(key, ColumnsSpec.model_fields, f"known keys: {several(ColumnsSpec.model_fields, 11)}")
            raise InputError(f"--columns has the key {key!r}: {hint}")
        if key in named:
            raise InputError(f"--columns names {key} twice: keep one of them")
        named[key] = column
    return ReadOptions(columns=ColumnsSpec(**named), time_unit=time_unit, block_tokens=block_tokens)
