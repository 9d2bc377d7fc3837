"""Sweep figures: the main metrics of a sweep against each swept key, one figure for each key and policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loratory.reports.panels import Figure, line_look, panels, plain_ticks, short_name
from loratory.reports.sweep import policies_of, rows_of, short_keys, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METRICS: tuple[tuple[str, str, float], ...] = (
    ("TTFT p99, s", "ttft_s.p99", 1.0),
    ("TPOT p99, ms", "tpot_s.p99", 1e3),
    ("output tokens/s", "throughput.output_tokens_per_s", 1.0),
    ("within the SLO, %", "slo.attainment", 100.0),
)
"""(label of the axis, metric, factor) of the panels."""

_MOST_LINES = 11
"""Most lines in a figure, each with a marker of its own."""

_WIDE = 8.0
"""A ratio of the largest to the least value from which an axis is logarithmic."""

_SPREAD = 50.0
"""The same for a metric."""


def sweep_figures(summary: Mapping[str, Any]) -> list[Figure]:
    """A figure against each swept key whose values are numbers, or else against the first key; for each policy.

    A line has the same values of the other keys.
    """
    swept = summary["sweep"]
    chosen = [key for key, values in swept.items() if all(map(_is_number, values))] or list(swept)[:1]
    policies = policies_of(summary)
    figures = []
    for key in chosen:
        for place, policy in enumerate(policies):
            name = f"sweep_{list(swept).index(key)}_{place}"
            figures.append(_figure(name, summary, key, policy, len(policies) > 1))
    return figures


def _figure(name: str, summary: Mapping[str, Any], key: str, policy: str, named: bool) -> Figure:
    swept = summary["sweep"]
    short = short_keys(list(swept))
    others = [other for other in swept if other != key]
    lines: dict[str, list[tuple[Any, Mapping[str, Any]]]] = {}
    for variant, row in rows_of(summary):
        if row["policy"] == policy:
            label = ", ".join(f"{short[other]} {value_text(variant['settings'][other])}" for other in others)
            lines.setdefault(label, []).append((variant["settings"][key], row["metrics"]))
    shown = dict(list(lines.items())[:_MOST_LINES])
    shown_metrics = [item for item in _METRICS if any(item[1] in row for line in shown.values() for _, row in line)]
    values = list(swept[key])
    numeric = all(map(_is_number, values))
    at: Callable[[Any], float] = float if numeric else values.index

    def paint(axes: list[Axes]) -> None:
        for ax, (label, metric, factor) in zip(axes, shown_metrics, strict=True):
            _paint(ax, shown, metric, factor, at, numeric)
            ax.set_ylabel(label)
        if numeric:
            places = sorted(map(float, values))
            if places[0] > 0 and places[-1] >= _WIDE * places[0]:
                axes[-1].set_xscale("log")
            axes[-1].minorticks_off()
            axes[-1].set_xticks(places, [f"{place:g}" for place in places])
        else:
            axes[-1].set_xticks(range(len(values)), [short_name(value_text(value), 14) for value in values])
        axes[-1].set_xlabel(key)

    left = len(lines) - len(shown)
    caption = f"The main metrics against {key}, means over seeds with 95 % intervals."
    caption += " Along a line, the other swept keys stay the same." if others else ""
    caption += f" {left} more lines are in the table only." if left else ""
    of = f" under {policy}" if named else ""
    svg = panels(len(shown_metrics), 1.7, paint, len(shown))
    return Figure(name, f"Metrics by {short[key]}{of}", caption, svg)


def _paint(
    ax: Axes,
    lines: Mapping[str, Sequence[tuple[Any, Mapping[str, Any]]]],
    metric: str,
    factor: float,
    at: Callable[[Any], float],
    joined: bool,
) -> None:
    every: list[float] = []
    for place, (label, line) in enumerate(lines.items()):
        found = sorted(((at(value), row[metric]) for value, row in line if metric in row), key=lambda item: item[0])
        if not found:
            continue
        means = [item["mean"] * factor for _, item in found]
        half = [0.0 if item["high"] is None else (item["high"] - item["mean"]) * factor for _, item in found]
        every += means
        style: dict[str, Any] = {**line_look(place, 1), **({} if joined else {"linestyle": "none"})}
        bars: dict[str, Any] = {"yerr": half, "capsize": 2.5, "elinewidth": 0.8} if any(half) else {}
        ax.errorbar([x for x, _ in found], means, label=short_name(label, 40), **style, **bars)
    positive = [value for value in every if value > 0]
    if len(positive) == len(every) and every and max(every) > _SPREAD * min(every):
        ax.set_yscale("log")
        plain_ticks(ax.yaxis)
    else:
        ax.set_ylim(bottom=0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
