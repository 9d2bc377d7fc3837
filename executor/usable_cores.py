"""usable_cores: the cores that this process may use."""

from __future__ import annotations

import os
from math import ceil, inf
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MINE = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """The cores that this process may use: those it is bound to, or fewer if its control group has a CPU limit."""
    return max(1, ceil(min(bound_cores(), cgroup_limit())))


def bound_cores() -> int:
    """The cores that this process is bound to; all where the system binds none."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup_limit(root: Path = _CGROUPS, mine: Path = _MINE) -> float:
    """The CPUs that control groups of either version leave this process; infinity without a limit.

    ``cpu.max`` of version 2 holds ``QUOTA PERIOD`` in microseconds, or ``max PERIOD``; the limit of any group above
    counts as well. In a container, the group's own folder is often the root.
    """
    return min((_limit_of(group) for group in cpu_cgroups(root, mine)), default=inf)


def cpu_cgroups(root: Path = _CGROUPS, mine: Path = _MINE) -> list[Path]:
    """The folders of the control groups that may limit this process's CPU time, of either version, its own first."""
    try:
        lines = mine.read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        folder = top / name.lstrip("/")
        found += [group for group in (folder, *folder.parents) if group == top or top in group.parents]
    return found


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
