"""Terminal: how commands print tables, JSON, errors and progress; plain text in a pipe."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from shutil import get_terminal_size
from textwrap import fill
from typing import Annotated, Any

import typer

from loratory.errors import error_line

Json = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]

kept_when_interrupted: list[str] = []
"""What a command has kept when it is interrupted, as a sentence; empty where nothing was written."""

_WIDEST = 10_000
"""Columns that a line in a pipe may have."""

_LEAST_NAMES = 12
"""Columns that names in front of numbers have in any case."""

_EVERY_S = 10.0
"""Least number of seconds between two lines of progress in a pipe."""


def complain(text: str) -> None:
    """One line on stderr; see `loratory.errors.error_line`."""
    print(error_line(text), file=sys.stderr)


def width() -> int:
    """Columns to print in: the terminal's; in a pipe the variable COLUMNS, or 80."""
    return max(40, get_terminal_size((80, 24)).columns)


def table_width() -> int:
    """Columns that `show` has for a table: `width`, but at least 160 in a pipe without COLUMNS."""
    return width() if sys.stdout.isatty() or "COLUMNS" in os.environ else max(width(), 160)


def say(text: str) -> None:
    """Print a sentence: wrapped in a terminal or to COLUMNS, on one line in a pipe without COLUMNS."""
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    indent = "  " if text.startswith(("note", "next", "SLO")) else ""
    print(
        fill(text, width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        if narrow
        else text
    )


def show(thing: Any, whole: bool = False) -> None:
    """Print something of rich's: in a pipe at least 160 columns wide, and with ``whole`` wide enough to cut nothing.

    The variable COLUMNS, where it is set, overrides these widths.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    if not console.is_terminal and (whole or "COLUMNS" not in os.environ):
        wide = Console(width=_WIDEST)
        needed = Measurement.get(wide, wide.options, thing).maximum if whole else 0
        console = Console(width=max(console.width, 160, needed))
    console.print(thing)


def text_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: int = 1,
    tight: bool = False,
) -> Any:
    """A table of texts; all but the first ``left`` columns are numbers, aligned right and never folded.

    ``tight``: one space between columns instead of three. The first cells of rows are folded where numbers need the
    room, and beside other texts where they take more than half of the width.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0) if tight else (0, 1))
    widest = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    gaps = len(heads) + 1 + (0 if tight else 2 * (len(heads) - 1))
    # The first column has a width of its own: rich would take from the widest what is too much, which only the others
    # can give. It would then cut the table off at the right. Where the others are numbers, they are not cut either.
    least = width() // 2 if left > 1 else _LEAST_NAMES
    names = min(widest[0], max(least, table_width() - gaps - sum(widest[1:])))
    for place, head in enumerate(heads):
        numbers = place >= left
        justify: Any = "right" if numbers else "left"
        own = names if place == 0 else None
        table.add_column(Text(head), justify=justify, no_wrap=numbers, overflow="fold", width=own)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    return table


def dump(value: Any) -> None:
    """JSON on stdout."""
    print(json.dumps(value, indent=2))


@contextmanager
def progress(verb: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yields a function to call with (what, done, total): a bar on stderr; a line now and then if that is a pipe.

    Both tell how long the rest will take, as long as what was done so far.
    """
    if not sys.stderr.isatty():
        yield _lines(verb)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, completed=done, total=total, description=what)


def _lines(verb: str) -> Callable[[str, int, int], None]:
    """Progress in a pipe: one line on stderr every `_EVERY_S` seconds, the first after `_EVERY_S` seconds."""
    begun = last = time.monotonic()
    known: int | None = None  # what was done when this began: a plan that goes on has some

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last, known
        known = done - 1 if known is None else known
        now = time.monotonic()
        if now - last >= _EVERY_S and done < total:
            last = now
            left_s = (now - begun) / (done - known) * (total - done)
            print(f"{verb}: {done} of {total} ({what}, about {left_s:.0f} s left)", file=sys.stderr, flush=True)

    return tell
