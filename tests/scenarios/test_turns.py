"""Turns of a trace as a workload: which rows are replayed, whom each follows, and what the scenario's keys change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loratory.errors import InputError
from loratory.scenarios.build import build_adapters, build_workload
from loratory.scenarios.load import load_text
from loratory.serving.workload import Workload

ROWS = [
    {"session_id": "a", "timestamp": 0, "input_length": 10, "output_length": 5},
    {"session_id": "b", "timestamp": 1000, "input_length": 11, "output_length": 5},
    {"session_id": "a", "delay": 4000, "input_length": 12, "output_length": 5},
    {"session_id": "b", "delay": 500, "input_length": 13, "output_length": 5},
    {"session_id": "a", "delay": 1000, "input_length": 14, "output_length": 5},
    {"session_id": "c", "timestamp": 2000, "input_length": 15, "output_length": 5},
]


def _workload(folder: Path, rows: list[dict[str, Any]], more: str = "") -> Workload:
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = (
        "name: t\nmodel: llama-3.1-8b\ngpu: h100-80gb\nadapters: {count: 3, ranks: 16}\n"
        f"workload: {{trace: t.jsonl{more}}}\n"
    )
    scenario = load_text(text, "t.yaml", folder)
    return build_workload(scenario, 0, build_adapters(scenario, lambda rank: rank))


def _turns(work: Workload) -> list[tuple[int, float, int, float]]:
    """(prompt, arrival, prompt of the request it follows or 0, delay) of each request."""
    assert work.after is not None and work.delay_s is not None
    prompt = work.prompt_tokens.tolist()
    columns = (prompt, work.arrival.tolist(), work.after.tolist(), work.delay_s.tolist())
    return [(p, at, 0 if b < 0 else prompt[b], d) for p, at, b, d in zip(*columns, strict=True)]


def test_rows_come_in_the_order_of_their_earliest_times(tmp_path: Path) -> None:
    work = _workload(tmp_path, ROWS)
    assert _turns(work) == [
        (10, 0.0, 0, 0.0),
        (11, 1.0, 0, 0.0),
        (13, 1.5, 11, 0.5),
        (15, 2.0, 0, 0.0),
        (12, 4.0, 10, 4.0),
        (14, 5.0, 12, 1.0),
    ]
    assert work.notes == ("sessions with turns that wait: 2; turns sent a delay after the turn before ended: 3",)


def test_a_rate_scale_divides_starts_and_leaves_delays(tmp_path: Path) -> None:
    assert _turns(_workload(tmp_path, ROWS, ", rate_scale: 4")) == [
        (10, 0.0, 0, 0.0),
        (11, 0.25, 0, 0.0),
        (15, 0.5, 0, 0.0),
        (13, 0.75, 11, 0.5),
        (12, 4.0, 10, 4.0),
        (14, 5.0, 12, 1.0),
    ]


def test_the_first_requests_and_a_window(tmp_path: Path) -> None:
    assert [turn[0] for turn in _turns(_workload(tmp_path, ROWS, ", requests: 4"))] == [10, 11, 13, 15]
    # 10 and 11 begin before the window: the next turns have the earliest times they could have had
    assert _turns(_workload(tmp_path, ROWS, ", window: [1.25, 9]")) == [
        (13, 0.25, 0, 0.0),
        (15, 0.75, 0, 0.0),
        (12, 2.75, 0, 0.0),
        (14, 3.75, 12, 1.0),
    ]


def test_a_row_without_tokens_hands_its_delay_on(tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS]
    rows[2]["output_length"] = 0
    assert (14, 5.0, 10, 5.0) in _turns(_workload(tmp_path, rows))


def test_arrivals_say_when_sessions_begin(tmp_path: Path) -> None:
    timeless = [{k: v for k, v in row.items() if k != "timestamp"} for row in ROWS]
    for rows in (ROWS, timeless):
        more = ", arrivals: {constant: 0.8}, columns: {session: session_id, delay: delay, input: input_length, "
        more += "output: output_length}, format: generic, time_unit: ms"
        assert _turns(_workload(tmp_path, rows, more)) == [
            (10, 0.0, 0, 0.0),
            (11, 1.25, 0, 0.0),
            (13, 1.75, 11, 0.5),
            (15, 2.5, 0, 0.0),
            (12, 4.0, 10, 4.0),
            (14, 5.0, 12, 1.0),
        ]
        work = _workload(tmp_path, rows, more + ", duration_s: 2")
        assert [turn[0] for turn in _turns(work)] == [10, 11, 13, 12, 14]
        assert "rows left out (their sessions begin after workload.duration_s): 1" in work.notes
        with_loop = _workload(tmp_path, rows, more.replace("{constant: 0.8}", "{closed_loop: {concurrency: 2}}"))
        assert with_loop.concurrency == 2 and {turn[2] for turn in _turns(with_loop)} == {0, 10, 11, 12}
    with pytest.raises(InputError, match=r"workload\.duration_s cannot be combined with closed_loop"):
        _workload(tmp_path, ROWS, ", arrivals: {closed_loop: {concurrency: 2}}, duration_s: 9")
    with pytest.raises(InputError, match=r"its sessions have no times: add workload\.arrivals"):
        _workload(tmp_path, timeless, more.replace("arrivals: {constant: 0.8}, ", ""))


def test_sessions_whose_rows_have_times_keep_them_and_say_so(tmp_path: Path) -> None:
    rows = [dict(row) | {"timestamp": 1000 * i} for i, row in enumerate(ROWS)]
    work = _workload(tmp_path, [{k: v for k, v in row.items() if k != "delay"} for row in rows])
    assert work.after is None and work.arrival.tolist() == [0, 1, 2, 3, 4, 5]
    assert work.notes == ("sessions: 3; turns keep their recorded times",)


def test_turns_of_a_session_have_one_adapter(tmp_path: Path) -> None:
    work = _workload(tmp_path, ROWS)
    assert work.after is not None
    for turn, before in enumerate(work.after.tolist()):
        assert before < 0 or work.adapter[turn] == work.adapter[before]
