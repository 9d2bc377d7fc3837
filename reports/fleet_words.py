"""Fleet words: what became of a fleet and what it cost, in sentences, with the prices behind the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loratory.reports.number_text import count, listed, plural
from loratory.reports.verdict_types import PolicyRuns, by_policy


def fleet_sentences(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(policy, what became of its fleet), means over seeds; nothing for fleets whose replicas stay."""
    found = []
    for policy in by_policy([run for run in runs if "fleet" in run]):
        hours = count(policy.get("fleet.gpu_hours"))
        parts = [_open(policy), f"{hours} GPU hour{'' if hours == '1' else 's'}{_cost(policy)}"]
        for name, one, many in (
            ("failures", "failure", "failures"),
            ("resent", "request sent again", "requests sent again"),
        ):
            number = policy.get(f"fleet.{name}") or 0.0
            parts.append(f"{count(number) if number else 'no'} {one if number == 1 else many}")
        found.append((policy.name, ", ".join(parts)))
    return found


def cost_head(runs: Sequence[Mapping[str, Any]]) -> str:
    """The head of a column of costs: ``cost, USD``."""
    return ", ".join(filter(None, ["cost", _currency(runs)]))


def cost_note(runs: Sequence[Mapping[str, Any]]) -> str:
    """The prices of a fleet, for the caption of its table; what is missing where the cost is not known for that."""
    given = [run["fleet"]["prices"] for run in runs if "fleet" in run]
    prices: Mapping[str, float | None] = (given[0] if given else None) or {}
    known = [f"{count(price)} for {gpu}" for gpu, price in prices.items() if price is not None]
    unknown = [gpu for gpu, price in prices.items() if price is None]
    if unknown:
        return f" (no cost, because plan.prices has no price for {listed(unknown)})"
    unit = _currency(runs) or "in the unit of plan.prices"
    return f" (prices of a GPU an hour, {unit}: {listed(known)})" if known else ""


def _currency(runs: Sequence[Mapping[str, Any]]) -> str:
    return next((run["fleet"]["currency"] for run in runs if "fleet" in run), None) or ""


def _open(policy: PolicyRuns) -> str:
    fewest, most = (policy.get(f"fleet.open.{end}") or 0.0 for end in ("min", "max"))
    if fewest == most:
        return f"{plural(round(most), 'replica')} open throughout" if most == int(most) else f"{count(most)} open"
    return f"{count(policy.get('fleet.open.mean'))} replicas open on average ({count(fewest)} to {count(most)})"


def _cost(policy: PolicyRuns) -> str:
    cost = policy.get("fleet.cost")
    if cost is not None:
        return f" that cost {count(cost)} {_currency(policy.runs)}".rstrip()
    return cost_note(policy.runs)
