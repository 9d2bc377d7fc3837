"""A trace in a scenario: where times, lengths, adapters and tenants come from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loratory.errors import InputError
from loratory.scenarios.build import build_adapters, build_workload
from loratory.scenarios.load import load_text
from loratory.scenarios.traces.convert import convert
from loratory.serving.workload import Workload

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799600,4808,10\r\n"
    "2023-11-16 18:17:04.0319601,3180,8\r\n"
    "2023-11-16 18:17:06.9799600,110,0\r\n"
)
BURST_3 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "19440110.0,s1,43,GPT-4,906,446,1352,Conversation log\n19440161.0,,2,ChatGPT,36,29,65,API log\n"
)
GENTD = "seq,base_model,lora_ids\r\n0,B0,\r\n1,B1,L7\r\n2,B1,L7|L3\r\n3,B0,L3\r\n"
LOG = "timestamp_s,adapter,input_length,output_length,len_source\n0.0,b,5,6,own\n1.5,a,7,8,own\n2.5,b,9,9,own\n"


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


def replay(path: Path, workload: str, adapters: str = "ranks: 8", tenants: str = "map: by_adapter") -> Workload:
    text = (
        "name: t\nmodel: m\ngpu: g\nengine: {max_loras: 2}\n"
        f"adapters: {{{adapters}}}\ntenants: {{{tenants}}}\nworkload: {{trace: {path}, {workload}}}\n"
    )
    scenario = load_text(text)
    return build_workload(scenario, 0, build_adapters(scenario, lambda rank: rank))


def test_a_trace_with_adapters_names_the_adapters(tmp_path: Path) -> None:
    w = replay(write(tmp_path, "l.csv", LOG), "rate_scale: 2.0")
    assert w.adapters == ("b", "a") and w.adapter.tolist() == [0, 1, 0]
    assert w.arrival.tolist() == [0, 0.75, 1.25] and w.tenants == ("b", "a")
    wider = replay(tmp_path / "l.csv", "requests: 2", "count: 3")
    assert wider.adapters == ("b", "a", "adapter-000") and wider.notes == ("rows left out (after the first 2): 1",)
    named = replay(tmp_path / "l.csv", "zero_tokens: drop", "names: [z, a, b]")
    assert named.adapter.tolist() == [2, 1, 2]


def test_a_trace_without_adapters_takes_popularity(tmp_path: Path) -> None:
    w = replay(write(tmp_path, "a.csv", AZURE), "format: azure", "count: 200, popularity: {zipf: 1.0}")
    assert len(w.adapters) == 200 and len(w) == 2
    assert w.notes == ("rows left out (no prompt or no output tokens): 1",)
    assert w.output_tokens.tolist() == [10, 8] and set(w.max_tokens.tolist()) == {10}


def test_clients_or_tenants_can_be_the_adapters(tmp_path: Path) -> None:
    path = write(tmp_path, "b.csv", BURST_3)
    assert replay(path, "adapter_from: client").adapters == ("ChatGPT", "GPT-4")
    assert replay(path, "adapter_from: tenant").adapter.tolist() == [0, -1]
    w = replay(path, "adapter_from: client", tenants="map: trace")
    assert [w.tenants[i] for i in w.tenant] == ["s1", "default"]


def test_a_sequence_takes_times_and_lengths_from_the_scenario(tmp_path: Path) -> None:
    path = write(tmp_path, "g.csv", GENTD)
    w = replay(path, "arrivals: {constant: 2}, input_tokens: 30, output_tokens: 5")
    assert w.arrival.tolist() == [0, 0.5, 1.0, 1.5]
    assert [None if i < 0 else w.adapters[i] for i in w.adapter] == [None, "L7", "L7", "L3"]
    short = replay(path, "arrivals: {constant: 2}, duration_s: 1, input_tokens: 30, output_tokens: 5")
    assert len(short) == 2 and "rows left out (after the first 2): 2" in short.notes


@pytest.mark.parametrize(
    ("content", "workload", "adapters", "says"),
    [
        (GENTD, "input_tokens: 3", "ranks: 8", "has no times: add workload.arrivals"),
        (GENTD, "arrivals: 3", "ranks: 8", "has no input tokens: add workload.input_tokens"),
        (AZURE, "format: azure", "ranks: 8", "adapters.count is missing, and the trace names no adapters"),
        (AZURE, "adapter_from: column", "count: 3", "has no adapter column, which workload.adapter_from: column needs"),
        (AZURE, "window: [50, 60]", "count: 3", "the trace is empty: no row is left"),
        (LOG, "requests: 3", "count: 1", "is 1, but the trace names 2 adapters"),
        (LOG, "requests: 3", "names: [a, c]", "uses the adapter 'b', which is not in the scenario"),
        (LOG, "columns: {time: when}", "ranks: 8", "columns.time names 'when', which is not a column of the file"),
    ],
)
def test_a_trace_that_does_not_fit_its_scenario(
    tmp_path: Path, content: str, workload: str, adapters: str, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        replay(write(tmp_path, "t.csv", content), workload, adapters)


@pytest.mark.parametrize(
    ("workload", "says"),
    [
        ("duration_s: 5", "workload.duration_s cannot be combined with trace: use window"),
        ("window: [5, 5]", "workload.window ends at 5 s, but begins at 5 s"),
        ("rate_scale: 0", "workload.rate_scale should be above 0"),
        ("streams: [{arrivals: 1}]", "workload.streams cannot be combined with trace"),
        ("format: azur", "did you mean 'azure'"),
    ],
)
def test_trace_settings_that_make_no_sense(tmp_path: Path, workload: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        replay(write(tmp_path, "a.csv", AZURE), workload, "count: 3")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_each_row_keeps_its_own_limit_and_deadline(tmp_path: Path, ending: str) -> None:
    """Through any format; a row without one has the longest limit, and no deadline."""
    rows = [
        {"arrival_s": 0.0, "prompt_tokens": 5, "output_tokens": 3, "max_tokens": 7, "deadline_s": 0.5},
        {"arrival_s": 1.0, "prompt_tokens": 5, "output_tokens": 9, "max_tokens": 4, "deadline_s": None},
        {"arrival_s": 2.5, "prompt_tokens": 5, "output_tokens": 2, "max_tokens": None, "deadline_s": 2.0},
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    convert(path, out := tmp_path / f"out.{ending}")
    text = f"name: t\nmodel: m\ngpu: g\nadapters: {{count: 0}}\nworkload: {{trace: {out}, max_tokens: trace}}\n"
    scenario = load_text(text)
    work = build_workload(scenario, 0, ())
    assert work.arrival.tolist() == [0.0, 1.0, 2.5]
    assert work.max_tokens.tolist() == [7, 4, 7] and work.output_tokens.tolist() == [3, 4, 2]
    assert work.deadline is not None and work.deadline.tolist() == [0.5, np.inf, 2.0]
    assert work.request(0).deadline == 0.5 and work.request(1).deadline is None and work.request(2).deadline == 4.5
    assert "outputs cut at max_tokens (trace): 1" in work.notes
    given = build_workload(load_text(text.replace("max_tokens: trace", "deadline_s: 9")), 0, ())
    assert given.deadline is not None and given.deadline.tolist() == [9.0] * 3
    assert [note for note in given.notes if "not used" in note] == [
        "the trace's max_tokens are not used: workload.max_tokens: trace would use them",
        "the trace's deadlines are not used, because workload.deadline_s overrides them",
    ]
