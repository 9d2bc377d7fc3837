"""SLO: the limits of a scenario such as ``ttft_p99_s: 2.0`` and its targets, judged on a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loratory.errors import InputError
from loratory.reports.number_text import seconds
from loratory.reports.run_columns import Flags, RunColumns
from loratory.reports.run_info import RunInfo
from loratory.reports.slo_target import SloGroup, SloTarget, metric_words, time_target
from loratory.reports.stats import grouped_percentiles
from loratory.serving.workload import Floats, Ints

_NAME = re.compile(r"(ttft|tpot|itl|e2e|queue)_(mean|max|p\d{1,2}(?:\.\d+)?)_s")

ATTAINMENT = "attainment"
"""The key of an SLO for the share of requests that must each meet every limit."""


Gaps = tuple[Floats, Floats]
"""Gaps between output tokens, and the number of tokens with each gap."""


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
        return f"{metric_words(self.metric)} {self.mark}"


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


@dataclass(frozen=True, slots=True)
class Judged:
    """A target and what a run made of it.

    ``value``: seconds or a share, as the target's limit. It is infinite where too many requests did not complete, and
    None where nothing was measured. ``met``: None if no request of the group was measured, else False without a value.
    ``worst``: of a target on several tenants or adapters, the one with the worst value.
    """

    target: SloTarget
    value: float | None
    met: bool | None
    worst: str | None = None


def targets_of(info: RunInfo) -> list[SloTarget]:
    """Everything that the SLO of a run demands: its limits, the share of requests within them, its targets."""
    return every_target(info.slo, info.targets)


def every_target(slo: Mapping[str, float], further: Sequence[SloTarget]) -> list[SloTarget]:
    """The targets that ``{"ttft_p99_s": 2.0, ...}`` stands for, then ``further`` ones. Raises as `read_slo` does."""
    limits = read_slo(slo)
    found = [time_target(limit.metric, limit.mark, limit.most_s) for limit in limits]
    share = slo.get(ATTAINMENT)
    if limits and share is not None:
        found.append(SloTarget(ATTAINMENT, "requests within every limit", share, _each(limits)))
    return [*found, *further]


def judged(run: RunColumns, inter_token: Gaps) -> list[Judged]:
    """Each of `targets_of` the run, judged.

    Over the requests that arrived after warm-up. One that did not complete counts as infinitely late (a mean leaves it
    out, unless none completed), so rejecting requests does not help. ``inter_token`` is read for targets on itl alone.
    """
    return [_judged(run, target, inter_token) for target in targets_of(run.info)]


def judge(run: RunColumns, inter_token: Gaps) -> dict[str, Any]:
    """The ``slo`` object of a run: ``limits`` and ``targets`` as given, each with its value, and whether all are met.

    ``attainment``: the share of measured requests that completed and met every limit; limits on itl are ignored,
    since only steps have it. ``met`` is None without a target, or where one could not be judged and none is missed.
    """
    limits, found = read_slo(run.info.slo), judged(run, inter_token)
    values = {one.target.name: one.value for one in found}
    counted = int(run.counted.sum())
    known = bool(limits and counted)
    good = _good(run, _each(limits)) if known else run.counted
    met = {one.met for one in found}
    return {
        "limits": dict(run.info.slo),
        "values": {limit.key: values[limit.key] for limit in limits} if known else {},
        "attainment": float(good.sum()) / counted if known else None,
        "met": False if False in met else None if None in met or not met else True,
        "targets": [_entry(one) for one in found],
    }


def unjudged(slo: Mapping[str, Any]) -> list[str]:
    """A sentence on each target of a run's ``slo`` object that no measured request is about."""
    return [
        f"{target['words']}: not judged, because no request of this group was measured"
        for target in further_targets(slo)
        if target["met"] is None
    ]


def further_targets(slo: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of ``targets`` of a run's ``slo`` object that ``limits`` does not have."""
    return [target for target in slo.get("targets", ()) if target["name"] not in slo["limits"]]


def _entry(one: Judged) -> dict[str, Any]:
    target = one.target
    return {
        "name": target.name,
        "words": target.words,
        "value": one.value,
        "limit": target.limit,
        "sense": target.sense,
        "unit": target.unit,
        "metrics": list(dict.fromkeys(metric for metric, _ in target.within)),
        "met": one.met,
        "worst": one.worst,
    }


def _each(limits: list[SloLimit]) -> tuple[tuple[str, float], ...]:
    """The limits that a single request can keep or not."""
    return tuple((limit.metric, limit.most_s) for limit in limits if limit.metric != "itl")


def _judged(run: RunColumns, target: SloTarget, inter_token: Gaps) -> Judged:
    chosen = _chosen(run, target.group)
    if not chosen.any():
        return Judged(target, None, None)
    worst = None
    if target.metric == "itl":
        value = mark_of(*inter_token, str(target.mark))
    elif target.group.over is None:
        value = _over_all(run, target, chosen)
    else:
        value, worst = _over_groups(run, target, chosen)
    return Judged(target, value, value is not None and target.met_by(value), worst)


def _chosen(run: RunColumns, group: SloGroup) -> Flags:
    """The measured requests that a target is about."""
    chosen = run.counted
    if group.tenant is not None:
        code, names = run.named("tenant")
        chosen = chosen & (code == names.index(group.tenant) if group.tenant in names else False)
    code, names = run.named("adapter")
    if group.adapters is not None and group.adapters.base:
        chosen = chosen & (code < 0)
    elif group.adapters is not None:
        wanted = np.array([*(name in group.adapters.names for name in names), False])
        chosen = chosen & wanted[code]
    return chosen & (code >= 0) if group.over == "adapter" else chosen


def _over_all(run: RunColumns, target: SloTarget, chosen: Flags) -> float | None:
    if target.metric is None:
        return float((_good(run, target.within) & chosen).sum()) / int(chosen.sum())
    values, mark = _times(run, target.metric)[chosen], str(target.mark)
    values = values[~np.isnan(values)]
    if mark == "mean" and bool(np.isfinite(values).any()):
        values = values[np.isfinite(values)]
    return mark_of(values, np.ones(len(values)), mark)


def _over_groups(run: RunColumns, target: SloTarget, chosen: Flags) -> tuple[float | None, str | None]:
    """The value of a target over tenants or adapters, and the worst of them."""
    code, names = run.named(str(target.group.over))
    if target.metric is None:
        count = np.bincount(code[chosen], minlength=len(names))
        good = np.bincount(code[chosen & _good(run, target.within)], minlength=len(names))
        values = np.divide(good, count, out=np.full(len(names), np.nan), where=count > 0)
    else:
        times = _times(run, target.metric)
        keep = chosen & ~np.isnan(times)
        values = _marks(code[keep], times[keep], len(names), str(target.mark))
    some = ~np.isnan(values)
    if not some.any():
        return None, None
    at = int(np.nanargmin(values) if target.metric is None else np.nanargmax(values))
    if target.group.mark is None:
        return float(values[at]), names[at]
    return mark_of(values[some], np.ones(int(some.sum())), target.group.mark), names[at]


def _marks(group: Ints, values: Floats, groups: int, mark: str) -> Floats:
    """A mark of the values in each group, as `mark_of` has it; NaN for a group without values."""
    late = np.isinf(values)
    if mark == "mean":
        done = np.bincount(group[~late], minlength=groups)
        total = np.bincount(group[~late], weights=values[~late], minlength=groups)
        none = np.where(np.bincount(group, minlength=groups) > 0, np.inf, np.nan)
        return np.where(done > 0, total / np.maximum(done, 1), none)
    share = 100.0 if mark == "max" else float(mark[1:])
    unfinished = np.bincount(group[late], minlength=groups) > 0
    rest = unfinished[group]
    found: Floats = grouped_percentiles(group[~rest], values[~rest], groups, (share,))[0]
    if unfinished.any():
        code, times = group[rest], values[rest]
        order = np.lexsort((times, code))
        ends = np.searchsorted(code[order], np.arange(groups), side="right")
        count = np.bincount(code, minlength=groups)
        place = np.maximum(np.ceil(share / 100 * count * (1 - 1e-12)).astype(np.int64), 1)
        found[unfinished] = times[order][(ends - count + place - 1)[unfinished]]
    return found


def _times(run: RunColumns, metric: str) -> Floats:
    """A metric of each request; infinite where it did not complete, NaN where it has none."""
    each = run.metric(metric)
    assert each is not None
    return np.where(run.completed, each, np.inf)


def _good(run: RunColumns, within: tuple[tuple[str, float], ...]) -> Flags:
    """The measured requests that completed and keep every limit."""
    good = run.completed & run.counted
    for metric, limit in within:
        each = run.metric(metric)
        if each is not None:
            good &= np.isnan(each) | (each <= limit)
    return good


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
