"""Traces as people have them: further columns, models, tenants and prefix blocks, read as they were meant."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from trace_rows import CASES, built, counts, rows

from loratory.errors import InputError
from loratory.scenarios.build import build_adapters, build_workload
from loratory.scenarios.load import load_scenario
from loratory.scenarios.traces import ReadOptions, check, read_trace
from loratory.scenarios.traces.columns import ColumnsSpec


def test_an_adapter_column_beside_a_known_formats_own_is_used_and_told() -> None:
    azure = {"hr": 10, "it": 10, "legal": 10, "sales": 10}
    assert counts(built("trace-adapter-column-lost", scenario="azure.yaml")) == azure
    assert counts(built("trace-adapter-column-lost", scenario="column.yaml")) == azure
    mooncake = built("trace-adapter-column-lost", scenario="mooncake.yaml")
    assert counts(mooncake) == {f"tenant-{i}": 15 for i in range(4)}
    assert "adapter: column lora_name is used, which is not one of mooncake's own" in mooncake.notes
    report = check(CASES / "trace-adapter-column-lost" / "azure.csv")
    assert dict(report.columns)["adapter"] == "lora" and report.adapters is not None and report.adapters.distinct == 4


def test_a_column_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"azure\.csv: columns\.adapter names 'nosuch', which is not a column of the file"
    ):
        built("trace-adapter-column-lost", scenario="nosuch.yaml")
    with pytest.raises(InputError, match="did you mean 'lora'"):
        built("trace-adapter-column-lost", "workload.columns.adapter=Lora", scenario="azure.yaml")


def test_a_named_column_goes_before_the_formats_own(tmp_path: Path) -> None:
    path = rows(tmp_path, [0, 1000], real_length=7, org_unit="x")
    table = read_trace(path, options=ReadOptions(columns=ColumnsSpec(input="real_length", tenant="org_unit")))
    assert table.format == "mooncake" and table.prompt is not None and table.prompt.tolist() == [7, 7]
    assert table.tenant is not None and table.tenant.names == ("x",)
    assert table.time_s is not None and table.time_s.tolist() == [0, 1]


def test_a_model_column_is_the_adapter_only_where_it_holds_several_names(tmp_path: Path) -> None:
    one = read_trace(rows(tmp_path, [0, 1000], model="qwen3-8b"))
    assert one.adapter is None and "model holds one name (qwen3-8b), the base model's" in one.notes[0]
    path = tmp_path / "several.jsonl"
    path.write_text(rows(tmp_path, [0, 1000], model="a").read_text() + rows(tmp_path, [5], model="b").read_text())
    table = read_trace(path)
    assert table.adapter is not None and table.adapter.names == ("a", "b")
    assert "adapter: column model is used (2 names)" in table.notes[0]


def test_of_two_columns_that_may_be_the_adapter_the_note_tells_which(tmp_path: Path) -> None:
    table = read_trace(rows(tmp_path, [0, 1000], lora_name="a", lora_id="1"))
    assert table.adapter is not None and table.adapter.names == ("a",)
    assert "adapter: column lora_name is used, not lora_id: columns.adapter overrides that" in table.notes


def test_labels_are_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,input_tokens,output_tokens,adapter\n0,1,1,007\n1,1,1,7\n2,1,1,NA\n3,1,1,\n4,1,1,null\n")
    table = read_trace(path)
    assert table.adapter is not None and set(table.adapter.names) == {"007", "7", "NA"}
    assert (table.adapter.codes < 0).tolist() == [False, False, False, True, True]
    big = rows(tmp_path, [0], lora_id=2**60 + 1)
    found = read_trace(big).adapter
    assert found is not None and found.names == (str(2**60 + 1),)


def test_bailian_times_are_seconds_and_its_blocks_hold_16_tokens() -> None:
    report = check(CASES / "trace-bailian-seconds" / "trace.jsonl")
    assert (report.format, report.block_tokens, report.time_unit) == ("bailian", 16, "s")
    assert report.span_s == pytest.approx(19.216) and report.rate == pytest.approx(3.07, abs=0.005)
    single = built("trace-bailian-seconds", "adapters.count=1", "workload.prefix_cache=true")
    assert single.cached_tokens is not None and single.cached_tokens.tolist() == [0] + [320] * 59
    slow = built("trace-bailian-seconds", "workload.time_unit=ms")
    assert slow.arrival[-1] == pytest.approx(0.019216)
    assert any("3,070 requests/s over 0.0192 s" in note and "set time_unit: s" in note for note in slow.notes)


def test_adapters_share_no_prefix() -> None:
    """vLLM hashes the LoRA into a block (PR 3263): keys and values depend on the adapter."""
    w = built("prefix-cache-across-adapters")
    assert w.cached_tokens is not None
    first = [int(np.flatnonzero(w.adapter == a)[0]) for a in np.unique(w.adapter)]
    assert (len(first), int(w.cached_tokens.sum())) == (38, 1535 * (60 - 38))
    assert not w.cached_tokens[first].any() and set(np.delete(w.cached_tokens, first).tolist()) == {1535}
    mixed = built("prefix-cache-across-adapters", "adapters.count=1", "adapters.base_share=0.5", "adapters.pinned=0")
    assert mixed.cached_tokens is not None and int(mixed.cached_tokens.sum()) == 1535 * 58
    window = built("prefix-cache-across-adapters", "adapters.count=1", "workload.window=[10, 20]")
    assert window.cached_tokens is not None and window.cached_tokens.tolist() == [0] + [1535] * 9


def test_rows_without_times_or_outputs_have_prefix_blocks_too() -> None:
    w = built("trace-prefix-keys-ignored")
    assert w.cached_tokens is not None and w.cached_tokens.tolist() == [0] + [160] * 39
    assert "hash_ids are read as blocks of 16 tokens, by the prompts: block_tokens overrides that" in w.notes
    wide = built("trace-prefix-keys-ignored", "workload.block_tokens=8")
    assert wide.cached_tokens is not None and wide.cached_tokens.tolist() == [0] + [80] * 39


@pytest.mark.parametrize("size", [8, 16, 48, 256, 512, 1000])
@pytest.mark.parametrize("layout", ["mooncake", "generic"])
def test_the_size_of_a_block_is_found_from_the_prompts(tmp_path: Path, size: int, layout: str) -> None:
    path = tmp_path / "t.jsonl"
    lengths = [size * n - 1 for n in range(3, 43)] + [size * n - size + 1 for n in range(3, 43)]
    lines = [
        {"input_length": n, "output_length": 1, "hash_ids": list(range(-(-n // size))), "timestamp": 400 * i}
        for i, n in enumerate(lengths)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = read_trace(path, layout, ReadOptions(prefix_cache=True))
    assert table.blocks is not None and table.blocks.tokens == size
    assert any("hash_ids" in note for note in table.notes) == ((layout, size) != ("mooncake", 512))


@pytest.mark.parametrize(
    ("more", "options", "says"),
    [
        ({}, ReadOptions(prefix_cache=True), "prefix_cache does not apply, because the file has no hash_ids"),
        ({}, ReadOptions(block_tokens=16), "block_tokens does not apply, because the file has no hash_ids"),
        ({"hash_ids": [1]}, ReadOptions(block_tokens=16), "block_tokens needs prefix_cache: true"),
        ({"hash_ids": 5}, ReadOptions(prefix_cache=True), "line 1: hash_ids 5 is not a list such as"),
        ({"hash_ids": [[1]]}, ReadOptions(prefix_cache=True), "line 1: hash_ids .* whole numbers or names only"),
        ({"hash_ids": [1, 2, 3], "input_length": 2}, ReadOptions(prefix_cache=True), "set block_tokens"),
    ],
)  # fmt: skip
def test_prefix_keys_that_cannot_apply(
    tmp_path: Path, more: dict[str, object], options: ReadOptions, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        read_trace(rows(tmp_path, [0, 500], **more), options=options)


@pytest.mark.parametrize(
    "column", ["loraName", "Lora Name", "lora_path", "lora_int_id", "adapterId", "model_name", "lora_adapter_name"]
)
def test_adapter_columns_are_found_however_they_are_spelled(tmp_path: Path, column: str) -> None:
    path = tmp_path / "t.jsonl"
    lines = [{"timestamp": i, "input_length": 5, "output_length": 2, column: f"a{i % 3}"} for i in range(12)]
    path.write_text("\n".join(map(json.dumps, lines)))
    report = check(path)
    assert report.adapters is not None and (report.adapters.by, report.adapters.distinct) == ("adapter", 3)


def test_a_column_that_may_hold_the_adapter_or_tenant_is_told(tmp_path: Path) -> None:
    report = check(rows(tmp_path, [0.0, 400.0, 800.0], lora_request="x", api_key="k", temperature=0.7))
    assert report.unread == ("lora_request", "api_key", "temperature")
    assert "column lora_request is not read: if one holds the adapter, name it in columns.adapter" in report.notes
    assert "column api_key is not read: if one holds the tenant, name it in columns.tenant" in report.notes
    assert ("not read", "lora_request, api_key, temperature") in report.rows()
    named = check(tmp_path / "t.jsonl", options=ReadOptions(columns=ColumnsSpec(adapter="lora_request")))
    assert named.unread == ("api_key", "temperature") and not any("lora_request" in note for note in named.notes)


@pytest.mark.parametrize(
    "names",
    [
        ("input_len", "output_len"),
        ("inputTokens", "outputTokens"),
        ("isl", "osl"),
        ("prompt_length", "response_length"),
    ],
)
def test_lengths_are_found_by_the_names_that_benchmarks_use(tmp_path: Path, names: tuple[str, str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"ts,{names[0]},{names[1]}\n" + "".join(f"{i},7,3\n" for i in range(5)))
    report = check(path)
    assert report.input_tokens is not None and report.output_tokens is not None
    assert (report.span_s, report.input_tokens.mean, report.output_tokens.mean) == (4.0, 7.0, 3.0)


def test_a_row_that_names_the_scenarios_model_wants_the_base_model(tmp_path: Path) -> None:
    names = ["llama-3.1-8b", "sql", "llama-3.1-8b", "hr", "llama-3.1-8b", "sql"]
    path = tmp_path / "t.csv"
    path.write_text("time,input_tokens,output_tokens,model\n" + "".join(f"{i},5,2,{m}\n" for i, m in enumerate(names)))
    scenario = tmp_path / "s.yaml"
    scenario.write_text(
        "name: s\nmodel: llama-3.1-8b\ngpu: h100-80gb\nadapters: {ranks: 8}\n"
        f"workload: {{trace: {path}}}\npolicies: [fifo]\n"
    )
    loaded = load_scenario(str(scenario), [])
    workload = build_workload(loaded, 0, build_adapters(loaded, lambda rank: rank))
    assert counts(workload) == {"sql": 2, "hr": 1} and workload.adapter.tolist() == [-1, 0, -1, 1, -1, 0]
    assert "rows that name llama-3.1-8b, which is the base model, not an adapter: 3" in workload.notes


def test_tenants_that_nothing_asks_for_are_told(tmp_path: Path) -> None:
    path = rows(tmp_path, [0.0, 400.0, 800.0], team="blue", lora="sql")
    text = f"name: s\nmodel: llama-3.1-8b\ngpu: h100-80gb\nadapters: {{ranks: 8}}\nworkload: {{trace: {path}}}\n"
    note = "the trace's tenants (team) are not used: tenants: {map: trace} would use them"
    for tenants, told in (("", True), ("tenants: {map: trace}\n", False), ("tenants: {map: single}\n", False)):
        (tmp_path / "s.yaml").write_text(f"{text}{tenants}policies: [fifo]\n")
        loaded = load_scenario(str(tmp_path / "s.yaml"), [])
        workload = build_workload(loaded, 0, build_adapters(loaded, lambda rank: rank))
        assert (note in workload.notes) == told


def test_a_priority_column_of_words_is_left_out_unless_it_was_named(tmp_path: Path) -> None:
    path = rows(tmp_path, [0.0, 400.0, 800.0], priority="high")
    table = read_trace(path)
    assert table.priority is None and "column priority is not read" in table.notes[-1]
    with pytest.raises(InputError, match="priority 'high' is not a number"):
        read_trace(path, options=ReadOptions(columns=ColumnsSpec(priority="priority")))


@pytest.mark.parametrize("size", [16, 64, 512])
def test_hash_ids_of_full_blocks_alone_tell_their_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "t.jsonl"
    lengths = [2000 + 37 * i for i in range(40)]
    lines = [
        {"timestamp": 400 * i, "input_length": n, "output_length": 2, "hash_ids": list(range(n // size))}
        for i, n in enumerate(lengths)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert check(path).block_tokens == size
