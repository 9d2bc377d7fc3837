"""trial_process: tries a policy in a process of its own, for a server that is to put it in.

On stdin comes a pickled `Trial`. On the descriptor that the command line names goes one JSON object a line: ``{"at"}``
when a stage begins, at the end ``{"refused", "input"}``: the reason or null, and whether the spec is wrong rather than
the policy's conduct. What the policy prints goes nowhere.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
from collections.abc import Callable
from time import monotonic

from loratory.errors import InputError, LoratoryError, PolicyError, StalledError, shortened
from loratory.experiment.policy_spec import PolicyFactory, policy_factory
from loratory.policies.fifo import Fifo
from loratory.server.policy_trial import Trial
from loratory.serving.engine import Engine
from loratory.serving.engine_copy import EngineCopy
from loratory.serving.plan import CostView
from loratory.serving.policy_watch import PolicyWatch
from loratory.serving.request import Request
from loratory.testing.check_policy import check_policy
from loratory.testing.dry_run import dry_run

EXAMPLES = 10
"""Random worlds, besides the edge cases."""

_MOST_PLANS = 20_000
_DRY_S = 2.0
"""The dry run ends after so many plans, or seconds, whichever comes first."""

_MOST_BYTES = 4 << 30
"""Address space of the process: a policy that allocates for ever hurts nobody else."""

_ADAPTERS = 8
"""Adapters that get one more request in the dry run."""


def main(answers: int) -> None:
    """Read a trial, carry it out, and tell."""
    resource.setrlimit(resource.RLIMIT_AS, (_limit(), resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    whole = sys.stdin.buffer.read()
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 0)
    os.dup2(silence, 1)

    def tell(**what: str | bool | None) -> None:
        os.write(answers, json.dumps(what).encode() + b"\n")

    trial: Trial = pickle.loads(whole)
    sys.path[:] = trial.path
    try:
        _carry_out(trial, tell)
    except LoratoryError as error:
        tell(refused=str(error), input=isinstance(error, InputError))
    else:
        tell(refused=None)


def _limit() -> int:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    return _MOST_BYTES if hard == resource.RLIM_INFINITY else min(hard, _MOST_BYTES)


def _carry_out(trial: Trial, tell: Callable[..., None]) -> None:
    """Import, checks, dry run. Raises `InputError` or `PolicyError` with the reason where it is refused."""
    tell(at="being imported and made")
    make = policy_factory(trial.spec, trial.policy_timeout_s)
    tell(at="in the policy checks")
    check = check_policy(trial.spec, examples=EXAMPLES, policy_timeout_s=trial.policy_timeout_s, simplify=False)
    for finding in check.findings:
        if finding.ok is False:
            said = f"policy {shortened(trial.spec, 100)} breaks a promise ({finding.law}: {finding.promise}): "
            raise PolicyError(shortened(f"{'' if finding.found.startswith('policy ') else said}{finding.found}"))
    if trial.copy is not None and trial.cost is not None:
        tell(at="in the dry run over a copy of what waits and runs")
        _run_copy(trial.spec, make, trial.copy, trial.cost, trial.policy_timeout_s)


def _run_copy(spec: str, make: PolicyFactory, copy: EngineCopy, cost: CostView, timeout_s: float) -> None:
    """Put the policy into a copy of the engine, as the server would, and serve what waits and runs there."""
    until = monotonic() + _DRY_S
    engine = copy.engine(Fifo(), cost)
    try:
        with PolicyWatch(spec, timeout_s):
            engine.swap(make(), engine.ledger.now)
            _send_more(engine)
            dry_run(engine, cost, _MOST_PLANS, lambda: monotonic() < until)
    except StalledError as error:
        raise PolicyError(
            shortened(f"policy {shortened(spec, 100)}, in a dry run over a copy of what waits and runs: {error}")
        ) from error


def _send_more(engine: Engine) -> None:
    """A request more for the base model and for several adapters: policies see arrivals as well."""
    names = [name for name in engine.ledger.adapters if name not in engine.ledger.leaving][:_ADAPTERS]
    for number, name in enumerate((None, *names)):
        prompt = min(16, engine.ledger.context_limit - 1)
        engine.submit(Request(f"dry-run-{number}", name, engine.ledger.now, prompt, 2, tenant=f"dry-run-{number % 3}"))


if __name__ == "__main__":
    main(int(sys.argv[1]))
