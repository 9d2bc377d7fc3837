"""run: the command ``loratory run``, for one scenario or a sweep over values of its keys."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from loratory.cli.run_words import MISSED_SLO, default_target, need_slo, tell_setup
from loratory.cli.terminal import Json, complain, dump, progress, say, show, width
from loratory.errors import InputError, LoratoryError, several
from loratory.reports.number_text import listed
from loratory.serving.policy_watch import POLICY_TIMEOUT_S


def run_command(
    scenario: Annotated[str, typer.Argument(help="a scenario file, or the name of a library scenario")],
    on: Annotated[str, typer.Option("--on", help="where to run: sim (simulator) or executor (this machine)")] = "sim",
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", "-p", help="run this policy instead of the scenario's; may be repeated"),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="set a key of the scenario, such as engine.max_loras=8; may be repeated; several values, such as "
            "engine.max_loras=8,16,32, run every combination",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="result folder; by default results/NAME")] = None,
    time_scale: Annotated[
        float | None, typer.Option("--time-scale", help="with --on executor: multiply the request rate by this number")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="number of processes that share the runs; by default as many as cores, or 1 for short runs",
        ),
    ] = None,
    decisions: Annotated[bool, typer.Option(help="write decisions.jsonl")] = True,
    policy_timeout: Annotated[
        float, typer.Option("--policy-timeout", help="seconds that a policy may take to decide or to be imported")
    ] = POLICY_TIMEOUT_S,
    unbounded: Annotated[
        bool, typer.Option("--unbounded", help="lift the limits on sizes, which catch typing errors")
    ] = False,
    regret: Annotated[
        bool, typer.Option("--regret", help="also run a policy that knows the future, and show how far the others are")
    ] = False,
    require_slo: Annotated[
        bool, typer.Option("--require-slo", help="exit with code 3 if a policy misses the SLO")
    ] = False,
    as_json: Json = False,
) -> int:
    """Run a scenario with each of its policies and write a report."""
    if on not in ("sim", "executor"):
        raise InputError(f"--on is {on!r}, which is not a backend: use sim or executor")
    if on == "executor" and (jobs or 1) > 1:
        raise InputError("--jobs needs simulated runs, but --on is executor: remove --jobs")
    if on == "executor" and regret:
        raise InputError(
            "--regret needs simulated runs, because nothing on an executor knows the future: remove --regret, or --on"
        )
    settings = [*(override or [])]
    if time_scale is not None:
        if on != "executor":
            raise InputError("--time-scale needs --on executor: a simulation does not wait for arrivals, so remove it")
        settings.append(f"executor.time_scale={time_scale}")
    from loratory.experiment.swept_values import is_sweep
    from loratory.scenarios.load import load_scenario

    if is_sweep(settings):
        from loratory.cli.sweep import sweep_command

        return sweep_command(
            scenario,
            settings,
            policy or None,
            out,
            on=on,
            jobs=jobs,
            decisions=decisions,
            policy_timeout_s=policy_timeout,
            unbounded=unbounded,
            regret=regret,
            require_slo=require_slo,
            as_json=as_json,
        )
    from loratory.experiment.run import run_scenario
    from loratory.reports.folder import check_target
    from loratory.reports.outcomes import unserved_runs
    from loratory.reports.target_rows import unmet_words

    loaded = load_scenario(scenario, overrides=settings, policies=policy or None, unbounded=unbounded)
    if require_slo:
        need_slo(loaded.slo)
    target = out or default_target(loaded.name)
    check_target(target)
    # stdout is for results, not for what a policy prints
    with progress("simulating" if on == "sim" else "running") as tell, redirect_stdout(sys.stderr):
        if on == "sim":
            summary = run_scenario(
                loaded,
                target,
                jobs=jobs,
                decisions=decisions,
                progress=tell,
                policy_timeout_s=policy_timeout,
                source=scenario,
                regret=regret,
            )
        else:
            from loratory.experiment.execute import execute_scenario

            summary = execute_scenario(
                loaded,
                target,
                decisions=decisions,
                progress=tell,
                policy_timeout_s=policy_timeout,
                source=scenario,
            )
    if as_json:
        dump(summary)
    else:
        _tell_run(summary, loaded.description, target, require_slo)
    empty = unserved_runs(summary["runs"])
    missed = [run for run in summary["runs"] if run["slo"]["met"] is not True]
    if empty is not None:
        complain(empty)
        return LoratoryError.exit_code
    if require_slo and missed:
        wanted = dict.fromkeys(words for run in missed for words in unmet_words(run))
        which = f"; targets not met: {several(wanted)}" if wanted else ""
        complain(f"these policies missed the SLO: {several(dict.fromkeys(run['policy'] for run in missed))}{which}")
        return MISSED_SLO
    return 0


def _tell_run(summary: dict[str, Any], description: str, target: Path, required: bool) -> None:
    from loratory.cli.tables import summary_tables
    from loratory.reports.bottlenecks import advice_of
    from loratory.reports.fleet_words import fleet_sentences
    from loratory.reports.roll_outs import roll_out_sentences
    from loratory.reports.run_notes import run_notes
    from loratory.reports.target_rows import target_rows

    runs, facts = summary["runs"], summary["setup"]
    if description:
        say(f"{runs[0]['scenario']}: {description}")
    tell_setup(facts)
    for table in summary_tables(summary, width()):
        show(table)
    for row in target_rows(runs):
        say(f"SLO: {row.sentence}")
    seeds = facts["seeds"].partition(";")[0]
    if len(seeds.split(",")) > 1:
        say(f"Metrics are means over seeds {seeds}; ± is half their 95 % interval; request counts are totals.")
    for label, sentences in (("fleet", fleet_sentences(runs)), ("roll-out", roll_out_sentences(runs))):
        told: dict[str, list[str]] = {}  # by what is said, the policies under which it is so
        for policy, text in sentences:
            told.setdefault(text, []).append(policy)
        for text, policies in told.items():
            whose = "" if len(policies) == len(summary["policies"]) else f" ({listed(policies)})"
            say(f"{label}{whose}: {text}")
    if "regret" in summary:
        _tell_regret(summary)
    for names, text in advice_of(runs):
        whose = "" if len(names) == len(summary["policies"]) else f" ({listed(names)})"
        say(f"next{whose}: {text}")
    for text in run_notes(runs):
        say(f"note: {text}")
    if not required and any(run["slo"]["met"] is False for run in runs):
        say("note: a policy missed the SLO; with --require-slo the exit code is then 3")
    print(f"report: {target / 'report.html'}")


def _tell_regret(summary: dict[str, Any]) -> None:
    from loratory.cli.tables import regret_tables
    from loratory.reports.regret import regret_notes, regret_sentences

    say("Distance from the possible:")
    for table in regret_tables(summary, width()):
        show(table)
    for text in regret_sentences(summary["regret"]):
        say(text)
    for text in regret_notes(summary["policies"], summary["regret"]):
        say(f"note: {text}")
