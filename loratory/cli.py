"""cli: the ``loratory`` command. Exit codes: 0 done, 1 a run failed, 2 bad input, 3 a required SLO was missed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from serving.errors import InputError, LoratoryError

if TYPE_CHECKING:
    from loratory.build import Built
    from scenarios.schema import Scenario

app = typer.Typer(
    help="A laboratory for multi-LoRA LLM serving: simulate scheduling policies, read reports, size fleets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
scenarios_app = typer.Typer(help="List, show, check and describe scenario files.", rich_markup_mode=None)
traces_app = typer.Typer(help="List trace formats, check and convert traces.", rich_markup_mode=None)
app.add_typer(scenarios_app, name="scenarios")
app.add_typer(traces_app, name="traces")

Json = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]
MISSED_SLO = 3


def main() -> NoReturn:
    """Run the command line; every error a user can cause is one line on stderr, without a traceback."""
    try:
        code = app(standalone_mode=False)
    except LoratoryError as error:
        _complain(str(error))
        code = error.exit_code
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
        else:
            _complain(f"{error.format_message().rstrip('.')}; see loratory --help")
        code = InputError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted; nothing was written")
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _complain(text: str) -> None:
    print("loratory: " + " ".join(text.split()), file=sys.stderr)


def _print(thing: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 160))
    console.print(thing)


def _dump(value: Any) -> None:
    print(json.dumps(value, indent=2))


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="a scenario file, or the name of a library scenario")],
    on: Annotated[str, typer.Option("--on", help="backend: sim")] = "sim",
    policy: Annotated[
        list[str] | None, typer.Option("--policy", "-p", help="instead of the scenario's; may be repeated")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, such as engine.max_loras=8; may be repeated")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="result folder; by default results/NAME")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="processes that share the runs")] = 1,
    decisions: Annotated[bool, typer.Option(help="write decisions.jsonl")] = True,
    require_slo: Annotated[bool, typer.Option("--require-slo", help="exit 3 when a policy misses the SLO")] = False,
    as_json: Json = False,
) -> int:
    """Run a scenario under its policies and write a report."""
    if on != "sim":
        raise InputError(f"--on {on} is not available in this version: use --on sim")
    from loratory.run import run_scenario
    from reports.folder import check_target
    from scenarios.load import load_scenario

    given = [*(override or [])]
    loaded = load_scenario(scenario, overrides=given, policies=policy or None)
    _build(scenario, loaded)
    target = out or Path("results") / _slug(loaded.name)
    check_target(target)
    with _progress(as_json) as progress:
        summary = run_scenario(loaded, target, jobs=jobs, decisions=decisions, progress=progress)
    if as_json:
        _dump(summary)
    else:
        _tell_run(summary, loaded.description, target)
    missed = [r["policy"] for r in summary["runs"] if r["slo"]["met"] is False]
    unset = all(r["slo"]["met"] is None for r in summary["runs"])
    if require_slo and unset:
        raise InputError("--require-slo needs a slo section in the scenario: add one, such as slo: {ttft_p99_s: 2.0}")
    if require_slo and missed:
        _complain(f"the SLO was missed by {', '.join(dict.fromkeys(missed))}")
        return MISSED_SLO
    return 0


def _build(reference: str, loaded: Scenario) -> Built:
    """The scenario's fixed parts; what is wrong with them is said with the file's name in front."""
    from loratory.build import build

    try:
        return build(loaded)
    except InputError as error:
        raise InputError(f"{reference}: {error}") from error


def _tell_run(summary: dict[str, Any], description: str, target: Path) -> None:
    from loratory.tables import summary_table

    if description:
        print(f"{summary['runs'][0]['scenario']}: {description}")
    _print(summary_table(summary))
    for warning in dict.fromkeys(w for r in summary["runs"] for w in r.get("warnings", ())):
        print(f"note: {warning}")
    for item in summary["runs"]:
        never = item.get("never_served") or {}
        count = never.get("count", 0) if isinstance(never, dict) else len(never)
        if count:
            print(f"note: {item['policy']} (seed {item['seed']}) never served {count} requests")
    print(f"report: {target / 'report.html'}")


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".-") or "scenario"


class _progress:  # noqa: N801
    """A progress bar on a terminal, nothing in a pipe."""

    def __init__(self, quiet: bool) -> None:
        self._bar: Any = None
        self._task: Any = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("simulating"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )

    def __enter__(self) -> Any:
        if self._bar is None:
            return None
        self._bar.start()
        self._task = self._bar.add_task("", total=None)

        def tell(policy: str, done: int, total: int) -> None:
            self._bar.update(self._task, completed=done, total=total, description=policy)

        return tell

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="two or more result folders; the first is the reference")],
    metric: Annotated[list[str] | None, typer.Option("--metric", "-m", help="only these; may be repeated")] = None,
    as_json: Json = False,
) -> None:
    """Put result folders side by side: differences and 95 % intervals over seeds."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from reports.compare import compare as compare_folders

    found = compare_folders(folders)
    known = {difference.metric for difference in found.differences}
    for name in metric or []:
        if name not in known:
            raise InputError(f"--metric {name!r} is in none of the summaries: choose from {', '.join(sorted(known))}")
    if as_json:
        _dump(found.as_dict())
        return
    heads, rows = found.rows(tuple(metric)) if metric else found.rows()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place < 2 else "right")
    for row in rows:
        table.add_row(*row)
    _print(table)
    for note in found.unmatched:
        print(f"note: {note}")


@app.command()
def policies(
    name: Annotated[str | None, typer.Argument(help="a policy to explain; without it, all are listed")] = None,
    as_json: Json = False,
) -> None:
    """List the scheduling policies, or explain one."""
    from loratory.specs import describe, policy_names
    from loratory.tables import parameters_table, policies_table

    if name is None or name == "list":
        found = [describe(each) for each in policy_names()]
        if as_json:
            _dump([description.as_dict() for description in found])
        else:
            _print(policies_table(found))
            print("every policy also takes evict=lru|lfu|fifo|cost_aware and prefetch=N; explain one: policies NAME")
        return
    one = describe(name)
    if as_json:
        _dump(one.as_dict() | {"text": one.text})
        return
    print(f"{one.name}\n\n{one.text}\n\nsource: {one.source or '-'}")
    _print(parameters_table(one))
    print(f"example: loratory run quickstart --policy {one.name}")


@scenarios_app.callback(invoke_without_command=True)
def _scenarios(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_scenarios()


@scenarios_app.command("list")
def list_scenarios(as_json: Json = False) -> None:
    """List the scenarios that come with Loratory."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from scenarios.catalogue import library

    entries = library()
    if as_json:
        _dump([{"name": entry.name, "description": entry.description} for entry in entries])
        return
    table = Table("scenario", "what it shows", box=SIMPLE_HEAD, pad_edge=False)
    for entry in entries:
        table.add_row(entry.name, entry.description)
    _print(table)


@scenarios_app.command("show")
def show_scenario(name: Annotated[str, typer.Argument(help="a library scenario's name, or a file")]) -> None:
    """Print a scenario file, to copy and change."""
    from scenarios.load import find

    print(find(name).read_text(encoding="utf-8"), end="")


@scenarios_app.command("check")
def check_scenario(
    file: Annotated[str, typer.Argument(help="a scenario file")],
    override: Annotated[list[str] | None, typer.Option("--set", help="key=value; may be repeated")] = None,
    as_json: Json = False,
) -> None:
    """Validate a scenario, its policies and whether its model fits the GPU, without running it."""
    from loratory.specs import policy_factory
    from scenarios.build import build_workload
    from scenarios.load import load_scenario
    from sim.routers import router

    loaded = load_scenario(file, overrides=override or [])
    for spec in loaded.policies:
        policy_factory(spec)
    router(loaded.cluster.router)
    built = _build(file, loaded)
    workload = build_workload(loaded, loaded.seeds[0], built.adapters)
    facts = {
        "scenario": loaded.name,
        "requests": len(workload),
        "adapters": len(built.adapters),
        "runs": len(loaded.policies) * len(loaded.seeds),
        "kv_tokens": built.engine.require_blocks() * built.engine.block_size,
        "notes": list(workload.notes),
    }
    if as_json:
        _dump(facts)
        return
    print(
        f"{file} is valid: {facts['requests']} requests (seed {loaded.seeds[0]}), {facts['adapters']} adapters, "
        f"{facts['runs']} runs, KV cache of {facts['kv_tokens']} tokens a replica"
    )
    for note in workload.notes:
        print(f"note: {note}")


@scenarios_app.command("schema")
def scenario_schema() -> None:
    """Print the JSON Schema of scenario files, for editors."""
    from scenarios.load import json_schema

    _dump(json_schema())


@traces_app.callback(invoke_without_command=True)
def _traces(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_traces()


@traces_app.command("list")
def list_traces(as_json: Json = False) -> None:
    """List the trace formats Loratory reads."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from scenarios.traces import formats

    if as_json:
        _dump([{"name": entry.name, "description": entry.description} for entry in formats()])
        return
    table = Table("format", "what it is", box=SIMPLE_HEAD, pad_edge=False)
    for entry in formats():
        table.add_row(entry.name, entry.description)
    _print(table)


@traces_app.command("check")
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
        _dump(report.as_dict())
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in report.rows():
        table.add_row(name, value)
    _print(table)


@traces_app.command("convert")
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


if __name__ == "__main__":
    main()
