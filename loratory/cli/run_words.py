"""run_words: what ``loratory run`` checks and says alike of one scenario and of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from loratory.cli.terminal import say
from loratory.errors import InputError

if TYPE_CHECKING:
    from loratory.scenarios.slo import SloSpec

MISSED_SLO = 3
"""The exit code where ``--require-slo`` is not met."""


def need_slo(slo: SloSpec) -> None:
    """Raises `InputError` where ``--require-slo`` has nothing to require."""
    if not slo.given:
        raise InputError(
            "--require-slo needs a slo section, but the scenario has none: add one, such as slo: {ttft_p99_s: 2.0}"
        )


def default_target(name: str) -> Path:
    """The result folder of a scenario that is given none: ``results/NAME``."""
    slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".-") or "scenario"
    return Path("results") / slug


def tell_setup(facts: Mapping[str, str]) -> None:
    """The first lines of a result: what ran, and how its step times were predicted."""
    say(f"{facts['model']} on {facts['GPU']}: {facts['engine']}")
    error = f"; known error: {facts['known error']}" if "known error" in facts else ""
    noise = f"; noise: {facts['noise']}" if "noise" in facts else ""
    say(f"cost model: {facts['cost model'].partition(' (')[0]}{error}{noise}")
