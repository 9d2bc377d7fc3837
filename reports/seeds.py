"""seed_notes: what to know about runs of several seeds that came out equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loratory.reports.number_text import listed

_DRAWN = ("seed", "advice")
"""Keys in which equal runs may differ."""


def seed_notes(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence where the simulated runs of every policy are the same for all seeds; none for a single seed."""
    seeds = list(dict.fromkeys(run["seed"] for run in runs))
    first = {run["policy"]: run for run in reversed(runs)}
    if len(seeds) < 2 or not all(run["backend"] == "sim" and _same(run, first[run["policy"]]) for run in runs):
        return []
    return [
        f"seeds {listed([str(seed) for seed in seeds])} gave the same run, as nothing in this scenario is drawn: one "
        "seed is enough, or draw step times with cost.noise for a range"
    ]


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[key] == other[key] for key in one if key not in _DRAWN)
