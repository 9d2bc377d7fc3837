"""Every key of every trace format: another value changes the workload, or is refused by name."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from loratory.errors import InputError
from loratory.scenarios.build import build_adapters, build_workload
from loratory.scenarios.load import load_text
from loratory.scenarios.traces import formats
from loratory.scenarios.traces.columns import ColumnsSpec
from loratory.scenarios.workload_spec import WorkloadSpec
from loratory.serving.workload import Workload

MORE = "adapter,client,tenant,cached_tokens,session_id,delay,priority,max_tokens,deadline_s,n1,n2,n3,label"
HASHES = {"hash_ids": lambda i: [1, i % 3, i], "more_ids": lambda i: [1, 1, 1]}


def more(i: int) -> str:
    own = f"a{i % 2},c{i % 3},t{i % 2},{i % 5},s{i % 4},{i + 1},{i % 3},{5 + i % 2},{i % 2 + 1}"
    return f"{own},{7 * i},{40 + i % 3},{i % 2},x{i % 5}"


def csv(header: str, row: str, beside: str = MORE) -> str:
    rows = []
    for i in range(12):
        cells = dict(zip(MORE.split(","), more(i).split(","), strict=True))
        own = row.format(i=i, second=10 + i, tokens=900 + i, zero=i % 3)
        rows.append(",".join([own, *(cells[name] for name in beside.split(","))]))
    return "\n".join([f"{header},{beside}", *rows]) + "\n"


def jsonl(**own: object) -> str:
    lines = []
    for i in range(12):
        line = {key: value(i) if callable(value) else value for key, value in (own | HASHES).items()}
        line |= dict(zip(MORE.split(","), (int(c) if c.isdigit() else c for c in more(i).split(",")), strict=True))
        lines.append(json.dumps(line))
    return "\n".join(lines) + "\n"


MOONCAKE = {"timestamp": lambda i: 500 * i, "input_length": lambda i: 1100 + i, "output_length": lambda i: i % 3}
SAMPLES = {
    "azure": ("csv", csv("TIMESTAMP,ContextTokens,GeneratedTokens", "2024-05-10 00:00:{second},{tokens},{zero}")),
    "burstgpt": ("csv", csv("Timestamp,Model,Request tokens,Response tokens", "{second},m{zero},{tokens},{zero}")),
    "vidur": ("csv", csv("arrived_at,num_prefill_tokens,num_decode_tokens", "{second},{tokens},{zero}")),
    "gentd": ("csv", csv("seq,base_model,lora_ids", "{i},b{zero},l{zero}|z", "tenant,priority,n1,n2,n3,label")),
    "azure_functions": ("csv", csv("app,func,end_timestamp,duration", "p{zero},f{zero},{second},1")),
    "bailian": ("jsonl", jsonl(chat_id=lambda i: i, parent_chat_id=lambda i: -1, **MOONCAKE)),
    "mooncake": ("jsonl", jsonl(**MOONCAKE)),
    "servegen": ("folder", "0,0.05,1.0,Gamma,1.0,2.0\n600,0.05,1,Gamma,1,2\n"),
    "generic": ("jsonl", jsonl(timestamp_s=lambda i: i, input_tokens=lambda i: 40 + i, output_tokens=lambda i: i % 3)),
}
LENGTHS = ("gentd", "azure_functions", "servegen")
"""Formats without token counts: the scenario says them."""

COLUMN = {
    "time": "n1", "input": "n2", "output": "n2", "adapter": "label", "client": "label", "tenant": "label",
    "cached": "n2", "session": "label", "delay": "n1", "priority": "n2", "max_tokens": "n2",
    "deadline": "n2", "hash_ids": "more_ids",
}  # fmt: skip
GIVEN = {
    "client": "adapter_from: client", "max_tokens": "max_tokens: trace", "hash_ids": "prefix_cache: true",
    "session": "adapter_from: popularity",
}  # fmt: skip
OPTIONS = {
    "time_unit": "us", "rate_scale": "3", "window": "[2, 5]", "adapter_from": "tenant", "zero_tokens": "clamp",
    "prefix_cache": "true", "block_tokens": "4", "requests": "3", "format": "vidur",
    "arrivals": "{constant: 7}", "input_tokens": "13", "output_tokens": "17", "deadline_s": "3",
}  # fmt: skip
"""Keys of a replayed workload that are not columns, and another value."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("traces")
    for name, (kind, text) in SAMPLES.items():
        if kind == "folder":
            (place / name).mkdir()
            (place / name / "chunk-0-trace.csv").write_text(text)
            (place / name / "chunk-1-trace.csv").write_text(text)
        else:
            (place / f"{name}.{kind}").write_text(text)
    return place


@cache
def workload(folder: Path, name: str, keys: str) -> tuple[object, ...]:
    """The columns of the workload that a sample makes, with more ``keys``."""
    kind = SAMPLES[name][0]
    file = folder / (name if kind == "folder" else f"{name}.{kind}")
    text = (
        "name: t\nmodel: m\ngpu: g\nadapters: {count: 12, popularity: uniform}\ntenants: {map: {trace: true}}\n"
        if "tenant" in keys and name != "servegen"
        else "name: t\nmodel: m\ngpu: g\nadapters: {count: 12, popularity: uniform}\n"
    )
    own = {"input_tokens": "5", "output_tokens": "5", "arrivals": "9"}
    wanted = [
        *(("input_tokens", "output_tokens") if name in LENGTHS else ()),
        *(("arrivals",) if name == "gentd" else ()),
    ]
    defaults = "".join(f", {key}: {own[key]}" for key in wanted if f"{key}:" not in keys)
    scenario = load_text(text + f"workload: {{trace: {file}{defaults}{keys}}}\n")
    made = build_workload(scenario, 0, build_adapters(scenario, lambda rank: rank))
    columns = (getattr(made, field) for field in Workload.__dataclass_fields__)
    return tuple(repr(c.tolist()) if isinstance(c, np.ndarray) else c for c in columns)


def judge(folder: Path, name: str, given: str, changed: str, key: str) -> None:
    try:
        before = workload(folder, name, given)
        after = workload(folder, name, given + changed)
    except InputError as error:
        assert key in str(error) or (key == "format" and "which vidur needs" in str(error))
        return
    assert before != after


def test_the_samples_are_of_every_format_and_the_keys_are_all_there_are() -> None:
    assert set(SAMPLES) == {entry.name for entry in formats()}
    assert set(COLUMN) == set(ColumnsSpec.model_fields)
    elsewhere = {"duration_s", "streams", "generator", "max_tokens", "predicted_tokens", "cutoff_s", "trace", "columns"}
    elsewhere.add("max_outstanding")  # refused with a trace
    assert set(OPTIONS) | elsewhere == set(WorkloadSpec.model_fields)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("key", COLUMN)
def test_every_column(folder: Path, name: str, key: str) -> None:
    given = f", {GIVEN[key]}" if key in GIVEN and not (key == "hash_ids" and name in LENGTHS) else ""
    judge(folder, name, given, f", columns: {{{key}: {COLUMN[key]}}}", key)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("key", OPTIONS)
def test_every_option(folder: Path, name: str, key: str) -> None:
    given = ", prefix_cache: true" if key == "block_tokens" and SAMPLES[name][0] == "jsonl" else ""
    value = "generic" if (key, name) == ("format", "vidur") else OPTIONS[key]
    judge(folder, name, given, f", {key}: {value}", key)
