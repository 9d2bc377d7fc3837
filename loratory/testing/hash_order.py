"""other_process: what a policy does otherwise in a process that has another order of sets."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from hashlib import sha256
from typing import Any

from loratory.errors import InputError, LoratoryError, shortened
from loratory.experiment.policy_spec import policy_factory
from loratory.serving.policy import PolicyLike
from loratory.serving.policy_watch import PolicyWatch
from loratory.testing.run import run
from loratory.testing.world import World

_PROGRAM = "from loratory.testing.hash_order import _answer; _answer()"
_DECIDES_OTHERWISE = (
    "it decides otherwise in another process, where Python gives sets another order (PYTHONHASHSEED): sort what a set "
    "has, or use a dict"
)
_SPARE_S = 60.0
"""Seconds that the other process may take beside what the policy may."""


def other_process(spec: str, make: Callable[[], PolicyLike], worlds: Sequence[World], timeout_s: float) -> str:
    """What a policy does otherwise in another process, in words; empty where it decides the same in all the worlds.

    There PYTHONHASHSEED is another one, by which the order of a set of texts differs. Raises `InputError` where no
    other process can be started.
    """
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            input=pickle.dumps((spec, timeout_s, list(worlds))),
            capture_output=True,
            env=environment,
            timeout=_SPARE_S + timeout_s,
        )
    except subprocess.TimeoutExpired:
        return f"in another process it does not end within {_SPARE_S + timeout_s:g} s"
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"policy {shortened(spec, 100)} cannot be run in another process ({reason})") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return f"in another process it fails: {shortened(last, 200) or f'exit code {done.returncode}'}"
    return "" if json.loads(done.stdout) == _digests(make, worlds) else _DECIDES_OTHERWISE


def _digests(make: Callable[[], PolicyLike], worlds: Sequence[World]) -> list[str]:
    return [sha256(repr(run(world, make, check_books=False).decisions).encode()).hexdigest() for world in worlds]


def _answer() -> None:
    """What the other process does: the digests of the decisions in the worlds that it is sent, as JSON."""
    given: Any = pickle.loads(sys.stdin.buffer.read())
    spec, timeout_s, worlds = given
    try:
        with redirect_stdout(sys.stderr), PolicyWatch(spec, timeout_s):
            found = _digests(policy_factory(spec, timeout_s), worlds)
    except LoratoryError as error:
        sys.exit(str(error))
    print(json.dumps(found))
