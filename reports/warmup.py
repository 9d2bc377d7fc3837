"""Warm-up: when a run has settled, found from the number of requests in the system, and whether it settles at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from loratory.reports.number_text import listed, seconds
from loratory.reports.stats import student_t
from loratory.serving.workload import Floats

BATCH = 5
"""Observations averaged before the rule is applied: the 5 of MSER-5."""

GROUPS = 10
"""Number of groups into which the rest is divided to test whether it has settled."""

FEWEST = 20 * BATCH
"""With fewer observations there is no result."""

SIZEABLE = 0.1
"""A warm-up that takes more than this share of the run and is not cut gets a note."""

State = Literal["steady", "no steady state", "too few requests"]


@dataclass(frozen=True, slots=True)
class WarmUp:
    """``end_s``: when the transient is over, seconds from the run's start; None unless the state is steady."""

    state: State
    end_s: float | None = None


def mser(series: Floats, batch: int = BATCH) -> int:
    """How many first observations to drop, at most half: MSER (White, 1997) on means of ``batch`` observations.

    The cut d is the one with the most certain mean of the rest: least sum of squared deviations over (n - d)^2.
    """
    n = len(series) // batch
    if n < 2:
        return 0
    means = np.asarray(series[: n * batch], np.float64).reshape(n, batch).mean(axis=1)
    means -= means.mean()
    left = np.arange(n, 0, -1, dtype=np.float64)
    total = np.cumsum(means[::-1])[::-1]
    squares = np.cumsum((means * means)[::-1])[::-1]
    deviations = np.maximum(squares - total * total / left, 0.0)
    deviations[deviations <= 1e-12 * squares[0]] = 0.0
    return int(np.argmin((deviations / (left * left))[: n // 2 + 1])) * batch


def settled(series: Floats, groups: int = GROUPS) -> bool:
    """Whether the first and the last half of a series have the same mean, by a t test on the means of its ``groups``.

    Geweke's (1992) diagnostic with means of long groups, which are nearly independent even if observations are not.
    False if the difference exceeds the 99 % quantile: the series still rises or falls.
    """
    size = len(series) // groups
    if not size:
        return True
    means = np.asarray(series[-size * groups :], np.float64).reshape(groups, size).mean(axis=1)
    early, late = means[: groups // 2], means[groups // 2 :]
    error = math.sqrt((early.var(ddof=1) + late.var(ddof=1)) / (groups // 2))
    difference = abs(float(early.mean() - late.mean()))
    return difference <= student_t(groups - 2, 0.99) * error + 1e-9 * abs(float(means.mean()))


def number_in_system(arrival: Floats, finish: Floats) -> Floats:
    """Number of requests in the system that each request, in order of arrival, finds; ``finish``: when each ended."""
    order = np.argsort(arrival, kind="stable")
    gone = np.searchsorted(np.sort(finish), arrival[order], side="right")
    return (np.arange(len(arrival)) - gone).astype(np.float64)


def detect(arrival: Floats, finish: Floats) -> WarmUp:
    """Where the number of requests in the system, as arrivals find it, settles."""
    if len(arrival) < FEWEST:
        return WarmUp("too few requests")
    series = number_in_system(arrival, finish)
    cut = mser(series)
    if not settled(series[cut:]):
        return WarmUp("no steady state")
    return WarmUp("steady", float(np.sort(arrival)[cut]) if cut else 0.0)


def warmup_notes(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on runs (as in summary.json) that never settle, or settle late and are measured from the start."""
    late = [run for run in runs if _is_late(run)]
    unsettled = [run for run in runs if run["warmup"]["state"] == "no steady state"]
    notes = []
    if unsettled:
        cut = " warmup_s: auto cut nothing there." if any(run["warmup"]["auto"] for run in unsettled) else ""
        notes.append(
            f"No steady state found under {_whose(unsettled, runs)}: the number of requests in the system still rises "
            f"or falls, so means depend on the length of the run.{cut}"
        )
    if late:
        latest = max(late, key=lambda run: float(run["warmup"]["detected_s"]))
        notes.append(
            f"The number of requests in the system settles only after {seconds(latest['warmup']['detected_s'])} of "
            f"{seconds(latest['duration_s'])} under {_whose(late, runs)}, and the time before is measured as well: set "
            "warmup_s: auto, or make the run longer."
        )
    return notes


def _is_late(run: Mapping[str, Any]) -> bool:
    end_s = run["warmup"]["detected_s"]
    return end_s is not None and end_s > max(SIZEABLE * run["duration_s"], run["warmup_s"])


def _whose(some: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> str:
    """The policies of some runs, each with the number of its seeds unless they are all."""
    names = []
    for policy in dict.fromkeys(run["policy"] for run in some):
        mine, all_of_it = ([run for run in group if run["policy"] == policy] for group in (some, runs))
        names.append(policy + ("" if len(mine) == len(all_of_it) else f" ({len(mine)} of {len(all_of_it)} seeds)"))
    return listed(names)
