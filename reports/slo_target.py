"""SloTarget: one thing that an SLO demands of a run, in words and as a measure; how many late requests it allows."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Literal

from loratory.errors import several
from loratory.reports.number_text import listed, percent, seconds

Unit = Literal["tenant", "adapter"]


@dataclass(frozen=True, slots=True)
class AdapterClass:
    """Adapters by name, with a name for them: ``adapters of rank 64``; or the base model (no names)."""

    words: str
    names: frozenset[str] = frozenset()
    base: bool = False


@dataclass(frozen=True, slots=True)
class SloGroup:
    """Whose requests a target is about: all, unless ``tenant`` or ``adapters`` choose.

    ``over``: they are measured for each tenant or each adapter (then without those for the base model). The target is
    about the ``mark`` over these values (``p95``), or where ``mark`` is None about the worst of them.
    """

    tenant: str | None = None
    adapters: AdapterClass | None = None
    over: Unit | None = None
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class SloTarget:
    """One target: a ``mark`` of a ``metric`` is at most ``limit`` seconds, or a share of requests at least ``limit``.

    ``name``: a stable key, ``ttft_p95_s of tenant B``. ``label``: what is measured, in words. ``within``: the
    limits, seconds, beyond which a single request is late, as pairs of metric and limit; for a share, those that each
    request has to keep; for a metric, its own. ``metric`` and ``mark`` are None for a share.
    """

    name: str
    label: str
    limit: float
    within: tuple[tuple[str, float], ...]
    metric: str | None = None
    mark: str | None = None
    group: SloGroup = SloGroup()

    @property
    def sense(self) -> Literal["at_most", "at_least"]:
        """Whether the value has to be at most or at least the limit."""
        return "at_least" if self.metric is None else "at_most"

    @property
    def unit(self) -> Literal["s", "share"]:
        """Unit of value and limit."""
        return "share" if self.metric is None else "s"

    @property
    def words(self) -> str:
        """``TTFT p95 of tenant B at most 2 s``, ``99 % of requests of tenant B within TTFT 2 s``."""
        if self.metric is None:
            return f"{self.limit * 100:.10g} % of {self.label}"
        return f"{self.label} at most {seconds(self.limit)}"

    def met_by(self, value: float) -> bool:
        """Whether a value meets the target."""
        return value >= self.limit if self.metric is None else value <= self.limit


def metric_words(metric: str) -> str:
    """``TTFT``, ``end-to-end``, ``queue time``."""
    return {"e2e": "end-to-end", "queue": "queue time"}.get(metric, metric.upper())


def time_target(metric: str, mark: str, limit: float, group: SloGroup = SloGroup()) -> SloTarget:
    """A target on a mark of a metric, seconds.

    >>> time_target("ttft", "p95", 2.0, SloGroup(over="adapter", mark="p95")).words
    'p95 over adapters of their TTFT p95 at most 2 s'
    """
    key, measure = f"{metric}_{mark}_s", f"{metric_words(metric)} {mark}"
    if group.mark is None:
        whose = _whose(group)
        return SloTarget(key + whose, measure + whose, limit, ((metric, limit),), metric, mark, group)
    chosen = group.adapters.words if group.adapters is not None else None
    over = chosen or "adapters" if group.over == "adapter" else "tenants"
    rest = f" for tenant {group.tenant}" if group.tenant is not None else ""
    rest += f" for {chosen}" if chosen is not None and group.over == "tenant" else ""
    name = f"{group.mark} over {over} of {key}{rest}"
    label = f"{group.mark} over {over} of their {measure}{rest}"
    return SloTarget(name, label, limit, ((metric, limit),), metric, mark, group)


def share_target(share: float, within: tuple[tuple[str, float], ...], group: SloGroup = SloGroup()) -> SloTarget:
    """A target on the share of requests that complete and keep every limit of ``within``."""
    keys = ", ".join(f"{metric}_s {limit:.10g}" for metric, limit in within)
    limits = listed([f"{metric_words(metric)} {seconds(limit)}" for metric, limit in within])
    whose = _whose(group)
    return SloTarget(f"attainment ({keys}){whose}", f"requests{whose} within {limits}", share, within, group=group)


def _whose(group: SloGroup) -> str:
    """`` of tenant B``, `` of each tenant and adapters of rank 64``, empty for all requests."""
    parts = [f"tenant {group.tenant}"] if group.tenant is not None else []
    if group.over is not None:
        parts.append(f"each {group.over}")
    if group.adapters is not None:
        if group.over == "adapter":
            parts[-1] = f"each of {group.adapters.words}"
        else:
            parts.append(group.adapters.words)
    return f" of {' and '.join(parts)}" if parts else ""


def named_class(names: tuple[str, ...]) -> AdapterClass:
    """A class of adapters by their names."""
    plural = "s" if len(names) > 1 else ""
    return AdapterClass(f"adapter{plural} {several(names, 3)}", frozenset(names))


def value_words(value: float | None, unit: str) -> str:
    """``3.1 s`` or ``98 %``."""
    return percent(value) if unit == "share" else seconds(value)


def allowed_misses(target: SloTarget, count: int) -> int | None:
    """How many of ``count`` measured requests may be late while the target can still be met; None: it is not known.

    A request is late if it does not complete, or exceeds a limit of ``SloTarget.within``. With more late requests the
    target is missed, whatever the others do; with as many it can be met, if the late ones are only just late. ``count``
    may be more than the requests that have the metric. For a target on each tenant or adapter, it holds for one of
    them. None for means, for ITL, which steps have, and for a mark over tenants or adapters.
    """
    if count < 1:
        return 0
    if target.metric is None:
        most = int((1 - target.limit) * count)
        while most < count and target.met_by((count - most - 1) / count):
            most += 1
        while most > 0 and not target.met_by((count - most) / count):
            most -= 1
        return most
    if target.mark in (None, "mean") or target.metric == "itl" or target.group.mark is not None:
        return None
    share = 100.0 if target.mark == "max" else float(target.mark[1:])
    # numpy interpolates between the value at floor(place), which must be in time, and the next, which need not be.
    return count - 1 - floor((count - 1) * (share / 100))
