"""disagreements: whether the seeds of a policy took different courses, as runs beyond the knee do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from loratory.reports.number_text import count

APART = 0.05
CHANCE = 6.0
"""Seeds disagree if the range of the share of requests that they complete, over its mean, is above `APART` and above
``CHANCE / sqrt(completed requests)``: with Poisson arrivals, ten seeds of one course differ by half of the latter."""


def disagreements(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """One sentence for each policy whose seeds disagree, by more than chance allows, on the share that they complete.

    Below the knee every request is served. Beyond it a run may have two courses: a few adapters that hold the slots for
    ever, or slots that change hands.
    """
    by_policy: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if run["requests"]["submitted"]:
            by_policy.setdefault(run["policy"], []).append(run["requests"])
    found = {}
    for policy, each in by_policy.items():
        completed = [requests["completed"] for requests in each]
        shares = [requests["completed"] / requests["submitted"] for requests in each]
        mean = sum(shares) / len(shares)
        if len(each) < 2 or mean <= 0:
            continue
        apart, chance = (max(shares) - min(shares)) / mean, CHANCE / sqrt(sum(completed) / len(completed))
        if apart > max(APART, chance):
            found[policy] = (
                f"seeds disagree: they complete {count(min(completed))} to {count(max(completed))} requests, shares of "
                f"those sent that are {apart:.0%} apart, where chance gives about {chance / 2:.1%}: the run has more "
                "than one course, so report the range, and run more seeds"
            )
    return found
