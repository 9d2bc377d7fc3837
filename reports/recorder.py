"""Recorder: the sink of engine events that keeps a run's records, fast enough for the simulator's hot path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from loratory.reports.decisions import DecisionLog
from loratory.reports.tables import (
    CHUNK_ROWS,
    EVENT_SCHEMA,
    KINDS,
    REQUEST_SCHEMA,
    STEP_SCHEMA,
    STEP_TYPES,
    Codes,
    Floats,
    TableBuffer,
    TableSource,
)
from loratory.serving.events import (
    Decided,
    Ended,
    EventHandlers,
    Evicted,
    Handler,
    Loaded,
    LoadStarted,
    Preempted,
    Sink,
    Stepped,
)

_NAN = float("nan")
_LOAD, _PREFETCH, _LOADED, _PREFETCHED, _EVICTED, _PREEMPTED = range(len(KINDS))


@dataclass(frozen=True, slots=True)
class Records:
    """What a run left: its tables, and the weight of each tenant seen.

    ``requests``, ``steps``: see docs/reports.md. ``events``: adapter loads and evictions, and preemptions, in memory.
    """

    requests: TableSource
    steps: TableSource
    events: TableSource
    weights: dict[str, float]


class Recorder:
    """Keeps the events of one run: one sink a replica, one set of tables over all.

    With a ``folder`` (which exists) requests.parquet, steps.parquet and, unless ``decisions`` is false,
    decisions.jsonl are streamed into it; without one, the tables stay in memory and decisions are not kept.
    Equal events give equal bytes.

    >>> recorder = Recorder(None)
    >>> sink = recorder.sink(0)          # give this to the engine of replica 0
    >>> records = recorder.close()       # when the run is over
    """

    def __init__(self, folder: Path | None = None, *, decisions: bool = True) -> None:
        self._adapters, self._tenants, self._statuses, self._whys = Codes(), Codes(), Codes(), Codes()
        self._kinds, self._tiers = Codes(*KINDS), Codes()
        self._weights: dict[str, float] = {}
        at = (lambda name: None) if folder is None else folder.__truediv__
        self._requests = TableBuffer(at("requests.parquet"), REQUEST_SCHEMA, self._request_columns)
        self._steps = TableBuffer(at("steps.parquet"), STEP_SCHEMA, _step_columns)
        self._events = TableBuffer(None, EVENT_SCHEMA, self._event_columns)
        self._log = DecisionLog(folder / "decisions.jsonl") if folder is not None and decisions else None
        self._records: Records | None = None

    def sink(self, replica: int = 0) -> Sink:
        """The sink for the events of one replica's engine; it wants those that go into the records."""
        handlers: dict[type, Handler] = {
            Stepped: self._on_stepped(replica),
            Ended: self._on_ended(replica),
            **self._on_adapters(replica),
        }
        if self._log is not None:
            handlers[Decided] = self._log.writer(replica)
        return EventHandlers(handlers)

    def close(self) -> Records:
        """Finish the files and return the records; further calls return the same."""
        if self._records is None:
            if self._log is not None:
                self._log.close()
            self._records = Records(self._requests.close(), self._steps.close(), self._events.close(), self._weights)
        return self._records

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._records is None:
            self._requests.abandon()
            self._steps.abandon()
            if self._log is not None:
                self._log.abandon()

    def _on_stepped(self, replica: int) -> Callable[[Stepped], None]:
        buffer = self._steps
        rows, flush = buffer.rows, buffer.flush

        def on_stepped(event: Stepped) -> None:
            rows.append((replica, event))
            if len(rows) >= CHUNK_ROWS:
                flush()

        return on_stepped

    def _on_ended(self, replica: int) -> Callable[[Ended], None]:
        buffer, weights = self._requests, self._weights
        rows, flush, keep_id = buffer.rows, buffer.flush, buffer.ids.append
        adapters, tenants, statuses, whys = self._adapters, self._tenants, self._statuses, self._whys

        def on_ended(event: Ended) -> None:
            now, _, status, why, seq = event
            request = seq.request
            tenant = request.tenant
            if tenant not in weights:
                weights[tenant] = request.weight
            admitted, first, ended, hit, deadline = (
                seq.admitted_at,
                seq.first_token_at,
                seq.ended_at,
                seq.hit,
                request.deadline,
            )
            keep_id(request.request_id)
            rows.append(
                (
                    replica,
                    adapters[request.adapter],
                    tenants[tenant],
                    statuses[status],
                    whys[why],
                    request.arrival,
                    _NAN if admitted is None else admitted,
                    _NAN if first is None else first,
                    now if ended is None else ended,
                    request.prompt_tokens,
                    request.cached_tokens,
                    seq.last_generated,
                    request.max_tokens,
                    seq.max_tokens,
                    seq.load_wait_s,
                    seq.preempted_s,
                    seq.preempted_before_first_s,
                    seq.preemptions,
                    -1 if hit is None else hit,
                    _NAN if deadline is None else deadline,
                    request.priority,
                )
            )
            if len(rows) >= CHUNK_ROWS:
                flush()

        return on_ended

    def _on_adapters(self, replica: int) -> dict[type, Callable[[Any], None]]:
        buffer, adapters, tiers = self._events, self._adapters, self._tiers
        rows = buffer.rows

        def add(now: float, kind: int, adapter: str | None, tier: int) -> None:
            rows.append((now, replica, kind, adapters[adapter], tier))
            if len(rows) >= CHUNK_ROWS:
                buffer.flush()

        def on_started(event: LoadStarted) -> None:
            add(event.now, _PREFETCH if event.prefetch else _LOAD, event.adapter, tiers[event.tier])

        def on_loaded(event: Loaded) -> None:
            add(event.now, _PREFETCHED if event.prefetch else _LOADED, event.adapter, -1)

        def on_evicted(event: Evicted) -> None:
            add(event.now, _EVICTED, event.adapter, -1)

        def on_preempted(event: Preempted) -> None:
            add(event.now, _PREEMPTED, event.request.adapter, -1)

        return {LoadStarted: on_started, Loaded: on_loaded, Evicted: on_evicted, Preempted: on_preempted}

    def _event_columns(self, matrix: Floats, _: list[str]) -> list[Any]:
        time, replica, kind, adapter, tier = matrix
        return [
            pa.array(time),
            pa.array(replica.astype(np.int16)),
            self._kinds.array(kind),
            self._adapters.array(adapter),
            self._tiers.array(tier),
        ]

    def _request_columns(self, columns: Floats, ids: list[str]) -> list[Any]:
        replica, adapter, tenant, status, why, arrival, admitted, first, finish, prompt, cached, generated = columns[
            :12
        ]
        max_tokens, allowed, load_wait, preempted, before_first, preemptions, hit, deadline, priority = columns[12:]
        return [
            pa.array(ids, pa.string()),
            self._adapters.array(adapter),
            self._tenants.array(tenant),
            pa.array(replica.astype(np.int16)),
            pa.array(arrival),
            _nullable(admitted),
            _nullable(first),
            pa.array(finish),
            _whole(prompt),
            _whole(cached),
            _whole(generated),
            _whole(max_tokens),
            self._statuses.array(status),
            self._whys.array(why),
            _nullable(admitted - arrival - load_wait),
            pa.array(load_wait),
            _nullable(first - admitted - before_first),
            _nullable(finish - first - (preempted - before_first)),
            pa.array(preempted),
            pa.array(preemptions.astype(np.int32)),
            pa.array(hit > 0, mask=hit < 0),
            pa.array((generated >= allowed) & (allowed < max_tokens)),
            _nullable(deadline),
            _whole(priority),
        ]


def _nullable(values: Floats) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))


def _whole(values: Floats) -> pa.Array:
    return pa.array(values.astype(np.int64))


def _step_columns(columns: Floats, _: list[str]) -> list[Any]:
    return [pa.array(values.astype(kind)) for values, kind in zip(columns, STEP_TYPES, strict=True)]
