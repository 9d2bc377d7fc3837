"""Agreement: how far a simulation is from measurements of the same scenario, with the noise of the measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from loratory.errors import InputError
from loratory.reports.compare import load_runs, number
from loratory.reports.stats import cleaned
from loratory.reports.summary import scalars

LIMITS: Mapping[str, float] = {
    "throughput.requests_per_s": 0.04,
    "throughput.output_tokens_per_s": 0.04,
    "ttft_s.mean": 0.08,
    "e2e_s.mean": 0.08,
    "ttft_s.p95": 0.12,
    "e2e_s.p95": 0.12,
}
"""Limits on the relative errors of a calibrated simulation on a CPU; on a GPU half of each. Other metrics have none."""

UNDECIDED: Final = "not decidable (2 x noise > limit)"

Holds = Literal["yes", "no", "not decidable (2 x noise > limit)"]

ALSO: tuple[str, ...] = ("tpot_s.mean", "itl_s.mean", "queue_s.mean", "adapters.loads", "adapters.hit_rate")
"""Metrics shown without a limit."""


@dataclass(frozen=True, slots=True)
class MetricAgreement:
    """One metric of one policy: means over simulated and over measured runs, and their relative difference ``error``.

    ``noise``: (largest - smallest) / mean among measured repeats of one seed, the median over seeds; None with one
    repeat. ``limit``: the largest ``error`` allowed; None without a limit.
    """

    policy: str
    metric: str
    simulated: float
    measured: float
    error: float | None
    noise: float | None
    limit: float | None

    @property
    def holds(self) -> Holds | None:
        """Whether the error is within its limit; None without a limit.

        If twice the noise exceeds the limit, an error within twice the noise is not decidable: it can come from a
        simulator that misses by more than the limit, and from one without any error. A larger error is not noise.
        """
        if self.limit is None or self.error is None:
            return None
        noise = 2 * (self.noise or 0.0)
        if noise > self.limit and abs(self.error) <= noise:
            return UNDECIDED
        return "yes" if abs(self.error) <= self.limit else "no"


@dataclass(frozen=True, slots=True)
class Agreement:
    """One simulation against repeated measurements. ``device``: cpu or cuda, where the measurements ran."""

    simulation: str
    measurements: tuple[str, ...]
    device: str
    rows: tuple[MetricAgreement, ...]

    @property
    def holds(self) -> bool:
        """Whether no metric exceeds its limit; `undecided` counts those that cannot be decided."""
        return all(row.holds != "no" for row in self.rows)

    @property
    def undecided(self) -> int:
        """Number of metrics with a limit for which the noise is too large to decide."""
        return sum(row.holds == UNDECIDED for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        rows = [cleaned(asdict(row) | {"holds": row.holds}) for row in self.rows]
        return asdict(self) | {"rows": rows, "holds": self.holds, "undecided": self.undecided}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(heads, rows) of a table, as texts."""
        heads = ["policy", "metric", "simulated", "measured", "error", "noise", "limit", "holds"]
        rows = [
            [
                row.policy,
                row.metric,
                number(row.simulated),
                number(row.measured),
                _percent(row.error, "+"),
                _percent(row.noise),
                _percent(row.limit),
                {None: "", "no": "NO"}.get(row.holds, str(row.holds)),
            ]
            for row in self.rows
        ]
        return heads, rows


def agreement(simulation: Path, measurements: Sequence[Path]) -> Agreement:
    """Compares a simulated result folder with one or more measured folders of the same scenario.

    Policies and seeds are matched; those that only one side has are ignored. Raises `InputError` for a folder without
    a summary, one of the wrong backend, or nothing in common.
    """
    simulated = load_runs(simulation)
    measured = [load_runs(folder) for folder in measurements]
    for folder, loaded, backend in (
        (simulation, simulated, "sim"),
        *((folder, loaded, "executor") for folder, loaded in zip(measurements, measured, strict=True)),
    ):
        ran_on = {run["backend"] for runs in loaded.values() for run in runs}
        if ran_on != {backend}:
            raise InputError(
                f"{folder} ran on {', '.join(sorted(ran_on))}, not on {backend}: give the simulation first"
            )
    device = _device(measurements[0])
    rows: list[MetricAgreement] = []
    for policy, runs in simulated.items():
        repeats = [loaded[policy] for loaded in measured if policy in loaded]
        if repeats:
            rows += _rows(policy, runs, repeats, 0.5 if device == "cuda" else 1.0)
    if not rows:
        raise InputError(f"{simulation} and {measurements[0]} have no policy and seed in common: run the same in both")
    return Agreement(str(simulation), tuple(map(str, measurements)), device, tuple(rows))


def _rows(
    policy: str, runs: Sequence[Mapping[str, Any]], repeats: Sequence[Sequence[Mapping[str, Any]]], share: float
) -> list[MetricAgreement]:
    by_seed = {run["seed"]: scalars(run) for run in runs}
    real = [{run["seed"]: scalars(run) for run in again} for again in repeats]
    seeds = [seed for seed in by_seed if any(seed in again for again in real)]
    found: list[MetricAgreement] = []
    for metric in (*LIMITS, *ALSO):
        simulated = [by_seed[seed][metric] for seed in seeds if metric in by_seed[seed]]
        measured = [
            [again[seed][metric] for again in real if seed in again and metric in again[seed]] for seed in seeds
        ]
        measured = [values for values in measured if values]
        if not simulated or not measured:
            continue
        mean = sum(sum(values) / len(values) for values in measured) / len(measured)
        ours = sum(simulated) / len(simulated)
        spreads = sorted((max(v) - min(v)) * len(v) / sum(v) for v in measured if len(v) > 1 and sum(v) > 0)
        noise = spreads[len(spreads) // 2] if spreads else None
        limit = LIMITS[metric] * share if metric in LIMITS else None
        found.append(MetricAgreement(policy, metric, ours, mean, ours / mean - 1 if mean else None, noise, limit))
    return found


def _device(folder: Path) -> str:
    try:
        info = json.loads((folder / "run_info.json").read_text(encoding="utf-8"))
        return str(info.get("device", "cpu"))
    except (OSError, ValueError):
        return "cpu"


def _percent(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value * 100:{sign}.1f} %"
