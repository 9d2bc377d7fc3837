"""Limits: sentences on what limited each policy, how much of the GPU it used, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def advice_of(runs: Sequence[Mapping[str, Any]]) -> list[tuple[list[str], str]]:
    """(policies, advice) of these runs (as in summary.json): advice on the same change is given once."""
    found: dict[str, tuple[list[str], str]] = {}
    for run in runs:
        for text in run["advice"]:
            names, _ = found.setdefault(text.partition(":")[0], ([], text))
            if run["policy"] not in names:
                names.append(run["policy"])
    return list(found.values())
