"""SloLimit: a service-level objective such as ``ttft_p99_s: 2.0``, read from a scenario and applied to a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loratory.errors import InputError
from loratory.reports.number_text import seconds
from loratory.reports.run_columns import RunColumns, present
from loratory.serving.workload import Floats, Ints

_NAME = re.compile(r"(ttft|tpot|itl|e2e|queue)_(mean|max|p\d{1,2}(?:\.\d+)?)_s")

ATTAINMENT = "attainment"
"""The key of an SLO for the share of requests that must each meet every limit."""


@dataclass(frozen=True, slots=True)
class SloLimit:
    """One limit: ``mark`` (mean, max, p99 ...) of ``metric`` (ttft, tpot, itl, e2e, queue) is at most ``most_s``."""

    key: str
    metric: str
    mark: str
    most_s: float

    @property
    def words(self) -> str:
        """The limit in words: ``TTFT p99 at most 2 s``."""
        return f"{self.label} at most {seconds(self.most_s)}"

    @property
    def label(self) -> str:
        """``TTFT p99``, ``queue time mean``."""
        name = {"e2e": "end-to-end", "queue": "queue time"}.get(self.metric, self.metric.upper())
        return f"{name} {self.mark}"


def read_slo(slo: Mapping[str, float]) -> list[SloLimit]:
    """Limits from ``{"ttft_p99_s": 2.0, ...}``; the key ``attainment`` is not a limit and is ignored.

    Raises `InputError` for an unknown name or an impossible value.
    """
    limits = []
    for key, most in slo.items():
        if key == ATTAINMENT:
            continue
        match = _NAME.fullmatch(key)
        if match is None:
            raise InputError(
                f"slo.{key} is not an objective: write METRIC_MARK_s with METRIC one of ttft, tpot, itl, e2e, queue "
                "and MARK one of mean, p50 ... p99, max, for example ttft_p99_s"
            )
        if not most > 0:
            raise InputError(f"slo.{key} is {most}, but a limit is above 0 seconds: correct it")
        limits.append(SloLimit(key, match[1], match[2], float(most)))
    return limits


def judge(run: RunColumns, inter_token: tuple[Floats, Floats]) -> dict[str, Any]:
    """The ``slo`` object of a run. ``inter_token``: gaps between output tokens, and the number of tokens with each gap.

    ``met``: every limit holds, where a measured request that did not complete counts as infinitely late (a mean
    ignores it), so rejecting requests does not meet an objective. ``attainment``: the share of measured requests that
    completed and met every limit; limits on itl are ignored, since only steps have it.
    """
    limits = read_slo(run.info.slo)
    counted = int(run.counted.sum())
    if not limits or not counted:
        return {"limits": dict(run.info.slo), "values": {}, "attainment": None, "met": None}
    values = {limit.key: _value(run, limit, inter_token) for limit in limits}
    good = run.completed & run.counted
    for limit in limits:
        each = run.metric(limit.metric)
        if each is not None:
            good &= np.isnan(each) | (each <= limit.most_s)
    attainment = float(good.sum()) / counted
    kept = all((value := values[limit.key]) is not None and value <= limit.most_s for limit in limits)
    return {
        "limits": dict(run.info.slo),
        "values": values,
        "attainment": attainment,
        "met": kept and attainment >= run.info.slo.get(ATTAINMENT, 0.0),
    }


def _value(run: RunColumns, limit: SloLimit, inter_token: tuple[Floats, Floats]) -> float | None:
    each = run.metric(limit.metric)
    if each is None:
        return mark_of(inter_token[0], inter_token[1], limit.mark)
    done = present(each[run.counted & run.completed])
    late = np.full(int((run.counted & ~run.completed).sum()), np.inf)
    values = done if limit.mark == "mean" else np.concatenate((done, late))
    return mark_of(values, np.ones(len(values)), limit.mark)


def mark_of(values: Floats, counts: Floats | Ints, mark: str) -> float | None:
    """Mean, max or percentile of values, each of which counts ``counts`` times; None without values.

    A percentile is the linear interpolation of numpy when every count is 1 and all values are finite, else the smallest
    value that reaches its share.
    """
    values, counts = values[counts > 0], counts[counts > 0]
    if not len(values):
        return None
    if mark == "mean":
        return float(np.average(values, weights=counts))
    if mark == "max":
        return float(values.max())
    share = float(mark[1:])
    if bool((counts == 1).all()) and bool(np.isfinite(values).all()):
        return float(np.percentile(values, share))
    order = np.argsort(values, kind="stable")
    below = np.cumsum(counts[order])
    return float(values[order][np.searchsorted(below, share / 100 * below[-1] * (1 - 1e-12))])
