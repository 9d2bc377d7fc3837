"""Traces as people have them: other units, further columns, sessions and prefix blocks, read as they were meant."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from loratory.errors import InputError
from loratory.scenarios.build import build_adapters, build_workload
from loratory.scenarios.load import load_scenario
from loratory.scenarios.traces import ReadOptions, check, convert, read_trace
from loratory.scenarios.traces.columns import ColumnsSpec
from loratory.scenarios.traces.times import unit_in_name
from loratory.serving.workload import Workload

CASES = Path(__file__).resolve().parents[1] / "cases"


def built(case: str, *overrides: str, scenario: str = "scenario.yaml") -> Workload:
    loaded = load_scenario(str(CASES / case / scenario), list(overrides))
    return build_workload(loaded, 0, build_adapters(loaded, lambda rank: rank))


def counts(workload: Workload) -> dict[str, int]:
    return {name: int((workload.adapter == i).sum()) for i, name in enumerate(workload.adapters)}


def rows(folder: Path, times: list[float], name: str = "timestamp", **more: object) -> Path:
    path = folder / "t.jsonl"
    kinds = {"input_length": 100, "output_length": 10} | more
    path.write_text("".join(json.dumps({name: time, **kinds}) + "\n" for time in times))
    return path


# Columns


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


# Units


def test_bailian_times_are_seconds_and_its_blocks_hold_16_tokens() -> None:
    report = check(CASES / "trace-bailian-seconds" / "trace.jsonl")
    assert (report.format, report.block_tokens, report.time_unit) == ("bailian", 16, "s")
    assert report.span_s == pytest.approx(19.216) and report.rate == pytest.approx(3.07, abs=0.005)
    single = built("trace-bailian-seconds", "adapters.count=1", "workload.prefix_cache=true")
    assert single.cached_tokens is not None and single.cached_tokens.tolist() == [0] + [320] * 59
    slow = built("trace-bailian-seconds", "workload.time_unit=ms")
    assert slow.arrival[-1] == pytest.approx(0.019216)
    assert any("3,070 requests/s over 0.0192 s" in note and "set time_unit: s" in note for note in slow.notes)


SECONDS = [i * 0.4 for i in range(30)]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("start", [0, 1_700_000_000])
def test_a_unit_is_found_from_the_name_the_size_or_the_rate(tmp_path: Path, unit: str, start: int) -> None:
    """The same requests in every unit, counted from 0 or from 1970, as generic rows and in Mooncake's layout."""
    factor = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}[unit]
    ticks = [round((start + second) * factor) if unit != "s" else start + second for second in SECONDS]
    for name in ("timestamp", "time", f"timestamp_{unit}"):
        table = read_trace(rows(tmp_path, ticks, name))
        assert table.time_s is not None and table.time_s == pytest.approx(SECONDS, abs=1e-5)
        usual = "ms" if name == "timestamp" else "s"
        assert bool(table.notes) == (name in ("timestamp", "time") and unit != usual)
        asked = read_trace(rows(tmp_path, ticks, name), options=ReadOptions(time_unit=unit))
        assert asked.time_s is not None and asked.time_s == pytest.approx(SECONDS, abs=1e-5) and asked.notes == ()


@pytest.mark.parametrize(
    ("name", "unit"),
    [("arrival_ms", "ms"), ("Time (us)", "us"), ("startTimeNs", "ns"), ("t_seconds", "s"), ("timestamp", None),
     ("TIMESTAMP", None), ("arrivals", None), ("ms", "ms"), ("columns", None), ("epoch_millis", "ms")],
)  # fmt: skip
def test_the_unit_in_a_columns_name(name: str, unit: str | None) -> None:
    assert unit_in_name(name) == unit


@pytest.mark.parametrize(
    ("times", "name", "options", "says"),
    [
        ([1.7e12, 1.7e12 + 5], "time_s", ReadOptions(), "time_s is in seconds by its name, but in millis"),
        ([0, 1e300], "time", ReadOptions(), "line 2: time 1e.300 is beyond 300 years in seconds"),
        ([0, 1.7e12], "time", ReadOptions(time_unit="s"), "beyond 300 years in seconds .time_unit may be"),
        (["2024-05-01T10:00:00", "2024-05-01"], "time", ReadOptions(time_unit="s"), "because time holds dates"),
    ],
)  # fmt: skip
def test_times_that_make_no_sense(
    tmp_path: Path, times: list[float], name: str, options: ReadOptions, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        read_trace(rows(tmp_path, times, name), options=options)


def test_an_implausible_rate_or_span_is_told(tmp_path: Path) -> None:
    (slow,) = read_trace(rows(tmp_path, [i * 86_400.5 for i in range(2000)], "time")).notes
    assert "over 1,999 days, which is unusual: if the times are in milliseconds, set time_unit: ms" in slow
    (few,) = read_trace(rows(tmp_path, [0, 1e9], "time_s")).notes
    assert "over 11,574 days, which is unusual: if the times are in milliseconds, set time_unit: ms" in few
    (burst,) = read_trace(rows(tmp_path, [0, 1, 2, 3, 4], "timestamp")).notes
    assert "arrives at 1,000 requests/s over 0.004 s, which is unusual: if the times are in seconds" in burst
    (fast,) = read_trace(rows(tmp_path, [i * 1e-5 for i in range(20)], "time_s")).notes
    assert "100,000 requests/s over 0.00019 s" in fast and "check the times" in fast


@pytest.mark.parametrize("gap", [60, 80])
def test_a_slow_trace_in_seconds_is_not_taken_for_milliseconds(tmp_path: Path, gap: int) -> None:
    table = read_trace(rows(tmp_path, [i * gap for i in range(100)], "time"))
    assert table.time_s is not None and table.time_s[-1] == 99 * gap
    assert len(table.notes) == 1 and "if the times are in milliseconds, set time_unit: ms" in table.notes[0]


# Prefix blocks


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


# Files


def test_a_json_line_ends_at_a_newline_only(tmp_path: Path) -> None:
    assert check(CASES / "trace-jsonl-line-separator" / "trace.jsonl").rows_read == 10
    path = tmp_path / "t.jsonl"
    raw = '{"timestamp": 0, "input_length": 1, "output_length": 1, "text": "a\u2028b\u2029c\u0085d"}\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + (raw * 3).encode() + b"\r\n")
    assert read_trace(path).rows_read == 3


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.jsonl", '{"timestamp": 0, "timestamp": 1}', "line 1 repeats a key"),
        ("t.jsonl", "\n\n", "the trace is empty: give a file with rows"),
        ("t.csv", "time,input_tokens\n9999-01-01,1\n2024-01-01,1\n", "line 2: time '9999-01-01' is 300 years after"),
        ("t.jsonl", '{"timestamp": NaN}', "line 1 holds NaN, which is not JSON"),
        ("t.jsonl", '\n\n{"timestamp": 0}\n[1]', "line 4 is not an object"),
        ("t.jsonl", '{"timestamp": 0}\n{"timestamp"', "line 2 is not JSON"),
        ("t.jsonl", "[" * 100_000, "is nested too deeply"),
        ("t.jsonl", '{"time": 0, "input_tokens": true}', "line 1: input_tokens True is not a number"),
        ("t.jsonl", '{"time": 0, "input_tokens": {"n": 1}}', "line 1: input_tokens .* is not a number"),
        ("t.jsonl", '{"time": 0}\n\n{"time": 1, "adapter": {"n": 1}}', "line 3: adapter .* is not a name"),
        ("t.jsonl", '{"time": 0, "adapter": true}', "line 1: adapter True is not a name"),
        ("t.jsonl", '{"time": 0, "input_tokens": 1' + "0" * 400 + "}", "line 1: input_tokens .* finite"),
        ("t.csv", "time,time\n0,1\n", "has several columns named 'time'"),
        ("t.csv", "time,input_tokens\n0,1\n\n1,-5\n", "line 4: input_tokens -5.* is negative"),
        ("t.csv", "time,input_tokens\n0,1,024\n1,5\n", "cannot be read as csv"),
        ("t.csv", "time,input_tokens\n0,1\n1,5,7\n", "cannot be read as csv"),
        ("t.csv", "time,priority\n0,1e300\n", "line 2: priority .* is beyond"),
        ("t.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "is a Git LFS pointer"),
        ("t.csv.xz", "not xz", "is cut short or damaged"),
        ("t.csv.zst", "not zst", "cannot be read as csv"),
        ("t.csv.zip", "not a zip", "cannot be read as csv"),
    ],
)  # fmt: skip
def test_a_broken_file_is_one_line_that_names_it(tmp_path: Path, name: str, content: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=says) as caught:
        check(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) <= 400


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("trunc.csv.gz", "is cut short or damaged"),
        ("tok-1e30.csv", "line 2: input_tokens 1e.30 is more tokens than any request has"),
        ("time-1e300.csv", "line 3: timestamp 1e.300 is beyond 300 years"),
    ],
)
def test_hostile_files(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check(CASES / "hostile" / name)


def test_a_packed_file_reads_as_what_it_holds(tmp_path: Path) -> None:
    plain = rows(tmp_path, [0, 1000, 2500])
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert check(packed).as_dict() | {"path": ""} == check(plain).as_dict() | {"path": ""}
    zstd = pa.compress(plain.read_bytes(), codec="zstd", asbytes=True)
    for suffix, content in (
        ("bz2", bz2.compress(plain.read_bytes())),
        ("xz", lzma.compress(plain.read_bytes())),
        ("zst", zstd),
    ):
        other = tmp_path / f"t.jsonl.{suffix}"
        other.write_bytes(content)
        assert check(other).rows_read == 3


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_converting_keeps_sessions_delays_and_blocks(tmp_path: Path, suffix: str) -> None:
    path = CASES / "trace-sessions-with-delay" / "trace.jsonl"
    table = convert(path, tmp_path / f"o.{suffix}")
    again = read_trace(tmp_path / f"o.{suffix}", options=ReadOptions(blocks=True))
    assert len(again) == 50 and again.delay_s is not None and table.delay_s is not None
    np.testing.assert_array_equal(again.delay_s, table.delay_s)
    assert again.blocks is not None and table.blocks is not None
    assert again.blocks.tokens == 512 and again.blocks.ids.tolist() == table.blocks.ids.tolist()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (ReadOptions(time_unit="s"), "time_unit does not apply to servegen, which has fits instead of rows"),
        (ReadOptions(columns=ColumnsSpec(adapter="x")), "columns.adapter does not apply to servegen"),
        (ReadOptions(prefix_cache=True), "prefix_cache does not apply to servegen"),
        (ReadOptions(block_tokens=4), "block_tokens does not apply to servegen"),
    ],
)
def test_what_servegen_does_not_read_is_refused(tmp_path: Path, option: ReadOptions, says: str) -> None:
    (tmp_path / "chunk-0-trace.csv").write_text("0,1,1,Gamma,1,1\n")
    with pytest.raises(InputError, match=says):
        read_trace(tmp_path, options=option)
    with pytest.raises(InputError, match=says):
        check(tmp_path, options=option)


# Other people's spellings


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


def test_the_second_of_two_columns_of_times_is_told(tmp_path: Path) -> None:
    report = check(rows(tmp_path, [0.0, 1.0, 2.0], arrived_at=3, adapter="a"))
    assert "time: column arrived_at is used, not timestamp: columns.time overrides that" in report.notes


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


# Dates and units that are written otherwise


@pytest.mark.parametrize(
    "form",
    [
        "%m/%d/%Y %H:%M:%S.%f",
        "%m/%d/%Y %I:%M:%S %p",
        "%d.%m.%Y %H:%M:%S",
        "%d/%b/%Y:%H:%M:%S +0200",
        "%a, %d %b %Y %H:%M:%S GMT",
        "%Y-%m-%d %H:%M:%S UTC",
        "%Y%m%dT%H%M%SZ",
    ],
)
@pytest.mark.parametrize("header", ["TIMESTAMP,ContextTokens,GeneratedTokens", "timestamp,input_tokens,output_tokens"])
def test_dates_are_read_in_every_common_form(tmp_path: Path, form: str, header: str) -> None:
    start = datetime(2024, 5, 30, 23, 59, 30, tzinfo=UTC)
    path = tmp_path / "t.csv"
    cells = [(start + timedelta(seconds=s)).strftime(form) for s in (0, 20, 40, 86_440)]
    path.write_text(header + "\n" + "".join(f'"{cell}",5,2\n' for cell in cells))
    table = read_trace(path)
    assert table.time_s is not None and table.time_s.tolist() == [0, 20, 40, 86_440] and not table.notes


def test_a_cell_that_is_no_date_is_named_by_its_line_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,input_tokens,output_tokens\n" + "".join(f"5/3/24 1:0{i} PM,5,2\n" for i in range(3)))
    table = read_trace(path)
    assert table.time_s is not None and table.time_s.tolist() == [0, 60, 120]
    path.write_text(path.read_text() + "5/3/24 noon,5,2\n")
    with pytest.raises(InputError, match=r"line 5: time '5/3/24 noon' is not a date"):
        read_trace(path)


def test_rows_that_all_have_one_time_are_told(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,input_tokens,output_tokens\n" + "2024-05-03,5,2\n" * 12)
    assert read_trace(path).notes == ("all 12 rows have one time: they arrive at once",)


def test_a_priority_column_of_words_is_left_out_unless_it_was_named(tmp_path: Path) -> None:
    path = rows(tmp_path, [0.0, 400.0, 800.0], priority="high")
    table = read_trace(path)
    assert table.priority is None and "column priority is not read" in table.notes[-1]
    with pytest.raises(InputError, match="priority 'high' is not a number"):
        read_trace(path, options=ReadOptions(columns=ColumnsSpec(priority="priority")))


def test_dates_that_can_be_read_both_ways_are_read_in_the_shorter_span_and_told(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,input_tokens,output_tokens\n01/02/2024 10:00,5,2\n01/03/2024 10:00,5,2\n")
    table = read_trace(path)
    assert table.time_s is not None and table.time_s.tolist() == [0, 86_400]
    assert table.notes[0].startswith("time is read month first, which gives the shorter span")


@pytest.mark.parametrize(
    "header", ["TIMESTAMP,ContextTokens,GeneratedTokens", "arrived_at,num_prefill_tokens,num_decode_tokens"]
)
@pytest.mark.parametrize("scale", [1e3, 1e6, 1e9])
def test_whole_numbers_in_azures_and_vidurs_layouts_are_read_in_the_unit_that_fits(
    tmp_path: Path, header: str, scale: float
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(header + "\n" + "".join(f"{int(i * scale)},5,2\n" for i in range(20)))
    table = read_trace(path)
    assert table.time_s is not None and table.time_s[-1] == pytest.approx(19.0)
    assert "time_unit overrides that" in table.notes[0]


def test_the_unit_that_a_note_proposes_gives_a_plausible_rate(tmp_path: Path) -> None:
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    path = tmp_path / "t.csv"
    for scale, unit in ((1e3 + 0.1, "ms"), (1e6 + 0.1, "us")):
        path.write_text(header + "".join(f"{i * scale / 3},GPT-4,5,2,7,API log\n" for i in range(60)))
        (note,) = read_trace(path).notes
        assert note.endswith(f"set time_unit: {unit}")


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
