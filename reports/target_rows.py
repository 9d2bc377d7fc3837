"""target_rows: how each policy did on the targets of an SLO that say whose requests they are about, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loratory.errors import several, shortened
from loratory.reports.slo import further_targets
from loratory.reports.slo_target import value_words


@dataclass(frozen=True, slots=True)
class TargetCell:
    """One target under one policy: ``verdict`` (met, missed, not judged), and the value with whose it is."""

    policy: str
    verdict: str
    value: str

    @property
    def text(self) -> str:
        """``missed: 3.1 s, worst: B``."""
        return f"{self.verdict}: {self.value}"


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One target under each policy; ``words`` as in summary.json."""

    words: str
    cells: tuple[TargetCell, ...]

    @property
    def sentence(self) -> str:
        """``TTFT p95 of tenant B at most 2 s: missed under fifo (3.1 s); met under fair_share (1.2 s)``."""
        found: dict[str, list[str]] = {}
        for cell in self.cells:
            found.setdefault(cell.verdict, []).append(f"{shortened(cell.policy, 80)} ({cell.value})")
        return f"{self.words}: " + "; ".join(f"{verdict} under {several(who, 8)}" for verdict, who in found.items())


def target_rows(runs: Sequence[Mapping[str, Any]]) -> list[TargetRow]:
    """A row for each target beyond the limits on all requests; values are means over a policy's seeds."""
    policies: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        policies.setdefault(run["policy"], []).append(run)
    names = {target["name"]: target["words"] for run in runs for target in further_targets(run["slo"])}
    return [
        TargetRow(words, tuple(_cell(policy, _of(mine, name)) for policy, mine in policies.items()))
        for name, words in names.items()
    ]


def missed_words(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The targets that a seed of a policy missed, with the mean: ``TTFT p95 of tenant B at most 2 s (it is 3.1 s)``."""
    return [
        f"{row.words} (it is {cell.value})"
        for row in target_rows(runs)
        for cell in row.cells
        if cell.verdict.startswith("missed")
    ]


def unmet_words(run: Mapping[str, Any]) -> list[str]:
    """The targets that a run missed, or that could not be judged, in words."""
    return [target["words"] for target in further_targets(run["slo"]) if target["met"] is not True]


def _of(runs: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    return [target for run in runs for target in further_targets(run["slo"]) if target["name"] == name]


def _cell(policy: str, seeds: list[dict[str, Any]]) -> TargetCell:
    missed = sum(target["met"] is False for target in seeds)
    verdict = "missed" if missed else "met" if all(target["met"] for target in seeds) else "not judged"
    if 0 < missed < len(seeds):
        verdict += f" in {missed} of {len(seeds)} seeds"
    return TargetCell(policy, verdict, _value(seeds))


def _value(seeds: list[dict[str, Any]]) -> str:
    """The mean of the values, and the tenant or adapter with the worst; what is wrong where there is no value."""
    if any(target["met"] is False and target["value"] is None for target in seeds):
        return "unbounded, as requests did not complete"
    known = [target for target in seeds if target["value"] is not None]
    if not known:
        return "no such request measured"
    high = known[0]["sense"] == "at_most"
    worst = max(known, key=lambda target: target["value"] if high else -target["value"])
    whose = f", worst: {shortened(worst['worst'], 40)}" if worst["worst"] is not None else ""
    return value_words(sum(target["value"] for target in known) / len(known), worst["unit"]) + whose
