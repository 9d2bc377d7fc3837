"""check-policy: a policy against every law, in random worlds; one line a promise, and what breaks it."""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loratory.cli.terminal import Json, complain, dump, progress, say
from loratory.errors import InputError, LoratoryError, shortened
from loratory.reports.number_text import plural
from loratory.serving.policy_watch import POLICY_TIMEOUT_S

if TYPE_CHECKING:
    from loratory.testing.check_policy import PolicyCheck, PromiseResult

_MOST_REFUSALS = 4


def check_policy_command(
    policy: Annotated[str, typer.Argument(help="a policy: FILE.py:Class, module:Class or a name, and its parameters")],
    examples: Annotated[int, typer.Option("--examples", "-n", help="number of random worlds to run it in")] = 100,
    seed: Annotated[int, typer.Option("--seed", help="seed of the random worlds")] = 0,
    policy_timeout: Annotated[
        float, typer.Option("--policy-timeout", help="seconds that the policy may take to decide or to be imported")
    ] = POLICY_TIMEOUT_S,
    as_json: Json = False,
) -> int:
    """Check that a policy of your own keeps every promise.

    A policy promises to be well-formed, to return in time, to serve every request, and to break no law. It runs in
    small random worlds, and in edge cases that authors forget. Exit code 1: it breaks a promise.
    """
    try:
        from loratory.testing.check_policy import check_policy
    except ModuleNotFoundError as error:
        if error.name not in (None, "hypothesis"):
            raise
        raise InputError("check-policy needs hypothesis: pip install 'loratory[testing]'") from None
    with progress("checking") as tell, Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        found = check_policy(policy, examples=examples, seed=seed, policy_timeout_s=policy_timeout, progress=tell)
    if as_json:
        dump(found.as_dict())
    else:
        _show(found)
    if found.passed:
        return 0
    broken = [finding.law for finding in found.findings if finding.ok is False]
    complain(f"policy {shortened(policy, 100)} breaks {len(broken)} of {len(found.findings)}: {', '.join(broken)}")
    return LoratoryError.exit_code


def _show(found: PolicyCheck) -> None:
    say(f"{found.policy} in {plural(found.worlds, 'small world')} ({found.examples} random, seed {found.seed}):")
    print()
    for finding in found.findings:
        word = {True: "ok", False: "FAILED", None: "open"}[finding.ok]
        print(f"  {word:<8} {finding.law:<13} {finding.promise}")
    print()
    refused = [(number, action, why) for action, words in found.refusals.items() for why, number in words.items()]
    if refused:
        first = [f"{action} {why} {number:,}" for number, action, why in sorted(refused, reverse=True)[:_MOST_REFUSALS]]
        more = len(refused) - len(first)
        total = sum(number for number, _, _ in refused)
        say(f"refused by the ledger: {total:,} actions ({', '.join(first)}{f' and {more} more kinds' if more else ''})")
    for finding in found.findings:
        if finding.ok is False:
            _show_failure(finding)


def _show_failure(finding: PromiseResult) -> None:
    print()
    say(f"{finding.law}: {finding.found}")
    if finding.program:
        print("the smallest world found that shows it (run this in the same folder):\n")
        print("\n".join(f"    {line}".rstrip() for line in finding.program.splitlines()))
