"""Timeline: the start of a run in the Trace Event Format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Format: "Trace Event Format", Google, docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from loratory.reports.arrow_arrays import numeric
from loratory.reports.run_columns import RunColumns
from loratory.reports.tables import codes, floats

_STEPS_TRACK = 0
_EVENTS_PER_STEP = 4


def trace_events(run: RunColumns, limit: int) -> Iterator[str]:
    """About ``limit`` trace events, from the run's start on, as JSON texts without ``pid``'s run offset.

    For each replica (a process): its steps on one track, named prefill, decode or mixed, with their shape; each request
    as an asynchronous slice in its adapter's category with its phases (queue, prefill, decode) inside; adapter loads by
    the tier they come from; counters for waiting, running, resident adapters and KV blocks. Times are microseconds.
    """
    wanted = max(1, limit // (2 * _EVENTS_PER_STEP))
    rows = run.records.steps.read(rows=wanted).to_pylist()
    until = rows[-1]["end"] if len(rows) >= wanted else float("inf")
    for row in rows:
        yield from _step(run, row)
    for replica in range(run.info.replicas):
        for gone in run.gone(replica):
            if gone + run.info.start_s <= until:
                yield from _counters(replica, round(gone * 1e6, 3), 0, 0, 0, 0)
    yield from _requests(run, until, limit // 4)
    yield from _loads(run, until, limit // 4)


def timeline_json(runs: Sequence[tuple[str, int, Iterable[str]]]) -> str:
    """The content of timeline.json for (name, replicas, trace events) of several runs; each replica is a process."""
    events: list[str] = []
    base = 0
    for name, replicas, trace in runs:
        for replica in range(replicas):
            pid = base + replica
            label = name if replicas == 1 else f"{name}, replica {replica}"
            events.append(_event(ph="M", name="process_name", pid=pid, args={"name": label}))
            events.append(_event(ph="M", name="process_sort_index", pid=pid, args={"sort_index": pid}))
            events.append(_event(ph="M", name="thread_name", pid=pid, tid=_STEPS_TRACK, args={"name": "steps"}))
        events += [_moved(text, base) for text in trace]
        base += replicas
    note = "only the start of each policy's first run is shown; steps.parquet and requests.parquet have everything"
    head = f'{{"displayTimeUnit":"ms","otherData":{_event(note=note)},"traceEvents":[\n'
    return head + ",\n".join(events) + "\n]}\n"


def _moved(text: str, base: int) -> str:
    """The event with its process number (always its first member) counted from ``base``."""
    if base == 0:
        return text
    number, rest = text[len('{"pid":') :].split(",", 1)
    return f'{{"pid":{int(number) + base},{rest}'


def _event(**members: Any) -> str:
    return json.dumps(members, separators=(",", ":"), allow_nan=False)


def _us(run: RunColumns, seconds: float) -> float:
    return round((seconds - run.info.start_s) * 1e6, 3)


def _step(run: RunColumns, row: dict[str, Any]) -> Iterator[str]:
    pid, ts = row["replica"], _us(run, row["start"])
    duration = round((row["end"] - row["start"]) * 1e6, 3)
    prefills, decodes = row["prefill_tokens"] > 0, row["decode_seqs"] > 0
    name = "mixed" if prefills and decodes else "prefill" if prefills else "decode" if decodes else "load"
    shown = ("steps", "prefill_tokens", "prefill_seqs", "decode_seqs", "kv_tokens", "distinct_adapters", "max_rank")
    args = {key: row[key] for key in (*shown, "load_s")}
    yield _event(pid=pid, tid=_STEPS_TRACK, ph="X", name=name, cat="step", ts=ts, dur=duration, args=args)
    yield from _counters(pid, ts, row["waiting"], row["running"], row["resident"], row["kv_blocks"])


def _counters(pid: int, ts: float, waiting: int, running: int, resident: int, blocks: int) -> Iterator[str]:
    """What a replica holds from a moment on."""
    yield _event(pid=pid, ph="C", name="requests", ts=ts, args={"waiting": waiting, "running": running})
    yield _event(pid=pid, ph="C", name="resident adapters", ts=ts, args={"resident": resident})
    yield _event(pid=pid, ph="C", name="KV blocks", ts=ts, args={"used": blocks})


def _requests(run: RunColumns, until: float, limit: int) -> Iterator[str]:
    columns = ["request_id", "adapter", "tenant", "replica", "arrival", "admitted", "first_token", "finish", "status"]
    table = run.records.requests.read([*columns, "prompt_tokens", "output_tokens", "preemptions"])
    arrival = floats(table, "arrival")
    order = np.argsort(arrival, kind="stable")
    early = order[arrival[order] < until][: max(1, limit // 4)]
    for row in table.take(numeric(early)).to_pylist():
        if row["replica"] is None:  # it ended before it had one
            continue
        marks = [row["arrival"], row["admitted"], row["first_token"], row["finish"]]
        times = [_us(run, t) for t in marks if t is not None]
        phases = [phase for phase, at in zip(("queue", "prefill", "decode"), marks, strict=False) if at is not None]
        common = {"pid": row["replica"], "tid": 0, "cat": row["adapter"] or "base model", "id": row["request_id"]}
        args = {key: row[key] for key in ("tenant", "status", "prompt_tokens", "output_tokens", "preemptions")}
        name = f"request {row['request_id']}"
        yield _event(**common, ph="b", name=name, ts=times[0], args=args)
        for phase, (begin, end) in zip(phases, pairwise(times), strict=True):
            yield _event(**common, ph="b", name=phase, ts=begin)
            yield _event(**common, ph="e", name=phase, ts=end)
        yield _event(**common, ph="e", name=name, ts=times[-1])


def _loads(run: RunColumns, until: float, limit: int) -> Iterator[str]:
    """Each load from its start to its end; one that never ended extends to the end of the run, or of its replica."""
    table = run.records.events.read()
    times, replica = floats(table, "time"), floats(table, "replica").astype(int)
    (kind, kinds), (adapter, names), (tier, tiers) = (codes(table, column) for column in ("kind", "adapter", "tier"))
    open_loads: dict[tuple[int, str, str], tuple[int, float, str]] = {}
    made = 0
    for place in np.flatnonzero(times < until):
        word, subject = kinds[kind[place]], names[adapter[place]] if adapter[place] >= 0 else ""
        if word in ("load", "prefetch"):
            before = open_loads.get((replica[place], subject, word))
            if before is not None:  # its replica failed
                key = (replica[place], subject, word)
                yield from _load(run, key, *before, _never_ended(run, key, before[1]))
            if made >= limit // 2:
                break
            made += 1
            label = f"{'prefetch' if word == 'prefetch' else 'load'} from {tiers[tier[place]]}"
            open_loads[replica[place], subject, word] = (made, times[place], label)
            continue
        key = (replica[place], subject, "load" if word == "loaded" else "prefetch")
        if word in ("loaded", "prefetched") and key in open_loads:
            yield from _load(run, key, *open_loads.pop(key), times[place])
    for key, opened in open_loads.items():
        yield from _load(run, key, *opened, _never_ended(run, key, opened[1]))


def _never_ended(run: RunColumns, key: tuple[int, str, str], begin: float) -> float:
    """The second at which the replica of a load failed that never ended; else the end of the run."""
    gone = (at + run.info.start_s for at in run.gone(int(key[0])))
    return next((at for at in gone if at >= begin), run.duration + run.info.start_s)


def _load(
    run: RunColumns, key: tuple[int, str, str], number: int, begin: float, label: str, end: float
) -> tuple[str, str]:
    common = {"pid": int(key[0]), "tid": 0, "cat": label, "id": f"load {number}", "name": key[1]}
    begun = _event(**common, ph="b", ts=_us(run, begin), args={"transfer": label})
    return begun, _event(**common, ph="e", ts=_us(run, max(begin, end)))
