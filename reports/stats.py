"""stats: percentiles, percentiles of groups, Student-t intervals, and rounding that keeps bytes stable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from loratory.serving.workload import Floats, Ints

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}


def clean(value: float | None) -> float | None:
    """A float at 9 significant digits; None for None, NaN and infinities, which JSON cannot hold."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{float(value):.9g}")


def cleaned(value: Any) -> Any:
    """`clean` for every float in nested dicts and lists."""
    if isinstance(value, dict):
        return {key: cleaned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [cleaned(item) for item in value]
    return clean(float(value)) if isinstance(value, (float, np.floating)) else value


def describe(values: Floats) -> dict[str, float | None]:
    """Mean, percentiles (linear interpolation, as numpy's default) and maximum; all None without values."""
    if len(values) == 0:
        return dict.fromkeys(("mean", *PERCENTILES, "max"))
    marks = np.percentile(values, list(PERCENTILES.values()))
    return {
        "mean": float(values.mean()),
        **dict(zip(PERCENTILES, marks.tolist(), strict=True)),
        "max": float(values.max()),
    }


def describe_weighted(values: Floats, weights: Floats) -> dict[str, float | None]:
    """Like `describe`, each value counted ``weights`` times; a percentile is the first value to reach its share."""
    keep = weights > 0
    if not keep.all():
        values, weights = values[keep], weights[keep]
    if len(values) == 0:
        return dict.fromkeys(("mean", *PERCENTILES, "max"))
    order = np.argsort(values, kind="stable")
    below = weights[order]
    np.cumsum(below, out=below)
    places = order[np.searchsorted(below, np.array(list(PERCENTILES.values())) / 100 * below[-1] * (1 - 1e-12))]
    mean = float(values @ weights) / float(below[-1])
    return {"mean": mean, **dict(zip(PERCENTILES, values[places].tolist(), strict=True)), "max": float(values.max())}


def grouped_percentiles(group: Ints, values: Floats, groups: int, percent: Sequence[float]) -> Floats:
    """Percentiles of ``values`` in each of ``groups`` groups: shape (len(percent), groups), NaN for an empty group."""
    order = np.lexsort((values, group))
    ordered = values[order]
    edges = np.searchsorted(group[order], np.arange(groups + 1))
    first, count = edges[:-1], np.diff(edges)
    result = np.full((len(percent), groups), np.nan)
    some = count > 0
    for row, p in enumerate(percent):
        place = p / 100 * (count[some] - 1)
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, count[some] - 1)
        at_low, at_high = ordered[first[some] + low], ordered[first[some] + high]
        result[row, some] = at_low + (at_high - at_low) * (place - low)
    return result


def grouped_sum(group: Ints, values: Floats, groups: int) -> Floats:
    """Sum of ``values`` in each group."""
    return np.bincount(group, weights=values, minlength=groups).astype(np.float64)


@lru_cache(maxsize=1024)
def student_t(df: float, confidence: float = 0.95) -> float:
    """Two-sided Student-t quantile: |T| is below it with probability ``confidence``; relative error below 1e-5.

    With t = sqrt(df) tan(u) the density becomes cos(u)^(df - 1) du on [0, pi/2), which is summed by the trapezoid rule.
    Raises `ValueError` for ``df`` below 1.
    """
    if df < 1:
        raise ValueError(f"{df} degrees of freedom: at least 1 is needed")
    top = math.pi / 2 if df <= 100 else math.atan(40 / math.sqrt(df))
    u = np.linspace(0.0, top, 40_001)
    density = np.cos(u) ** (df - 1)
    mass = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    return math.sqrt(df) * math.tan(float(np.interp(confidence, mass / mass[-1], u)))


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % Student-t interval of the mean; None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    return student_t(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)


def areas(start: Floats, end: Floats, values: Floats, edges: Floats) -> Floats:
    """For each cell between two ``edges``, the sum of value times the seconds between its start and end in the cell."""
    return np.diff(_area(start, values, edges) - _area(end, values, edges))


def _area(moments: Floats, values: Floats, edges: Floats) -> Floats:
    """For each edge, the sum of value * (edge - moment) over the moments at or before it."""
    order = np.argsort(moments, kind="stable")
    place = np.searchsorted(moments[order], edges, side="right")
    weight = np.concatenate(([0.0], np.cumsum(values[order])))
    moment = np.concatenate(([0.0], np.cumsum((values * moments)[order])))
    return np.asarray(weight[place] * edges - moment[place], np.float64)
