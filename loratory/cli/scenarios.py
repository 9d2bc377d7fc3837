"""scenarios: the commands ``loratory scenarios ...``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from loratory.cli.terminal import Json, dump, say, show
from loratory.errors import InputError, shortened
from loratory.reports.number_text import plural

app = typer.Typer(help="List, show and check scenario files, or print their schema.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _scenarios(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_scenarios()


@app.command("list")
def list_scenarios(as_json: Json = False) -> None:
    """List the scenarios that come with Loratory.

    These are the library, and the scenarios that reproduce published measurements.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from loratory.scenarios.library_index import library, published

    entries = (*library(), *published())
    if as_json:
        dump([{"name": entry.name, "description": entry.description} for entry in entries])
        return
    table = Table("scenario", "what it shows", box=SIMPLE_HEAD, pad_edge=False)
    for entry in entries:
        table.add_row(entry.name, entry.description)
    show(table)


@app.command("show")
def show_scenario(name: Annotated[str, typer.Argument(help="the name of a library scenario, or a file")]) -> None:
    """Print a scenario file, to copy and change."""
    from loratory.scenarios.load import find

    path = find(name)
    try:
        print(path.read_text(encoding="utf-8"), end="")
    except UnicodeDecodeError as error:
        raise InputError(f"{shortened(name, 150)} is not text: give a scenario in YAML") from error


@app.command("check")
def check_scenario(
    file: Annotated[str, typer.Argument(help="a scenario file")],
    override: Annotated[
        list[str] | None, typer.Option("--set", help="set a key, as key=value; may be repeated")
    ] = None,
    unbounded: Annotated[
        bool, typer.Option("--unbounded", help="lift the limits on sizes, which catch typing errors")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a scenario without running it.

    Validates the file and its policies, and checks whether the model fits the GPU.
    """
    from loratory.experiment.notes.late_notes import late_notes
    from loratory.experiment.notes.model_notes import length_notes
    from loratory.experiment.prepare import prepare
    from loratory.scenarios.build import build_workload
    from loratory.scenarios.load import load_scenario

    loaded = load_scenario(file, overrides=override or [], unbounded=unbounded)
    with redirect_stdout(sys.stderr):  # stdout is for results, not for what a policy prints
        built = prepare(loaded, source=file).built
    workload = build_workload(loaded, loaded.seeds[0], built.adapters)
    notes = [*workload.notes, *built.notes, *length_notes(built.engine, workload)]
    notes += late_notes(loaded.cluster, built.roll_outs, workload)
    facts = {
        "scenario": loaded.name,
        "requests": len(workload),
        "adapters": len(built.adapters),
        "runs": len(loaded.policies) * len(loaded.seeds),
        "kv_tokens": built.engine.require_blocks() * built.engine.block_size,
        "notes": notes,
    }
    if as_json:
        dump(facts)
        return
    requests, adapters = plural(len(workload), "request"), plural(len(built.adapters), "adapter")
    runs = plural(len(loaded.policies) * len(loaded.seeds), "run")
    say(
        f"{file} is valid: {requests} (seed {loaded.seeds[0]}), {adapters}, {runs}, "
        f"KV cache of {facts['kv_tokens']:,} tokens per replica"
    )
    for note in notes:
        say(f"note: {note}")


@app.command("schema")
def scenario_schema() -> None:
    """Print the JSON Schema of scenario files, for editors."""
    from loratory.scenarios.load import json_schema

    dump(json_schema())
