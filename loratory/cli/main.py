"""main: the ``loratory`` command. Exit codes: 0 done, 1 a run or a check failed, 2 bad input, 3 an SLO missed, or
128 + a signal's number."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from loratory.cli.adapters import app as adapters_app
from loratory.cli.check_policy import check_policy_command
from loratory.cli.check_router import check_router_command
from loratory.cli.guests import placements_command, policies_command, routers_command
from loratory.cli.models import app as models_app
from loratory.cli.plan import plan_command
from loratory.cli.profile import profile_command
from loratory.cli.reproduce import reproduce_command
from loratory.cli.run import run_command
from loratory.cli.scenarios import app as scenarios_app
from loratory.cli.serve import serve_command
from loratory.cli.shadow import app as shadow_app
from loratory.cli.swap import swap_command
from loratory.cli.terminal import Json, complain, dump, kept_when_interrupted, say
from loratory.cli.traces import app as traces_app
from loratory.errors import InputError, LoratoryError, shortened
from loratory.experiment.interruption import interruptible
from loratory.serving.guest_errors import unexpected

app = typer.Typer(
    help="A laboratory for multi-LoRA LLM serving: simulate scheduling policies, read reports, size fleets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run_command)
app.command("plan")(plan_command)
app.command("reproduce")(reproduce_command)
app.command("profile")(profile_command)
app.command("serve", context_settings={"allow_extra_args": True})(serve_command)
app.command("check-policy")(check_policy_command)
app.command("check-router")(check_router_command)
app.command("swap")(swap_command)
app.command("policies")(policies_command)
app.command("routers")(routers_command)
app.command("placements")(placements_command)
app.add_typer(adapters_app, name="adapters")
app.add_typer(models_app, name="models")
app.add_typer(scenarios_app, name="scenarios")
app.add_typer(shadow_app, name="shadow")
app.add_typer(traces_app, name="traces")


def main() -> NoReturn:
    """Run the command line; every error is one line on stderr, without a traceback."""
    if not os.environ.get("LORATORY_TRACEBACK"):
        warnings.simplefilter("ignore")  # numpy's, about values so large that the scenario had to lift the limits
        sys.unraisablehook = lambda _: None  # a policy's generator that refuses to end would print a traceback
    with interruptible("SIGTERM", "SIGHUP") as received:
        code = _carry_out(received)
    if received:
        complain(f"interrupted by {signal.Signals(received[0]).name}; {_kept()}")
        code = 128 + received[0]
    sys.exit(code if isinstance(code, int) else 0)


def _carry_out(received: list[int]) -> Any:
    """Run the command. Returns its exit code; prints the line for whatever went wrong."""
    code: Any

    def tell(text: str) -> None:
        if not received:  # a signal is reported once, whatever follows from it
            complain(text)

    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except LoratoryError as error:
        tell(str(error))
        code = error.exit_code
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
        else:
            tell(f"{error.format_message().rstrip('.')}; see {_command(error)} --help")
        code = InputError.exit_code
    except (KeyboardInterrupt, typer.Abort) as error:
        tell(f"interrupted; {_kept()}" if isinstance(error, KeyboardInterrupt) else "input ended")
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        _silence()
        code = 1
    except Exception as error:
        if os.environ.get("LORATORY_TRACEBACK") and not received:
            raise
        if isinstance(error, OSError):
            tell(f"{shortened(str(error), 200)}: free space, or check the path and its permissions")
            code = InputError.exit_code
            if error.filename is None:
                _silence()
        else:
            tell(unexpected(error))
            code = LoratoryError.exit_code
    return code


def _kept() -> str:
    """What an interrupted command leaves."""
    return kept_when_interrupted[-1] if kept_when_interrupted else "nothing was written"


def _command(error: TyperException) -> str:
    """The command whose help explains a wrong line, such as ``loratory scenarios``."""
    names: list[str] = []
    context = getattr(error, "ctx", None)
    while context is not None and context.parent is not None:
        names.insert(0, str(context.info_name))
        context = context.parent
    return " ".join(["loratory", *names])


def _silence() -> None:
    """Send Python's last flush of stdout nowhere: the reader of the pipe is gone."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_version(wanted: bool) -> None:
    if wanted:
        from loratory import __version__
        from loratory.serving.compiling import core

        print(f"loratory {__version__} ({core()})")
        raise typer.Exit


@app.callback()
def _loratory(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and exit", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the command itself; ``--version`` is carried out by its callback."""


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="two or more result folders; the first is the reference")],
    metric: Annotated[
        list[str] | None, typer.Option("--metric", "-m", help="show only this metric; may be repeated")
    ] = None,
    as_json: Json = False,
) -> int:
    """Compare result folders with the first of them.

    Shows the settings that differ, then the difference of each metric with its 95 % interval over seeds. If the first
    folder is a simulation and the others are measurements of the same scenario, the differences are also checked
    against limits; the exit code is 1 if one exceeds its limit.
    """
    from loratory.reports.compare import compare as compare_folders

    found = compare_folders(folders)
    known = {difference.metric for difference in found.differences}
    for name in metric or []:
        if name not in known:
            raise InputError(f"--metric {name!r} is not in the summaries: choose from {', '.join(sorted(known))}")
    agreed = None
    if found.backends[0] == "sim" and set(found.backends[1:]) == {"executor"}:
        from loratory.reports.agreement import agreement

        agreed = agreement(folders[0], folders[1:])
    if as_json:
        dump(found.as_dict() | ({} if agreed is None else {"agreement": agreed.as_dict()}))
    else:
        from loratory.cli.comparison_text import tell_agreement, tell_comparison

        tell_comparison(found, metric or ())
        if agreed is not None:
            tell_agreement(agreed)
    if agreed is not None and not agreed.holds:
        complain("the simulation exceeds a limit: see the rows marked NO")
        return LoratoryError.exit_code
    return 0


@app.command()
def replay(
    folder: Annotated[
        Path, typer.Argument(help="a result folder of loratory run --on executor, or the folder of serve --record")
    ],
    as_json: Json = False,
) -> int:
    """Replay recorded runs in simulation and compare decisions.

    The recording holds the times that an executor run, or a server, measured; of a server also the policies that were
    put in, the adapters that came and went, and what was ordered. Exit code 1: a decision differs.
    """
    from loratory.experiment.replay import replay_folder

    found = replay_folder(folder)
    if as_json:
        dump([asdict(run) for run in found])
    else:
        for run in found:
            same = f"line {run.differs} differs: {run.recorded} / {run.again}" if run.differs else "all equal"
            print(f"{run.policy}, seed {run.seed}: {run.steps} steps, {run.decisions} decisions, {same}")
            for note in run.notes:
                say(note)
    return 1 if any(run.differs for run in found) else 0


if __name__ == "__main__":
    main()
