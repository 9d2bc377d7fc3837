"""cores: how many processes share the runs of a scenario, where the user does not say."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path

from loratory.executor.usable_cores import usable_cores
from loratory.scenarios.schema import Scenario
from loratory.scenarios.size_limits import expected_requests

REQUESTS_PER_PROCESS = 10_000
"""Requests that are simulated and recorded in the time that a process takes to start (bench/README.md)."""

_BYTES_PER_ROW = 40
"""About the least size of a request in a trace."""


def sensible_jobs(scenarios: Sequence[Scenario]) -> int:
    """The number of processes that do the runs of these scenarios soonest; 1 where starting them takes longer.

    Never more than there are cores or runs.
    """
    runs = [len(scenario.policies) * len(scenario.seeds) for scenario in scenarios]
    each = [_requests(scenario) for scenario in scenarios]
    total = sum(requests * number for requests, number in zip(each, runs, strict=True))
    jobs = min(usable_cores(), sum(runs))
    shared = max(total / max(jobs, 1), max(each, default=0.0)) + REQUESTS_PER_PROCESS
    return jobs if shared < total else 1


def _requests(scenario: Scenario) -> float:
    """About how many requests a run has; those of a trace by its size."""
    trace = scenario.workload.trace
    if trace is None:
        return expected_requests(scenario)[1]
    path = Path(trace)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    rows = sum(file.stat().st_size for file in files) / _BYTES_PER_ROW
    return min(rows, scenario.workload.requests or inf)
