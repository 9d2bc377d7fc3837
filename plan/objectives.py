"""Objective: one target of a plan's SLO as a page shows it, and its values with their intervals as text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loratory.reports.number_text import percent, percent_between, seconds, seconds_between

_TIME = re.compile(r"(ttft|tpot|itl|e2e|queue)_(\w+)_s")
_LIMIT = re.compile(r"(.+?) at (?:most|least) .*|[\d.]+ % of (.+)", re.DOTALL)
_METRICS = {"e2e": "end-to-end", "queue": "queue time"}

Metric = Mapping[str, Any]
"""A target's value at a candidate: ``mean``, ``low``, ``high``, ``limit``, ``met``, and ``at_least`` if it was cut."""


@dataclass(frozen=True, slots=True)
class Objective:
    """One target: its key in ``metrics``, a short label, and its limit.

    ``share``: the limit is the least share of requests that is asked for; otherwise the most seconds.
    """

    name: str
    label: str
    words: str
    limit: float
    share: bool

    def number(self, value: float | None) -> str:
        """One value: ``1.4 s``, ``99 %``."""
        return percent(value) if self.share else seconds(value)

    def text(self, metric: Metric | None) -> str:
        """``1.4 s [1.2, 1.6]``, ``at least 2.9 s``, or ``not known``."""
        value = known(metric)
        if metric is None or value is None:
            least = None if metric is None else metric.get("at_least")
            return "not known" if least is None else f"at least {self.number(least)}"
        low, high = metric.get("low"), metric.get("high")
        if low is None or high is None:
            return self.number(value)
        return (percent_between if self.share else seconds_between)(value, *self.ends(low, high))

    def ends(self, low: float, high: float) -> tuple[float, float]:
        """The ends of an interval; of a share within 0 and 1, where a normal interval may leave them."""
        return (max(0.0, low), min(1.0, high)) if self.share else (low, high)

    def distance(self, metric: Metric | None) -> float | None:
        """How far a value is from the limit, as a ratio: below 1 it is kept. None where it is not known."""
        if metric is None:
            return None
        value = known(metric)
        value = metric.get("at_least") if value is None else value
        if value is None or value < 0:
            return None
        if self.share:
            return self.limit / value if value else float("inf")
        return value / self.limit if self.limit else float("inf")


def objectives(plan: Mapping[str, Any]) -> list[Objective]:
    """The targets of a plan, in the SLO's order."""
    return [
        Objective(
            item["name"],
            _label(item["name"], item["words"]),
            item["words"],
            item["limit"],
            item["sense"] == "at_least",
        )
        for item in plan["slo"]
    ]


def known(metric: Metric | None) -> float | None:
    """A metric's mean, where it is known."""
    return None if metric is None else metric.get("mean")


def metric_label(name: str) -> str:
    """``TTFT p99`` of ``ttft_p99_s``; another name as it is, with spaces."""
    found = _TIME.fullmatch(name)
    if found is None:
        return name.replace("_", " ")
    return f"{_METRICS.get(found[1], found[1].upper())} {found[2].replace('_', ' ')}"


def _label(name: str, words: str) -> str:
    """A target's words without its limit: ``TTFT p99``, ``requests within TTFT 2 s``."""
    found = _LIMIT.fullmatch(words)
    return next((text for text in found.groups() if text), metric_label(name)) if found else metric_label(name)
