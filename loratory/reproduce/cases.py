"""Cases: runs of a published scenario under changed keys, shared among processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

from loratory.experiment.run import run_scenario
from loratory.scenarios.load import load_scenario

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Case:
    """A scenario ("published/slora-a10g"), ``--set`` changes to it, and policies (None: its own)."""

    scenario: str
    changes: tuple[str, ...] = ()
    policies: tuple[str, ...] | None = None


def run_case(case: Case) -> list[dict[str, Any]]:
    """The runs of a case, one per policy and seed, as in summary.json (docs/reports.md)."""
    scenario = load_scenario(case.scenario, case.changes, case.policies)
    runs: list[dict[str, Any]] = run_scenario(scenario, decisions=False)["runs"]
    return runs


def run_cases(cases: Sequence[Case], jobs: int | None = None) -> list[list[dict[str, Any]]]:
    """`run_case` of each, in order, on ``jobs`` processes (by default one per processor)."""
    return over(run_case, cases, jobs)


def over(function: Callable[[Any], T], items: Sequence[Any], jobs: int | None = None) -> list[T]:
    """``function`` of each item, in order, on ``jobs`` processes; the function must be defined in a module."""
    jobs = min(jobs or os.cpu_count() or 1, len(items))
    if jobs <= 1:
        return [function(item) for item in items]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(function, items))
