"""RunColumns: the columns of a run's records as numpy arrays, times counted from the run's start."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from loratory.reports.arrow_arrays import values_of
from loratory.reports.recorder import Records
from loratory.reports.run_info import RunInfo
from loratory.reports.tables import codes, floats
from loratory.reports.tenant_service import Demand, service_gap
from loratory.reports.warmup import WarmUp, detect
from loratory.serving.run_end import NOWHERE
from loratory.serving.workload import Floats, Ints

Flags = npt.NDArray[np.bool_]

WAITS = ("queue_s", "load_wait_s", "prefill_s", "decode_s", "preempted_s")
"""The parts of a completed request's e2e time, in order."""

_TIMES = {"arrival", "admitted", "first_token", "finish", "start", "end"}


@dataclass(frozen=True)
class RunColumns:
    """One run's records as columns, read when asked for. One entry per request, step or event."""

    info: RunInfo
    records: Records
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def number(self, name: str) -> Floats:
        """A numeric column of the requests, NaN where null; times in seconds from the run's start."""
        if name not in self._kept:
            values = floats(self.records.requests.read([name]), name)
            self._kept[name] = values - self.info.start_s if name in _TIMES else values
        return self._kept[name]  # type: ignore[no-any-return]

    def named(self, name: str) -> tuple[Ints, list[str]]:
        """A name column of the requests as codes (-1 where null) and the names."""
        if name not in self._kept:
            self._kept[name] = codes(self.records.requests.read([name]), name)
        return self._kept[name]  # type: ignore[no-any-return]

    def step(self, name: str) -> Floats:
        """A column of the steps; start and end in seconds from the run's start. Not kept: a run has millions."""
        values: Floats = values_of(self.records.steps.read([name]).column(name))
        return values - self.info.start_s if name in _TIMES and self.info.start_s else values

    @property
    def places(self) -> Ints:
        """The replica of each request; `NOWHERE` for one that ended while none was open."""
        place = self.number("replica")
        return np.where(np.isnan(place), NOWHERE, place).astype(np.int64)

    @cached_property
    def by_replica(self) -> slice | Ints:
        """An index that puts the steps of each replica together, in order of time, as each engine emitted them."""
        replica = self.step("replica")
        if not len(replica) or bool((replica == replica[0]).all()):
            return slice(None)
        return np.argsort(replica, kind="stable")

    def event_times(self, kind: str) -> Floats:
        """Seconds at which events of a kind happened after the warm-up."""
        times, is_kind = self._event_columns[0], self._is(kind)
        return times[is_kind & (times >= self.warmup)]

    def loads_by_adapter(self) -> Counter[str]:
        """How often each adapter was loaded to the GPU after the warm-up."""
        times, _, _, adapter, names = self._event_columns
        found = np.bincount(adapter[self._is("load") & (times >= self.warmup)], minlength=len(names))
        return Counter({name: int(count) for name, count in zip(names, found, strict=True) if count})

    def events_by_adapter(self, kind: str) -> dict[str, list[tuple[float, str]]]:
        """Events of a kind by adapter, the warm-up included: seconds, and the tier where a load begins (else "")."""
        times, _, _, adapter, names = self._event_columns
        mine = self._is(kind) & (adapter >= 0)
        tier, tiers = codes(self.records.events.read(["tier"]), "tier")
        found: dict[str, list[tuple[float, str]]] = {}
        for at, name, begins in zip(times[mine].tolist(), adapter[mine].tolist(), tier[mine].tolist(), strict=True):
            found.setdefault(names[name], []).append((at, tiers[begins] if begins >= 0 else ""))
        return found

    def loads_by_replica(self) -> Ints:
        """How many loads to the GPU began on each replica after the warm-up."""
        began = self._is("load") & (self._event_columns[0] >= self.warmup)
        place = floats(self.records.events.read(["replica"]), "replica")[began].astype(np.int64)
        return np.bincount(place, minlength=self.info.replicas)

    def loads_under_way(self, replica: int) -> tuple[Floats, Ints]:
        """Times at which a load to the GPU of one replica began (+1) or ended (-1), in order, including the warm-up."""
        times = self._event_columns[0]
        here = floats(self.records.events.read(["replica"]), "replica") == replica
        began, ended = times[here & self._is("load")], times[here & self._is("loaded")]
        both = np.concatenate((began, ended))
        order = np.argsort(both, kind="stable")
        times, change = both[order], np.repeat(np.array([1, -1]), (len(began), len(ended)))[order]
        for gone in self.gone(replica):  # its loads in flight end with it
            place = int(np.searchsorted(times, gone, side="right"))
            left = int(change[:place].sum())
            times, change = np.insert(times, place, gone), np.insert(change, place, -left)
        return times, change

    def gone(self, replica: int) -> list[float]:
        """The seconds at which a replica of a fleet failed or went."""
        fleet, start_s = self.info.fleet, self.info.start_s
        changes = [] if fleet is None else [each for each in fleet.changes if each.replica == replica]
        return [each.at_s - start_s for each in changes if each.state in ("failed", "off")]

    def loads_by_tier(self) -> Counter[str]:
        """How many loads to the GPU began in each tier after the warm-up."""
        times, _, _, _, _ = self._event_columns
        tier, names = codes(self.records.events.read(["tier"]), "tier")
        found = np.bincount(tier[self._is("load") & (times >= self.warmup)], minlength=len(names))
        return Counter({name: int(count) for name, count in zip(names, found, strict=True) if count})

    @cached_property
    def _event_columns(self) -> tuple[Floats, Ints, list[str], Ints, list[str]]:
        table = self.records.events.read()
        return floats(table, "time") - self.info.start_s, *codes(table, "kind"), *codes(table, "adapter")

    def _is(self, kind: str) -> Flags:
        _, kinds, names, _, _ = self._event_columns
        return kinds == names.index(kind) if kind in names else np.zeros(len(kinds), bool)

    @property
    def count(self) -> int:
        """Number of requests in the records."""
        return len(self.number("arrival"))

    @cached_property
    def settles(self) -> WarmUp:
        """When the run settles."""
        return detect(self.arrival, self.finish)

    @property
    def warmup(self) -> float:
        """Seconds at the start that are not measured."""
        given = self.info.warmup_s
        return (self.settles.end_s or 0.0) if given == "auto" else given

    def has_status(self, status: str) -> Flags:
        """Which requests ended with this status."""
        code, names = self.named("status")
        return code == names.index(status) if status in names else np.zeros(len(code), bool)

    @property
    def arrival(self) -> Floats:
        """Arrival, seconds."""
        return self.number("arrival")

    @property
    def first(self) -> Floats:
        """First output token, seconds; NaN if never."""
        return self.number("first_token")

    @property
    def finish(self) -> Floats:
        """Final status, seconds."""
        return self.number("finish")

    @property
    def output(self) -> Floats:
        """Output tokens generated."""
        return self.number("output_tokens")

    @cached_property
    def completed(self) -> Flags:
        """Requests that completed."""
        return self.has_status("completed")

    @cached_property
    def counted(self) -> Flags:
        """Requests that are measured: those that arrived after warm-up."""
        return np.asarray(self.arrival >= self.warmup)

    @cached_property
    def ttft(self) -> Floats:
        """Arrival to first token, seconds; NaN without one."""
        return self.first - self.arrival

    @cached_property
    def tpot(self) -> Floats:
        """(finish - first token) / (output tokens - 1), seconds; NaN unless completed with two tokens or more."""
        many = self.completed & (self.output > 1)
        return np.where(many, (self.finish - self.first) / np.where(many, self.output - 1, 1.0), np.nan)

    @cached_property
    def e2e(self) -> Floats:
        """Arrival to finish, seconds; NaN unless completed."""
        return np.where(self.completed, self.finish - self.arrival, np.nan)

    @cached_property
    def duration(self) -> float:
        """Length of the run, seconds."""
        if self.info.duration_s is not None:
            return self.info.duration_s
        ends = (self.finish, self.step("end"))
        return max((float(end.max()) for end in ends if len(end)), default=0.0)

    @cached_property
    def demand(self) -> Demand:
        """The demand and the service of requests, for the fairness measures."""
        return Demand(
            self.named("tenant")[0],
            self.arrival,
            self.number("admitted"),
            self.first,
            self.finish,
            self.number("prompt_tokens"),
            self.output,
        )

    @cached_property
    def weights(self) -> Floats:
        """Weight of each tenant, by code."""
        seen = self.records.weights
        return np.array([self.info.weights.get(t, seen.get(t, 1.0)) for t in self.named("tenant")[1]], np.float64)

    @cached_property
    def gap(self) -> tuple[Floats, Floats]:
        """Times and the largest service gap between two backlogged tenants at each."""
        return service_gap(self.demand, self.weights)

    def metric(self, name: str) -> Floats | None:
        """ttft, tpot, e2e or queue of each request; None for itl, which only steps have."""
        return {"ttft": self.ttft, "tpot": self.tpot, "e2e": self.e2e, "queue": self.number("queue_s")}.get(name)


def present(values: Floats) -> Floats:
    """The values that are not NaN."""
    return values[~np.isnan(values)]
