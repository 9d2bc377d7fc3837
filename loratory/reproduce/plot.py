"""Plot: published against simulated figures, one panel per metric, legible in black and white."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loratory.reports.panels import panels
from loratory.reproduce.comparison import Reproduction, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAND = 0.10
"""Relative error that is drawn as a band if no check bounds the metric's."""

_LOG_FROM = 20.0
"""Axes are logarithmic if the largest figure is at least this multiple of the smallest."""


def plot(found: Reproduction) -> str | None:
    """An SVG; None if the reproduction has no numbers to compare."""
    metrics: dict[str, list[Row]] = {}
    for row in found.rows:
        if not isinstance(row.published, str) and not isinstance(row.simulated, str):
            metrics.setdefault(row.metric, []).append(row)
    if not metrics:
        return None
    limits = {check.metric: check.limit for check in found.checks if check.metric}

    def paint(axes: list[Axes]) -> None:
        for ax, (metric, rows) in zip(axes, metrics.items(), strict=True):
            _panel(ax, metric, rows, limits.get(metric, _BAND))

    return panels(len(metrics), 4.2, paint, shared=False)


def _panel(ax: Axes, metric: str, rows: list[Row], band: float) -> None:
    points = {use: _points([row for row in rows if row.use == use]) for use in ("test", "fit")}
    values = [value for pair in points.values() for column in pair for value in column]
    low, high = min(values), max(values)
    log = low > 0 and high / low > _LOG_FROM
    margin = 0.05 * (high - low or abs(high) or 1.0)
    ends = [low / 1.2, high * 1.2] if log else [low - margin, high + margin]
    ax.fill_between(
        ends,
        [e * (1 - band) for e in ends],
        [e * (1 + band) for e in ends],
        color="#e6e6e6",
        label=f"within {band:.0%}",
    )
    ax.plot(ends, ends, "-", color="black", linewidth=0.9, label="equal")
    looks = {
        "test": {"marker": "o", "markerfacecolor": "none", "color": "#0072B2", "label": "predicted"},
        "fit": {"marker": "s", "color": "black", "label": "used to fit"},
    }
    for use, (published, simulated) in points.items():
        if published:
            ax.plot(published, simulated, linestyle="none", **looks[use])  # type: ignore[arg-type]
    if log:
        from matplotlib.ticker import FuncFormatter

        ax.set(xscale="log", yscale="log")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set(title=metric, xlabel="published", ylabel="simulated", xlim=ends, ylim=ends)
    ax.legend(loc="upper left")


def _points(rows: list[Row]) -> tuple[list[float], list[float]]:
    return [float(row.published) for row in rows], [float(row.simulated) for row in rows]
