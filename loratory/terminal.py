"""Terminal: how commands print tables, JSON, complaints and progress; in a pipe there is no progress and no colour."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]


def complain(text: str) -> None:
    """One line on stderr."""
    print("loratory: " + " ".join(text.split()), file=sys.stderr)


def show(thing: Any) -> None:
    """Something rich can print; at least 160 columns wide in a pipe."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 160))
    console.print(thing)


def dump(value: Any) -> None:
    """JSON on stdout."""
    print(json.dumps(value, indent=2))


@contextmanager
def progress(verb: str, quiet: bool = False) -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar on stderr where that is a terminal: call what comes with (what, done, total). None in a pipe."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, completed=done, total=total, description=what)
