"""Recorder: the sink of engine events that keeps a run's records, fast enough for the simulator's hot path."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from loratory.reports.arrow_arrays import numeric, texts
from loratory.reports.decisions import DecisionLog
from loratory.reports.tables import (
    CHUNK_ROWS,
    EVENT_SCHEMA,
    KINDS,
    REQUEST_SCHEMA,
    STEP_COLUMNS,
    STEP_SCHEMA,
    STEP_TYPES,
    Codes,
    RowList,
    TableBuffer,
    TableSource,
    columns_of,
)
from loratory.serving.compiling import mypyc_attr
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
from loratory.serving.request import Request
from loratory.serving.run_end import NOWHERE
from loratory.serving.sequence import sequence_of
from loratory.serving.workload import Floats

_NAN = float("nan")
_OF_SEQUENCE = (
    "request",
    "admitted_at",
    "first_token_at",
    "ended_at",
    "last_generated",
    "max_tokens",
    "load_wait_s",
    "preempted_s",
    "preempted_before_first_s",
    "preemptions",
    "hit",
)
"""What the table of requests holds of a `Sequence`: read when it ends, so that none is kept for its record."""

_read_sequence = attrgetter(*_OF_SEQUENCE)
_LOAD, _PREFETCH, _LOADED, _PREFETCHED, _EVICTED, _PREEMPTED = range(len(KINDS))


@mypyc_attr(native_class=False)
@dataclass(frozen=True, slots=True)
class Records:
    """The records of a run: its tables, and the weight of each tenant.

    ``requests``, ``steps``: see docs/reports.md. ``events``: adapter loads and evictions, and preemptions, in memory.
    """

    requests: TableSource
    steps: TableSource
    events: TableSource
    weights: dict[str, float]


class Recorder:
    """Keeps the events of one run: one sink per replica, and one set of tables for all replicas.

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
        self._ids: list[str] = []
        at = (lambda name: None) if folder is None else folder.__truediv__
        self._requests = TableBuffer(
            at("requests.parquet"), REQUEST_SCHEMA, self._request_numbers, self._request_columns
        )
        self._steps = TableBuffer(at("steps.parquet"), STEP_SCHEMA, _step_numbers, _step_columns)
        self._events = TableBuffer(None, EVENT_SCHEMA, _event_numbers, self._event_columns)
        self._log = DecisionLog(folder / "decisions.jsonl") if folder is not None and decisions else None
        self._records: Records | None = None

    def sink(self, replica: int = 0) -> Sink:
        """The sink for the events of one replica's engine, or of what ends at `NOWHERE`; it wants the events that go
        into the records."""
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
        buffer, adapters = self._requests, self._adapters
        rows, flush = buffer.rows, buffer.flush

        def on_ended(event: Ended) -> None:
            now, view, status, why = event
            # coded at once, because other events give codes to adapters as well, in order of time
            adapter = adapters[view.adapter]
            rows.append((replica, adapter, now, status, why, _read_sequence(sequence_of(view))))
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

    def _event_columns(self, numbers: Mapping[str, Floats]) -> dict[str, pa.Array]:
        return {
            "time": numeric(numbers["time"]),
            "replica": numeric(numbers["replica"].astype(np.int16)),
            "kind": self._kinds.array(numbers["kind"]),
            "adapter": self._adapters.array(numbers["adapter"]),
            "tier": self._tiers.array(numbers["tier"]),
        }

    def _request_numbers(self, rows: RowList) -> dict[str, Sequence[float]]:
        """The numbers of requests that ended, by name; `_request_columns` turns them into the table's columns."""
        replicas, adapters, nows, statuses, whys, sequences = zip(*rows, strict=True)
        seq = _columns_by_name(_OF_SEQUENCE, sequences)
        of = _columns_by_name(Request._fields, seq["request"])
        for tenant, weight in dict.fromkeys(zip(of["tenant"], of["weight"], strict=True)):
            self._weights.setdefault(tenant, weight)
        self._ids += of["request_id"]
        return {
            "replica": replicas,
            "adapter": adapters,
            "tenant": [self._tenants[tenant] for tenant in of["tenant"]],
            "status": [self._statuses[status] for status in statuses],
            "why": [self._whys[why] for why in whys],
            "arrival": of["arrival"],
            "admitted": _or_nan(seq["admitted_at"]),
            "first_token": _or_nan(seq["first_token_at"]),
            "finish": [now if at is None else at for now, at in zip(nows, seq["ended_at"], strict=True)],
            "prompt_tokens": of["prompt_tokens"],
            "cached_tokens": of["cached_tokens"],
            "output_tokens": seq["last_generated"],
            "max_tokens": of["max_tokens"],
            "most_tokens": seq["max_tokens"],
            "load_wait_s": seq["load_wait_s"],
            "preempted_s": seq["preempted_s"],
            "preempted_before_first_s": seq["preempted_before_first_s"],
            "preemptions": seq["preemptions"],
            "hit": [-1 if hit is None else hit for hit in seq["hit"]],
            "deadline": _or_nan(of["deadline"]),
            "priority": of["priority"],
        }

    def _request_columns(self, numbers: Mapping[str, Floats]) -> dict[str, pa.Array]:
        arrival, admitted, first, finish = (numbers[at] for at in ("arrival", "admitted", "first_token", "finish"))
        generated, most, hit = numbers["output_tokens"], numbers["most_tokens"], numbers["hit"]
        preempted, before_first = numbers["preempted_s"], numbers["preempted_before_first_s"]
        ids = texts(self._ids)
        self._ids.clear()
        return {
            "request_id": ids,
            "adapter": self._adapters.array(numbers["adapter"]),
            "tenant": self._tenants.array(numbers["tenant"]),
            "replica": numeric(numbers["replica"].astype(np.int16), numbers["replica"] == NOWHERE),
            "arrival": numeric(arrival),
            "admitted": _nullable(admitted),
            "first_token": _nullable(first),
            "finish": numeric(finish),
            "prompt_tokens": _whole(numbers["prompt_tokens"]),
            "cached_tokens": _whole(numbers["cached_tokens"]),
            "output_tokens": _whole(generated),
            "max_tokens": _whole(numbers["max_tokens"]),
            "status": self._statuses.array(numbers["status"]),
            "why": self._whys.array(numbers["why"]),
            "queue_s": _nullable(admitted - arrival - numbers["load_wait_s"]),
            "load_wait_s": numeric(numbers["load_wait_s"]),
            "prefill_s": _nullable(first - admitted - before_first),
            "decode_s": _nullable(finish - first - (preempted - before_first)),
            "preempted_s": numeric(preempted),
            "preemptions": numeric(numbers["preemptions"].astype(np.int32)),
            "hit": numeric(hit > 0, hit < 0),
            "truncated": numeric((generated >= most) & (most < numbers["max_tokens"])),
            "deadline": _nullable(numbers["deadline"]),
            "priority": _whole(numbers["priority"]),
        }


def _columns_by_name(names: tuple[str, ...], rows: Collection[tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """The columns of named tuples."""
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def _or_nan(times: Collection[float | None]) -> list[float]:
    return [_NAN if at is None else at for at in times]


def _nullable(values: Floats) -> pa.Array:
    return numeric(values, np.isnan(values))


def _whole(values: Floats) -> pa.Array:
    return numeric(values.astype(np.int64))


def _step_numbers(rows: RowList) -> dict[str, tuple[float, ...]]:
    return dict(zip(STEP_COLUMNS, columns_of(rows), strict=True))


def _step_columns(numbers: Mapping[str, Floats]) -> dict[str, pa.Array]:
    return {name: numeric(values.astype(STEP_TYPES[name])) for name, values in numbers.items()}


def _event_numbers(rows: RowList) -> dict[str, tuple[float, ...]]:
    return dict(zip(EVENT_SCHEMA.names, columns_of(rows), strict=True))
