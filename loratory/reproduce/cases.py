"""Cases: runs of a published scenario under changed keys, shared among processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, TypeVar

import yaml

from loratory.errors import InputError
from loratory.experiment.run import run_scenario
from loratory.reproduce.rows import RowOrigin
from loratory.scenarios.load import load_scenario

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Case:
    """A scenario ("published/slora-a10g"), ``--set`` changes to it, and policies (None: its own).

    ``origin``: the row of a file that the changes were made from, which errors name.
    """

    scenario: str
    changes: tuple[str, ...] = ()
    policies: tuple[str, ...] | None = None
    origin: RowOrigin | None = field(default=None, compare=False)


def run_case(case: Case) -> list[dict[str, Any]]:
    """The runs of a case, one per policy and seed, as in summary.json (docs/reports.md)."""
    try:
        scenario = load_scenario(case.scenario, case.changes, case.policies)
        runs: list[dict[str, Any]] = run_scenario(scenario, decisions=False)["runs"]
    except InputError as error:
        raise error if case.origin is None else case.origin.told(error) from error
    return runs


def mean_note(seeds: int) -> tuple[str, ...]:
    """A sentence on what figures of several seeds are; none for one seed."""
    return (f"simulated figures are means over {seeds} seeds",) if seeds > 1 else ()


def refuse_policies(settings: Sequence[str]) -> None:
    """Raises `InputError` where ``--set policies=`` names several: a published run had one."""
    for setting in settings:
        key, _, text = setting.partition("=")
        if key.strip() != "policies":
            continue
        try:
            given = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            return  # `load_scenario` says what is wrong with it
        if isinstance(given, list) and len(given) > 1:
            raise InputError(f"--set policies names {len(given)} policies, but each published run had one: name one")


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
