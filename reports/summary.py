"""Summary: turns runs into summary.json, with means and 95 % intervals over seeds for each policy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loratory.reports.curves import Curves, curves_of
from loratory.reports.metrics import run_object
from loratory.reports.recorder import Records
from loratory.reports.run_columns import RunColumns
from loratory.reports.run_info import RunInfo
from loratory.reports.slo import further_targets
from loratory.reports.stats import cleaned, half_width
from loratory.reports.timeline import trace_events

FORMAT = 1

TARGET = "slo.targets."
"""What the metric of an SLO's target begins with, before the target's name."""

_NOT_METRICS = {
    "seed",
    "replicas",
    "warmup_s",
    "warmup",
    "per_tenant",
    "per_adapter",
    "per_replica",
    "warnings",
    "beyond_fit",
    "rejected",
    "truncated.why",
    "truncated.adapters",
    "never_served.why",
    "never_served.adapters",
    "refusals",
    "oracle",
    "slo.limits",
    "gpus",
    "bottleneck",
    "advice",
    "fleet.prices",
}


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a report keeps of a run: its ``run`` object, the curves of its figures, and its trace events (JSON texts).

    It is small and can be pickled, so other processes can do runs.
    """

    info: RunInfo
    run: dict[str, Any]
    curves: Curves
    trace: tuple[str, ...] = ()


def summarise(records: Records, info: RunInfo, timeline_events: int = 0) -> RunReport:
    """Measure one run. ``timeline_events``: about how many trace events to keep for timeline.json.

    Raises `InputError` for an unknown SLO, `AssertionError` if records are missing or invented.
    """
    measured = RunColumns(info, records)
    run: dict[str, Any] = cleaned(run_object(measured))
    trace = trace_events(measured, timeline_events) if timeline_events > 0 else ()
    return RunReport(info, run, curves_of(measured), tuple(trace))


def summary_of(
    runs: Sequence[Mapping[str, Any]], setup: Mapping[str, str] | None = None, regret: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of summary.json: ``{"format", "setup", "policies", "runs"}``; ``setup``: what ran, by label.

    With ``regret`` (`loratory.reports.regret`) it has that as well.
    """
    summary = {"format": FORMAT, "setup": dict(setup or {}), "policies": over_seeds(runs), "runs": list(runs)}
    return summary if regret is None else {**summary, "regret": dict(regret)}


def over_seeds(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One object per policy, in the order first run: its seeds and, for each scalar of its runs, mean and interval.

    ``metrics`` maps dotted names (``ttft_s.p99``) to ``{"mean", "low", "high", "n"}``: the 95 % Student-t interval over
    the seeds that have the value; ``low`` and ``high`` are None for one seed. ``slo.met`` counts as 0 or 1.
    """
    policies: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        policies.setdefault(run["policy"], []).append(run)
    return [
        {
            "policy": policy,
            "backend": mine[0]["backend"],
            "seeds": [run["seed"] for run in mine],
            "oracle": any(run["oracle"] for run in mine),
            "metrics": _metrics(mine),
        }
        for policy, mine in policies.items()
    ]


def scalars(run: Mapping[str, Any]) -> dict[str, float]:
    """The measurements of a ``run`` object by dotted name."""
    return dict(_measured(run))


def to_json(summary: Mapping[str, Any]) -> str:
    """JSON text, the same for the same content: one line for each member of a run, one for each row of its tables."""
    lines = ["{", f'"format": {summary["format"]},', f'"setup": {_object(summary["setup"])},', '"policies": [']
    lines.append(",\n".join(_object(policy) for policy in summary["policies"]))
    lines += ["],", '"runs": [', ",\n".join(_object(run) for run in summary["runs"]), "]"]
    if "regret" in summary:
        lines[-1:] = ["],", f'"regret": {_object(summary["regret"])}']
    lines.append("}")
    return "\n".join(lines) + "\n"


def _metrics(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, value in _measured(run):
            values.setdefault(name, []).append(value)
    metrics: dict[str, dict[str, float | int | None]] = {}
    for name, found in values.items():
        mean, half = sum(found) / len(found), half_width(found)
        low, high = (None, None) if half is None else (mean - half, mean + half)
        metrics[name] = cleaned({"mean": mean, "low": low, "high": high, "n": len(found)})
    return metrics


def _measured(run: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every scalar of a run, and the values of its SLO's targets under their names."""
    yield from _scalars(run, "")
    for target in further_targets(run.get("slo", {})):
        if target["value"] is not None:
            yield TARGET + target["name"], target["value"]


def _scalars(item: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in item.items():
        name = prefix + key
        if name in _NOT_METRICS:
            continue
        if isinstance(value, Mapping):
            yield from _scalars(value, name + ".")
        elif isinstance(value, (int, float)):
            yield name, float(value)


def _object(item: Mapping[str, Any]) -> str:
    return "{\n" + ",\n".join(f"  {_text(key)}: {_member(value)}" for key, value in item.items()) + "\n}"


def _member(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"    {_text(row)}" for row in value) + "\n  ]"
    if isinstance(value, dict) and value and isinstance(next(iter(value.values())), dict):
        return "{\n" + ",\n".join(f"    {_text(k)}: {_text(row)}" for k, row in value.items()) + "\n  }"
    return _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, allow_nan=False)
