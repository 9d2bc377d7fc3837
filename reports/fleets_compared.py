"""Fleets compared: replicas, router, GPU hours, cost and how even the replicas were, of two or more results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loratory.reports.number_text import count, percent, seconds
from loratory.reports.per_replica import replicas_over_seeds
from loratory.reports.setting_differences import SCENARIO

_SPREADS = (
    ("requests of a replica", "requests", count),
    ("output tokens of a replica", "output_tokens", count),
    ("busy share of a replica", "busy_share", percent),
    ("TTFT p99 of a replica", "ttft_p99_s", seconds),
    ("hit rate of a replica", "hit_rate", percent),
    ("loads of a replica", "loads", count),
)
"""(label, member of ``per_replica``, form): shown from the lowest replica to the highest one."""


@dataclass(frozen=True, slots=True)
class FleetFact:
    """One thing to know of the fleets of several results: its name, and a text for each folder, "-" without."""

    name: str
    values: tuple[str, ...]


def fleet_facts(folders: Sequence[Path], runs: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[FleetFact, ...]:
    """Rows for results of which at least one is of several replicas; ``runs``: of each folder those of one policy.

    Times and costs are means over seeds. A fleet in which replicas come and go costs what its replicas were there; any
    other one its GPUs for the whole run. Costs need ``plan.prices`` in the scenario.
    """
    if all(run["replicas"] == 1 and "fleet" not in run for mine in runs for run in mine):
        return ()
    scenarios = [_scenario(folder) for folder in folders]
    hours = [_mean([_gpu_hours(run) for run in mine]) for mine in runs]
    costs = [_mean([_cost(run, scenario) for run in mine]) for mine, scenario in zip(runs, scenarios, strict=True)]
    currencies = [scenario.get("plan", {}).get("currency") or "" for scenario in scenarios]
    rows = [
        FleetFact("replicas", tuple(_replicas(scenario) for scenario in scenarios)),
        FleetFact("router", tuple(str(scenario.get("cluster", {}).get("router", "-")) for scenario in scenarios)),
        FleetFact("GPU hours", tuple(_text(value, count) for value in hours)),
        FleetFact(
            "cost",
            tuple(
                "-" if cost is None else f"{count(cost)} {currency}".rstrip()
                for cost, currency in zip(costs, currencies, strict=True)
            ),
        ),
        FleetFact("busiest replica / mean", tuple(_imbalance(mine) for mine in runs)),
        *(FleetFact(name, tuple(_spread(mine, key, form) for mine in runs)) for name, key, form in _SPREADS),
    ]
    return tuple(row for row in rows if any(value != "-" for value in row.values))


def _scenario(folder: Path) -> Mapping[str, Any]:
    """The resolved scenario of a result; empty where there is none (what is wrong with it, `differing` says)."""
    try:
        read = yaml.safe_load((folder / SCENARIO).read_text(encoding="utf-8"))
    except OSError:
        return {}
    return read if isinstance(read, dict) else {}


def _groups(scenario: Mapping[str, Any]) -> list[tuple[int, int, str, Mapping[str, Any]]]:
    """(replicas, GPUs of each, GPU, engine settings of their own) by kind of replica."""
    engine, given = scenario.get("engine", {}), scenario.get("cluster", {}).get("replicas", 1)
    width, card = engine.get("tensor_parallel_size", 1), str(scenario.get("gpu", "-"))
    if isinstance(given, int):
        return [(given, width, card, {})]
    found: list[tuple[int, int, str, Mapping[str, Any]]] = []
    for group in given:
        own = dict(group.get("engine") or {})
        mine = own.pop("tensor_parallel_size", None) or group.get("tensor_parallel_size") or width
        found.append((group.get("count", 1), mine, str(group.get("gpu") or card), own))
    return found


def _replicas(scenario: Mapping[str, Any]) -> str:
    """``2 of h100-80gb; 1 of 2 x a100-80gb, max_loras 2``."""
    if not scenario:
        return "-"
    texts = []
    for number, width, card, own in _groups(scenario):
        settings = "".join(f", {key} {json.dumps(value)}" for key, value in own.items())
        texts.append(f"{number} of {f'{width} x ' if width > 1 else ''}{card}{settings}")
    scale = scenario.get("cluster", {}).get("autoscale")
    return "; ".join(texts) + (f" (autoscaled within {scale['least']} to {scale['most']})" if scale else "")


def _gpu_hours(run: Mapping[str, Any]) -> float:
    return float(run["fleet"]["gpu_hours"] if "fleet" in run else run["gpus"] * run["duration_s"] / 3600)


def _cost(run: Mapping[str, Any], scenario: Mapping[str, Any]) -> float | None:
    if "fleet" in run:
        return None if run["fleet"]["cost"] is None else float(run["fleet"]["cost"])
    prices, groups = scenario.get("plan", {}).get("prices") or {}, _groups(scenario)
    if any(card not in prices for _, _, card, _ in groups):
        return None
    per_hour = sum(number * width * prices[card] for number, width, card, _ in groups)
    return float(per_hour * run["duration_s"] / 3600)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _text(value: float | None, form: Any) -> str:
    return "-" if value is None else str(form(value))


def _imbalance(runs: Sequence[Mapping[str, Any]]) -> str:
    if runs[0]["replicas"] == 1:
        return "-"
    return _text(_mean([run["engine"]["imbalance"] for run in runs]), count)


def _spread(runs: Sequence[Mapping[str, Any]], key: str, form: Any) -> str:
    """From the lowest replica to the highest one, as means over seeds; replicas that were never there do not count."""
    if any("per_replica" not in run for run in runs):
        return "-"
    rows = [row for row in replicas_over_seeds(runs) if row["requests"]]
    known = [row[key] for row in rows if row[key] is not None]
    if not known:
        return "-"
    low, high = form(min(known)), form(max(known))
    return str(low) if low == high else f"{low} to {high}"
