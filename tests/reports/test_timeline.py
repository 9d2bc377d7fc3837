"""timeline.json: valid Trace Event Format, capped, one process a replica."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from loratory.reports import Recorder, RunInfo, summarise
from loratory.reports.timeline import timeline_json


def _events(*reports: Any) -> list[dict[str, Any]]:
    text = timeline_json([(r.info.policy, r.info.replicas, r.trace) for r in reports])
    return json.loads(text)["traceEvents"]  # type: ignore[no-any-return]


def test_slices_are_balanced_and_times_are_microseconds(report: Any) -> None:
    made = report(timeline=100_000)
    events = _events(made)
    open_slices: Counter[tuple[Any, ...]] = Counter()
    for event in events:
        assert event["ph"] in "MXCbe"
        if event["ph"] == "X":
            assert event["dur"] >= 0 and event["name"] in ("prefill", "decode", "mixed", "load")
        if event["ph"] in "be":
            key = (event["pid"], event["cat"], event["id"], event["name"])
            open_slices[key] += 1 if event["ph"] == "b" else -1
    assert set(open_slices.values()) == {0}
    requests = {e["id"] for e in events if e["ph"] == "b" and e["name"].startswith("request")}
    assert len(requests) == 200
    ends = [e["ts"] + e["dur"] for e in events if e["ph"] == "X"]
    assert abs(max(ends) * 1e-6 - made.run["duration_s"]) < 1


def test_the_cap_holds(report: Any) -> None:
    for limit in (1, 50, 400):
        assert len(report(timeline=limit).trace) <= 2 * limit + 20
    assert report(timeline=0).trace == ()


def test_each_replica_of_each_run_is_a_process(make_stream: Any) -> None:
    reports = []
    for policy in ("a", "b"):
        recorder = Recorder()
        for replica in (0, 1):
            sink = recorder.sink(replica)
            for event in make_stream(seed=replica, requests=30).events():
                sink(event)
        reports.append(summarise(recorder.close(), RunInfo("s", policy, replicas=2), 1000))
    events = _events(*reports)
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {0: "a, replica 0", 1: "a, replica 1", 2: "b, replica 0", 3: "b, replica 1"}
    assert {e["pid"] for e in events if e["ph"] == "X"} == {0, 1, 2, 3}
