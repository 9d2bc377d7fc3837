"""early_stop: ends a run as soon as so many requests were late that it cannot meet its SLO any more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loratory.reports.slo_target import SloTarget, allowed_misses
from loratory.scenarios.schema import Scenario
from loratory.serving.events import Ended
from loratory.serving.request import Request
from loratory.serving.sequence import sequence_of
from loratory.serving.workload import Workload

PER_REQUEST = ("ttft", "tpot", "e2e")
"""Metrics that a request's end tells."""


class CertainlyMissedError(Exception):
    """A run was ended because ``targets`` of its SLO are missed, whatever follows."""

    def __init__(self, targets: tuple[str, ...]) -> None:
        super().__init__(targets)  # SimPy makes it anew from its arguments
        self.targets = targets


class Watch:
    """Counts late requests as they end, for every target that a certain number of them decides.

    Those are percentiles and shares of TTFT, TPOT and end-to-end time, over all requests, those of a tenant or of some
    adapters, or of each tenant or adapter. Requests that arrive during the warm-up do not count; where their arrivals
    depend on the run, and a warm-up is cut, nothing is watched.
    """

    def __init__(self, scenario: Scenario, targets: Sequence[SloTarget], workload: Workload) -> None:
        self.seen = 0
        """Requests that have ended."""
        warmup = scenario.warmup_s
        self._warmup = 0.0 if warmup == "auto" else float(warmup)
        moved = workload.after is not None or workload.concurrency is not None
        known = warmup != "auto" and scenario.workload.cutoff_s is None and not (moved and self._warmup > 0)
        self._targets: list[SloTarget] = []
        self._left: dict[tuple[int, str | None], int] = {}
        for target in targets if known else ():
            self._add(target, workload)

    def _add(self, target: SloTarget, workload: Workload) -> None:
        """Watch a target: how many late requests each of its groups may still have."""
        if not any(metric in PER_REQUEST for metric, _ in target.within) or target.group.mark is not None:
            return
        place = len(self._targets)
        tenants, adapters = np.array(workload.tenants, object), np.array([*workload.adapters, None], object)
        counted = workload.arrival >= self._warmup if self._warmup else np.ones(len(workload), bool)
        groups: dict[str | None, int] = {}
        for tenant, adapter in zip(tenants[workload.tenant[counted]], adapters[workload.adapter[counted]], strict=True):
            if _is_of(target, tenant, adapter):
                group = _group_of(target, tenant, adapter)
                groups[group] = groups.get(group, 0) + 1
        found = {group: allowed_misses(target, count) for group, count in groups.items()}
        if any(allowed is None for allowed in found.values()):
            return
        self._targets.append(target)
        self._left.update({(place, group): int(allowed or 0) for group, allowed in found.items()})

    @property
    def watches(self) -> bool:
        """Whether anything can be decided before the end."""
        return bool(self._left)

    def ended(self, event: Ended) -> None:
        """One request ended. Raises `CertainlyMissedError` once a target is missed for certain."""
        self.seen += 1
        sequence = sequence_of(event.request)
        request: Request = sequence.request
        if request.arrival < self._warmup:
            return
        first, end, more = sequence.first_token_at, sequence.ended_at, sequence.last_generated - 1
        took: dict[str, float] = {}
        if event.status == "completed" and first is not None and end is not None:
            took = {"ttft": first - request.arrival, "e2e": end - request.arrival}
            took["tpot"] = (end - first) / more if more > 0 else 0.0
        missed = []
        for place, target in enumerate(self._targets):
            if took and all(took.get(metric, 0.0) <= limit for metric, limit in target.within):
                continue
            if not _is_of(target, request.tenant, request.adapter):
                continue
            key = (place, _group_of(target, request.tenant, request.adapter))
            self._left[key] -= 1
            if self._left[key] < 0:
                missed.append(target.name)
        if missed:
            raise CertainlyMissedError(tuple(missed))


def _is_of(target: SloTarget, tenant: str, adapter: str | None) -> bool:
    """Whether a target is about a request of this tenant and adapter."""
    group = target.group
    if group.tenant is not None and tenant != group.tenant:
        return False
    if group.adapters is not None:
        return adapter is None if group.adapters.base else adapter in group.adapters.names
    return group.over != "adapter" or adapter is not None


def _group_of(target: SloTarget, tenant: str, adapter: str | None) -> str | None:
    """Of a target on each tenant or adapter, whose the request is; None for other targets."""
    over = target.group.over
    return tenant if over == "tenant" else adapter if over == "adapter" else None
