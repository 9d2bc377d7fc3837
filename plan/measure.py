"""measure: what a plan reads from one run: the targets of the SLO, and the metrics that plans show."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np

from loratory.experiment.resolve import Built
from loratory.experiment.runner import slo_limits
from loratory.experiment.slo_targets import slo_targets
from loratory.reports.fleet_life import PAID, fleet_object
from loratory.reports.metrics import inter_token
from loratory.reports.run_columns import RunColumns, present
from loratory.reports.slo import every_target, judged
from loratory.reports.slo_target import SloTarget
from loratory.scenarios.schema import Scenario

HIGHER_IS_BETTER = ("requests_per_s", "output_tokens_per_s", "hit_rate", "completed_share")
"""Metrics of which more is better; of all others less is."""

METRICS = (
    "ttft_mean_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_mean_s",
    "tpot_p99_s",
    "e2e_mean_s",
    "e2e_p99_s",
    *HIGHER_IS_BETTER,
    "loads",
    "preemptions",
    "gpu_hours",
    "replicas_mean",
    "replicas_peak",
)
"""Metrics of every run, besides the targets of its SLO: seconds, rates per second, shares and counts; the last three of
replicas that have their GPUs, over the whole run."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. ``values``: metrics and targets by name; None where nothing was measured, inf where it never ended.

    ``missed``: where the run was stopped because its outcome was certain, the targets that are missed; it then has no
    values. ``requests``: how many were simulated; ``cpu_s``: CPU seconds it took.
    """

    values: dict[str, float | None]
    missed: tuple[str, ...] = ()
    steady: str = ""
    requests: int = 0
    cpu_s: float = 0.0

    @property
    def stopped(self) -> bool:
        """Whether the run was stopped early."""
        return bool(self.missed)


def targets_of(scenario: Scenario, built: Built) -> list[SloTarget]:
    """All that the SLO of a scenario demands."""
    return every_target(slo_limits(scenario), slo_targets(scenario.slo, built.adapters))


def read(run: RunColumns) -> dict[str, float | None]:
    """The metrics of a run, and the value of each target of its SLO."""
    gaps = inter_token(run)
    counted, completed = run.counted, run.completed
    span = run.duration - run.warmup
    late = run.finish >= run.warmup
    per_s = 1.0 / span if span > 0 else 0.0
    hit = present(run.number("hit")[counted])
    values: dict[str, float | None] = {
        "requests_per_s": float((completed & late).sum()) * per_s,
        "output_tokens_per_s": float(run.output[late].sum()) * per_s,
        "hit_rate": float(hit.mean()) if len(hit) else None,
        "completed_share": float((completed & counted).sum()) / max(1, int(counted.sum())),
        "loads": float(len(run.event_times("load"))),
        "preemptions": float(run.number("preemptions").sum()),
        **_held(run),
    }
    for name, each, marks in (("ttft", run.ttft, (50, 99)), ("tpot", run.tpot, (99,)), ("e2e", run.e2e, (99,))):
        found = present(each[counted])
        values[f"{name}_mean_s"] = float(found.mean()) if len(found) else None
        for mark in marks:
            values[f"{name}_p{mark}_s"] = float(np.percentile(found, mark)) if len(found) else None
    for one in judged(run, gaps):
        values[one.target.name] = one.value
    return {name: value if value is None or isfinite(value) else float("inf") for name, value in values.items()}


def _held(run: RunColumns) -> dict[str, float | None]:
    """GPU hours, and replicas that have their GPUs: how many on average, and at once."""
    replicas, hours = float(run.info.replicas), run.duration / 3600
    if run.info.fleet is None:
        return {"gpu_hours": run.info.gpus * hours, "replicas_mean": replicas, "replicas_peak": replicas}
    found = fleet_object(run)
    peak = max(sum(row[state] for state in PAID) for row in found["over_time"])
    mean = found["replica_s"] / run.duration if run.duration > 0 else None
    return {"gpu_hours": found["gpu_hours"], "replicas_mean": mean, "replicas_peak": float(peak)}
