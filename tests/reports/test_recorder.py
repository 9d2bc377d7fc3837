"""Recorder: the tables say what the events said, streamed or in memory, with the same bytes each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loratory.reports import Recorder
from loratory.reports.tables import BATCH_CHUNKS, CHUNK_ROWS
from loratory.serving.actions import OK, REFUSED, Admit, Preempt, Prefetch, Reject, Wake
from loratory.serving.events import Decided, Ended, Stepped
from loratory.serving.plan import BatchShape
from loratory.serving.request import Request

COMMON = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@COMMON
@given(seed=st.integers(0, 2**32 - 1), requests=st.integers(0, 60))
def test_waits_of_a_completed_request_sum_to_its_end_to_end_time(
    make_stream: Any, record: Any, seed: int, requests: int
) -> None:
    stream = make_stream(seed=seed, requests=requests)
    rows = record(stream.events()).requests.read().to_pylist()
    assert sorted(row["request_id"] for row in rows) == sorted(str(n) for n in range(requests))
    for row in rows:
        if row["status"] == "completed":
            parts = [row[name] for name in ("queue_s", "load_wait_s", "prefill_s", "decode_s", "preempted_s")]
            assert sum(parts) == pytest.approx(row["finish"] - row["arrival"], rel=1e-9, abs=1e-9)
            assert min(parts) > -1e-9
        else:
            assert row["admitted"] is None and row["first_token"] is None and row["queue_s"] is None
            assert row["output_tokens"] == 0 and row["finish"] >= row["arrival"]


def test_rows_hold_the_sequence(make_stream: Any, record: Any) -> None:
    stream = make_stream(seed=3)
    rows = {row["request_id"]: row for row in record(stream.events()).requests.read().to_pylist()}
    for seq in stream.sequences:
        row, request = rows[seq.request_id], seq.request
        assert (row["adapter"], row["tenant"], row["deadline"]) == (request.adapter, request.tenant, request.deadline)
        assert (row["arrival"], row["admitted"], row["first_token"], row["finish"]) == (
            request.arrival,
            seq.admitted_at,
            seq.first_token_at,
            seq.ended_at,
        )
        assert (row["hit"], row["preemptions"]) == (seq.hit, seq.preemptions)
        assert (row["prompt_tokens"], row["output_tokens"]) == (request.prompt_tokens, seq.generated)
        assert row["truncated"] == (seq.generated >= seq.max_tokens < request.max_tokens)


def test_every_value_is_in_its_own_column(sequence: Any, record: Any) -> None:
    """No two values are equal, so a column that holds another's is seen."""
    request = Request(
        request_id="one",
        adapter="sql",
        arrival=100.0,
        prompt_tokens=11,
        max_tokens=70,
        tenant="acme",
        predicted_tokens=13,
        cached_tokens=5,
        priority=-3,
        deadline=900.5,
        weight=2.5,
    )
    seq = sequence(request, generated=17, allowed=19)
    seq.admitted_at, seq.first_token_at, seq.ended_at = 200.0, 400.0, 800.0
    seq.load_wait_s, seq.preempted_s, seq.preempted_before_first_s = 1.5, 7.25, 3.75
    seq.preemptions, seq.hit = 23, True
    events = [Ended(801.0, seq.view, "completed", "length")]
    others: Any = (("z", "b", "completed"), ("y", "b", "completed"), ("x", "a", "rejected"))
    for adapter, tenant, status in others:
        other = sequence(Request("other", adapter, 0.0, 1, 1, tenant))  # so that the names have codes 3, 2, 1 and 0
        events.insert(0, Ended(1.0, other.view, status, "length"))
    records = record(iter(events), replica=29)
    assert records.requests.read().to_pylist()[3:] == [
        {
            "request_id": "one",
            "adapter": "sql",
            "tenant": "acme",
            "replica": 29,
            "arrival": 100.0,
            "admitted": 200.0,
            "first_token": 400.0,
            "finish": 800.0,
            "prompt_tokens": 11,
            "cached_tokens": 5,
            "output_tokens": 17,
            "max_tokens": 70,
            "status": "completed",
            "why": "length",
            "queue_s": 200.0 - 100.0 - 1.5,
            "load_wait_s": 1.5,
            "prefill_s": 400.0 - 200.0 - 3.75,
            "decode_s": 800.0 - 400.0 - (7.25 - 3.75),
            "preempted_s": 7.25,
            "preemptions": 23,
            "hit": True,
            "truncated": False,
            "deadline": 900.5,
            "priority": -3,
        }
    ]
    assert records.weights == {"a": 1.0, "b": 1.0, "acme": 2.5}


@pytest.mark.parametrize(
    ("generated", "allowed", "truncated"), [(17, 19, False), (19, 19, True), (70, 70, False), (18, 19, False)]
)
def test_truncated_means_ended_by_the_context_limit(
    generated: int, allowed: int, truncated: bool, sequence: Any, record: Any
) -> None:
    seq = sequence(Request("one", None, 0.0, 11, 70), generated, allowed)
    (row,) = record(iter([Ended(9.0, seq.view, "completed", "length")])).requests.read().to_pylist()
    assert row["truncated"] is truncated and row["finish"] == 9.0


def test_files_are_the_same_bytes_each_time_and_hold_what_memory_holds(
    make_stream: Any, record: Any, tmp_path: Path
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        records = record(make_stream(seed=5).events(), folder)
    memory = record(make_stream(seed=5).events())
    for name in ("requests.parquet", "steps.parquet", "decisions.jsonl"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert records.requests.read().to_pylist() == memory.requests.read().to_pylist()
    assert records.steps.read().to_pylist() == memory.steps.read().to_pylist()
    assert records.events.read().to_pylist() == memory.events.read().to_pylist()
    assert records.steps.read(["start"], rows=7).to_pylist() == memory.steps.read(["start"], rows=7).to_pylist()


def test_many_steps_stream_through_several_batches(tmp_path: Path) -> None:
    count = CHUNK_ROWS * BATCH_CHUNKS + CHUNK_ROWS + 3
    with Recorder(tmp_path) as recorder:
        sinks = [recorder.sink(0), recorder.sink(1)]
        for n in range(count):
            sinks[n % 2](Stepped(n * 0.5, n * 0.5 + 0.25, n + 1, BatchShape(kv_tokens=2**40 + n), n, 2, 3, 4, 5, 0.125))
    table = pq.read_table(tmp_path / "steps.parquet")
    assert np.array_equal(table["steps"].to_numpy(), np.arange(1, count + 1))
    assert np.array_equal(table["kv_tokens"].to_numpy(), 2**40 + np.arange(count))
    assert np.array_equal(table["replica"].to_numpy(), np.arange(count) % 2)
    assert np.array_equal(table["start"].to_numpy(), np.arange(count) * 0.5)


def test_a_run_without_events_leaves_empty_tables(tmp_path: Path) -> None:
    records = Recorder(tmp_path).close()
    assert records.requests.read().num_rows == records.steps.read().num_rows == 0
    assert (tmp_path / "decisions.jsonl").read_text() == ""


def test_decisions_are_one_json_object_a_line(sequence: Any, tmp_path: Path) -> None:
    view = sequence(Request('say "hi"\n', "sql", 0.0, 5, 5)).view
    broken: Any = Admit(None)  # type: ignore[arg-type]
    actions = [
        (Admit(view), OK),
        (Admit(view, 128), REFUSED["kv"]),
        (Preempt(view), REFUSED["unknown"]),
        (Reject(view, "too late"), OK),
        (Prefetch("ad\tapter"), OK),
        (Wake(at=float("inf"), after_steps=3), OK),
        (broken, REFUSED["unknown"]),
    ]
    with Recorder(tmp_path) as recorder:
        sink = recorder.sink(2)
        for action, outcome in actions:
            sink(Decided(np.float64(0.1) + 0.2, action, outcome))
    lines = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    assert [line.pop("t") for line in lines] == [0.1 + 0.2] * len(actions)
    assert {line.pop("replica") for line in lines} == {2}
    assert lines == [
        {"action": "admit", "request": 'say "hi"\n', "outcome": "ok"},
        {"action": "admit", "request": 'say "hi"\n', "tokens": 128, "outcome": "kv"},
        {"action": "preempt", "request": 'say "hi"\n', "outcome": "unknown"},
        {"action": "reject", "request": 'say "hi"\n', "why": "too late", "outcome": "ok"},
        {"action": "prefetch", "adapter": "ad\tapter", "outcome": "ok"},
        {"action": "wake", "at": None, "after_steps": 3, "outcome": "ok"},
        {"action": "invalid", "type": "Admit", "outcome": "unknown"},
    ]


def test_decisions_can_be_left_out_and_are_not_asked_for(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, decisions=False)
    sink: Any = recorder.sink()
    assert Decided not in sink.wants and Ended in sink.wants
    recorder.close()
    assert not (tmp_path / "decisions.jsonl").exists()
