"""check-router: a router in front of random fleets; one line a promise, and what breaks it."""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from loratory.cli.terminal import Json, complain, dump, progress, say
from loratory.errors import InputError, LoratoryError, shortened
from loratory.serving.policy_watch import POLICY_TIMEOUT_S


def check_router_command(
    router: Annotated[str, typer.Argument(help="a router: FILE.py:Class, module:Class or a name, and its parameters")],
    examples: Annotated[int, typer.Option("--examples", "-n", help="number of random fleets to run it in")] = 100,
    seed: Annotated[int, typer.Option("--seed", help="seed of the random fleets")] = 0,
    policy_timeout: Annotated[
        float, typer.Option("--policy-timeout", help="seconds that the router may take to decide or to be imported")
    ] = POLICY_TIMEOUT_S,
    as_json: Json = False,
) -> int:
    """Check that a router of your own keeps every promise.

    A router promises to answer in time with a candidate, that every request is served once, and that the same fleet
    gives the same run. It runs in front of small random fleets, whose reports come at once or late. Exit code 1: it
    breaks a promise.
    """
    try:
        from loratory.testing.check_router import check_router
    except ModuleNotFoundError as error:
        if error.name not in (None, "hypothesis"):
            raise
        raise InputError("check-router needs hypothesis: pip install 'loratory[testing]'") from None
    with progress("checking") as tell, Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        found = check_router(router, examples=examples, seed=seed, timeout_s=policy_timeout, progress=tell)
    if as_json:
        dump(found.as_dict())
    else:
        say(f"{found.router} in {found.examples} small fleets (seed {found.seed}):")
        print()
        for finding in found.findings:
            word = {True: "ok", False: "FAILED", None: "open"}[finding.ok]
            print(f"  {word:<8} {finding.law:<13} {finding.promise}")
        for finding in found.findings:
            if finding.ok is False:
                print()
                say(f"{finding.law}: {finding.found}")
    if found.passed:
        return 0
    broken = [finding.law for finding in found.findings if finding.ok is False]
    complain(f"router {shortened(router, 100)} breaks {len(broken)} of {len(found.findings)}: {', '.join(broken)}")
    return LoratoryError.exit_code
