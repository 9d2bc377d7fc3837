"""cores: how many processes share the runs of a scenario, where the user does not say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import ceil, inf
from pathlib import Path

from loratory.scenarios.schema import Scenario
from loratory.scenarios.size_limits import expected_requests

REQUESTS_PER_PROCESS = 10_000
"""Requests that are simulated and recorded in the time that a process takes to start (bench/README.md)."""

_BYTES_PER_ROW = 40
"""About the least size of a request in a trace."""

_CGROUPS = Path("/sys/fs/cgroup")


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


def usable_cores() -> int:
    """The cores that this process may use: those it is bound to, or fewer if its control group has a CPU limit."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, ceil(min(bound, _cgroup_limit())))


def _requests(scenario: Scenario) -> float:
    """About how many requests a run has; those of a trace by its size."""
    trace = scenario.workload.trace
    if trace is None:
        return expected_requests(scenario)[1]
    path = Path(trace)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    rows = sum(file.stat().st_size for file in files) / _BYTES_PER_ROW
    return min(rows, scenario.workload.requests or inf)


def _cgroup_limit(root: Path = _CGROUPS, mine: Path = Path("/proc/self/cgroup")) -> float:
    """The CPUs that control groups of either version leave this process; infinity without a limit.

    ``cpu.max`` of version 2 holds ``QUOTA PERIOD`` in microseconds, or ``max PERIOD``; the limit of any group above
    counts as well. In a container, the group's own folder is often the root.
    """
    try:
        lines = mine.read_text().splitlines()
    except OSError:
        return inf
    least = inf
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        folder = top / name.lstrip("/")
        for group in (folder, *folder.parents):
            if group == top or top in group.parents:
                least = min(least, _limit_of(group))
    return least


def _limit_of(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if quota.lstrip("-").isdigit() and int(quota) > 0 else inf
    except (OSError, ValueError):
        return inf
