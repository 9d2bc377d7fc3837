"""Verdict: a sentence of a report with its mood; PolicyRuns: the runs of one policy, for sentences about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loratory.reports.summary import over_seeds

Mood = Literal["good", "bad", "note"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence or two on a topic; ``mood`` chooses its mark."""

    topic: str
    mood: Mood
    text: str


@dataclass(frozen=True, slots=True)
class PolicyRuns:
    """A policy's runs, one per seed, and the mean over seeds of each scalar."""

    name: str
    runs: list[Mapping[str, Any]]
    mean: dict[str, float]

    def get(self, metric: str) -> float | None:
        """Mean over seeds of a dotted metric, None if no run has it."""
        return self.mean.get(metric)

    @property
    def mixed(self) -> bool:
        """Whether the fleet has replicas of several kinds."""
        return any(row["kind"] for row in self.runs[0].get("per_replica", ()))

    @property
    def missed(self) -> bool:
        """Whether a seed missed the SLO."""
        return any(run["slo"]["met"] is False for run in self.runs)


def by_policy(runs: Sequence[Mapping[str, Any]]) -> list[PolicyRuns]:
    """The policies of these runs, in the order first run."""
    return [
        PolicyRuns(
            item["policy"],
            [run for run in runs if run["policy"] == item["policy"]],
            {name: value["mean"] for name, value in item["metrics"].items()},
        )
        for item in over_seeds(runs)
    ]
