"""Trace readers: every format on a small file of its own, and an account of every row."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.errors import InputError
from loratory.scenarios.traces import (
    Labels,
    ReadOptions,
    TraceTable,
    check,
    clean,
    convert,
    detect,
    formats,
    read_trace,
)
from loratory.scenarios.traces.blocks import cached_tokens
from loratory.scenarios.traces.columns import ColumnsSpec
from loratory.scenarios.traces.report import fit_zipf

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799600,4808,10\r\n"
    "2023-11-16 18:17:04.0319601,3180,8\r\n"
    "2023-11-16 18:17:06.9799600,110,0\r\n"
)
ZONED = AZURE.replace(",4808", "+00:00,4808").replace(",3180", "+00:00,3180").replace(",110", "+00:00,110")
BURST_1 = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,API log\n118,ChatGPT,0,0,0,Conversation log\n"
)
BURST_3 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "19440110.0,s1,43,GPT-4,906,446,1352,Conversation log\n19440161.0,,2,ChatGPT,36,29,65,API log\n"
)
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n2.5,100,7\n1.0,90,5\n"
GENTD = "seq,base_model,lora_ids\r\n0,B0,\r\n1,B1,L7\r\n2,B1,L7|L3\r\n3,B0,L3\r\n"
LOG = "timestamp_s,adapter,input_length,output_length,len_source\n0.0,b,5,6,own\n1.5,a,7,8,own\n2.5,b,9,9,own\n"
FUNCTIONS = "app,func,end_timestamp,duration\nx,f,10.0,4.0\nx,g,11.0,1.0\ny,f,30.0,2.0\n"
COUNTS = "HashOwner,HashApp,HashFunction,Trigger,1,2,3\no,x,f,http,2,0,3\no,x,g,http,0,1,0\n"
MOONCAKE = "\n".join(
    json.dumps({"timestamp": t, "input_length": n, "output_length": 4, "hash_ids": ids})
    for t, n, ids in ((0, 1100, [1, 2, 3]), (3000, 1024, [1, 2]), (1500, 600, [9, 2]))
)


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "format", "times", "prompts"),
    [
        ("a.csv", AZURE, "azure", [0, 0.0520001, 3.0], [4808, 3180, 110]),
        ("a.csv", ZONED, "azure", [0, 0.0520001, 3.0], [4808, 3180, 110]),
        ("b.csv", BURST_1, "burstgpt", [0, 40, 113], [472, 1087, 0]),
        ("c.csv", BURST_3, "burstgpt", [0, 51], [906, 36]),
        ("d.csv", VIDUR, "vidur", [1.5, 0], [100, 90]),
        ("e.csv", "num_prefill_tokens,num_decode_tokens\n4,5\n", "vidur", None, [4]),
        ("f.csv", GENTD, "gentd", None, None),
        ("g.csv", LOG, "generic", [0, 1.5, 2.5], [5, 7, 9]),
        ("h.jsonl", MOONCAKE, "mooncake", [0, 3.0, 1.5], [1100, 1024, 600]),
        ("i.csv", FUNCTIONS, "azure_functions", [0, 4.0, 22.0], None),
    ],
)  # fmt: skip
def test_each_format_is_recognised_and_read(
    tmp_path: Path, name: str, content: str, format: str, times: list[float] | None, prompts: list[int] | None
) -> None:
    path = write(tmp_path, name, content)
    assert detect(path).name == format
    table = read_trace(path)
    assert table.format == format
    assert (table.time_s is None) == (times is None) and (table.prompt is None) == (prompts is None)
    if table.time_s is not None and times is not None:
        assert table.time_s == pytest.approx(times, abs=1e-6)
    if table.prompt is not None and prompts is not None:
        assert table.prompt.tolist() == prompts


def test_burstgpt_columns_are_read_by_name_in_both_versions(tmp_path: Path) -> None:
    one = read_trace(write(tmp_path, "1.csv", BURST_1))
    three = read_trace(write(tmp_path, "3.csv", BURST_3))
    assert one.client is not None and one.client.names == ("ChatGPT", "GPT-4")
    assert three.tenant is not None and three.tenant.names == ("s1",) and three.tenant.codes.tolist() == [0, -1]
    assert three.output is not None and three.output.tolist() == [446, 29]


def test_gentd_keeps_the_first_of_several_adapters_and_says_so(tmp_path: Path) -> None:
    table = read_trace(write(tmp_path, "g.csv", GENTD))
    assert table.adapter is not None
    assert [None if c < 0 else table.adapter.names[c] for c in table.adapter.codes] == [None, "L7", "L7", "L3"]
    assert table.notes == ("rows that name several adapters, of which the first is used: 1",)


def test_mooncake_blocks_seen_before_count_as_cached(tmp_path: Path) -> None:
    path = write(tmp_path, "m.jsonl", MOONCAKE)
    assert read_trace(path).blocks is None
    table = clean(read_trace(path, options=ReadOptions(prefix_cache=True)))
    assert table.blocks is not None and table.prompt is not None and table.blocks.tokens == 512
    # In time order: nothing, then [9, 2] whose first block is new, then both blocks, one token being left to compute.
    assert cached_tokens(table.blocks, table.prompt, np.zeros(3, dtype=np.int64)).tolist() == [0, 0, 1023]
    assert cached_tokens(table.blocks, table.prompt, np.array([0, 0, -1])).tolist() == [0, 0, 0]


def test_counts_per_minute_are_spread_over_their_minute(tmp_path: Path) -> None:
    table = read_trace(write(tmp_path, "c.csv", COUNTS))
    assert detect(tmp_path / "c.csv").name == "azure_functions"
    assert len(table) == 6 and table.adapter is not None and table.adapter.names == ("f", "g")
    assert np.bincount(table.adapter.codes).tolist() == [5, 1]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "csv.gz"])
def test_generic_reads_named_columns_units_and_dates(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame(
        {
            "when": [1000, 3000, 2000],
            "in": [5, 6, 7],
            "out": [1, 2, 3],
            "model": ["x", None, "y"],
            "org_unit": ["p", "q", "p"],
        }
    )
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(path)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False)
    columns = ColumnsSpec(time="when", input="in", output="out", adapter="model", tenant="org_unit")
    table = read_trace(path, "generic", ReadOptions(columns=columns, time_unit="ms"))
    assert table.time_s is not None and table.time_s.tolist() == [0, 2, 1]
    assert table.adapter is not None and table.adapter.codes[1] == -1 and set(table.adapter.names) == {"x", "y"}
    assert table.tenant is not None and table.tenant.names == ("p", "q")


def test_dates_mix_zones(tmp_path: Path) -> None:
    text = "time,input_tokens\n2024-05-01T10:00:00+02:00,1\n2024-05-01T08:00:01Z,1\n2024-05-01 08:00:02,1\n"
    table = read_trace(write(tmp_path, "z.csv", text))
    assert table.time_s is not None and table.time_s.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "format", "says"),
    [
        ("", None, "the trace is empty"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", None, "the trace is empty: it has no rows"),
        ("a,b\n1,2\n", None, "is not in a known trace format .columns a, b."),
        ("a,b\n1,2\n", "generic", "no column is recognised"),
        (AZURE, "vidur", "has no column 'num_prefill_tokens', which vidur needs"),
        (AZURE, "azur", "unknown; did you mean 'azure'"),
        (AZURE.replace("3180", "many"), None, "line 3: ContextTokens 'many' is not a number"),
        (AZURE.replace("3180", "-3"), None, "line 3: ContextTokens .* is negative"),
        (AZURE.replace("3180", "3.5"), None, "line 3: ContextTokens .* is not a whole number"),
        (
            AZURE.replace("2023-11-16 18:17:04.0319601", "yesterday"),
            None,
            "line 3: TIMESTAMP 'yesterday' is not a date",
        ),
        (VIDUR.replace("2.5", "inf"), None, "line 2: arrived_at .* is not a finite number"),
        ("time,input_tokens,output_tokens\n,,\n", None, "the trace is empty: no row has a time"),
    ],
)
def test_a_broken_trace_is_one_line_that_names_it(tmp_path: Path, content: str, format: str | None, says: str) -> None:
    path = write(tmp_path, "t.csv", content)
    with pytest.raises(InputError, match=says) as caught:
        read_trace(path, format)
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path / "none.tgz", tmp_path / "none"):
        with pytest.raises(InputError, match="does not exist"):
            check(path)
    with pytest.raises(InputError, match="cannot be read as parquet"):
        read_trace(write(tmp_path, "x.parquet", "nonsense"), "generic")
    with pytest.raises(InputError, match="line 2 is not JSON"):
        read_trace(write(tmp_path, "x.jsonl", '{"time": 1, "input_tokens": 2}\n{\n'), "generic")


@pytest.mark.parametrize("torn", ['{"time": 2, "input_tokens": 1', '{"time": 2, "tenant": "\udcc3', "{"])
def test_a_last_line_that_was_being_written_is_left_out(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"time": 1, "input_tokens": 2}\n' + torn, encoding="utf-8", errors="surrogateescape")
    table = read_trace(path, "generic")
    assert len(table) == 1 and "the last line is cut short and was left out" in table.notes


def test_every_row_left_out_or_changed_is_counted(tmp_path: Path) -> None:
    text = "time,input_tokens,output_tokens\n5,10,1\n1,0,1\n,9,9\n2,7,0\n9,8,8\n3,6,6\n"
    table = clean(read_trace(write(tmp_path, "t.csv", text)), window=(1.0, 8.0), rate_scale=2.0)
    assert table.notes == (
        "rows left out (an empty time or token cell): 1",
        "sorted by time; rows that were earlier than the row before them: 2",
        "rows left out (no prompt or no output tokens): 2",
        "rows left out (outside the window [1, 8) s): 1",
    )
    assert table.time_s is not None and table.time_s.tolist() == [0.5, 1.5]
    assert table.prompt is not None and table.prompt.tolist() == [6, 10]
    kept = clean(read_trace(tmp_path / "t.csv"), zero_tokens="clamp")
    assert len(kept) == 5 and kept.prompt is not None and kept.prompt.min() == 1
    assert "rows changed (no prompt or no output tokens; counted as 1): 2" in kept.notes


rows = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


@given(rows, st.floats(0, 20), st.floats(0.1, 40), st.floats(0.1, 10))
def test_clean_conserves_rows(data: list[tuple[int, int, int]], start: float, length: float, scale: float) -> None:
    time, prompt, output = (np.array(column) for column in zip(*data, strict=True))
    table = TraceTable("generic", len(data), time.astype(float), prompt, output)
    done = clean(table, window=(start, start + length), rate_scale=scale)
    left_out = sum(int(note.rsplit(": ", 1)[1]) for note in done.notes if note.startswith("rows left out"))
    assert len(done) + left_out == len(data)
    assert done.time_s is not None and (np.diff(done.time_s) >= 0).all()
    assert (done.time_s >= 0).all() and (done.time_s * scale < length + 1e-9).all()


# ServeGen


def servegen(folder: Path, lengths: bool = True) -> Path:
    folder.mkdir()
    write(folder, "chunk-0-trace.csv", "0,0.5,1.0,Gamma,1.0,2.0\n600,0,0,,0,0\n1200,0.1,2.0,Weibull,0.5,5.0\n")
    write(folder, "chunk-7-trace.csv", "0,0,0,,0,0\n600,2.0,1.0,Gamma,0.2,2.0\n1200,0,0,,0,0\n")
    if lengths:
        texts = {"input_tokens": "{50: 0.25, 60: 0.75}", "output_tokens": "{7: 1.0}", "reason_ratio": "{0.0: 1.0}"}
        write(
            folder,
            "chunk-0-dataset.json",
            json.dumps({"0": texts, "900": {"input_tokens": "{}", "output_tokens": "{}"}}),
        )
    return folder


def test_servegen_rates_are_exact_and_gaps_have_the_fitted_shape(tmp_path: Path) -> None:
    path = servegen(tmp_path / "m")
    assert detect(path).name == "servegen"
    table = read_trace(path)
    assert table.adapter is not None and table.time_s is not None
    assert table.adapter.names == ("client-0", "client-7")
    mine = [table.time_s[table.adapter.codes == i] for i in (0, 1)]
    assert [np.histogram(t, bins=[0, 600, 1200, 1800])[0].tolist() for t in mine] == [[300, 0, 60], [0, 1200, 0]]
    gaps = np.diff(mine[1])
    assert gaps.std() / gaps.mean() == pytest.approx(0.2**-0.5, rel=0.15)  # a gamma of shape k has CV k^-1/2
    assert table.prompt is not None and table.output is not None
    assert set(table.prompt.tolist()) == {50, 60} and set(table.output.tolist()) == {7}
    assert "requests whose lengths come from another client: 1200" in table.notes
    assert "requests whose lengths come from another time of day: 60" in table.notes


def test_servegen_files_that_are_git_lfs_pointers_are_called_so(tmp_path: Path) -> None:
    folder = servegen(tmp_path / "m")
    next(folder.rglob("chunk-*-trace.csv")).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
    )
    with tarfile.open(tmp_path / "m.tgz", "w:gz") as archive:
        archive.add(folder, "m")
    for path in (folder, tmp_path / "m.tgz"):
        with pytest.raises(InputError, match=r"trace\.csv is a Git LFS pointer, not the file: run git lfs pull"):
            read_trace(path, "servegen")


def test_servegen_window_and_rate_scale(tmp_path: Path) -> None:
    path = servegen(tmp_path / "m", lengths=False)
    table = clean(read_trace(path, options=ReadOptions(window=(700.0, 900.0), rate_scale=0.5)), window=(700.0, 900.0))
    assert table.prompt is None and table.time_s is not None
    assert 40 < len(table) < 180 and table.time_s.max() < 200


def test_servegen_reads_an_archive_like_its_folder(tmp_path: Path) -> None:
    folder = servegen(tmp_path / "m")
    with tarfile.open(tmp_path / "m.tgz", "w:gz") as archive:
        archive.add(folder, "language/m")
    one, two = read_trace(folder), read_trace(tmp_path / "m.tgz")
    np.testing.assert_array_equal(one.time_s, two.time_s)
    np.testing.assert_array_equal(one.prompt, two.prompt)


@pytest.mark.parametrize(
    ("trace", "dataset", "says"),
    [
        ("0,1,1\n", "{}", "chunk-0-trace.csv line 1 is not start,rate,cv"),
        ("0,-1,1,Gamma,1,1\n", "{}", "line 1: rate -1 is negative"),
        ("0,1,1,Pareto,1,1\n", "{}", "pattern 'Pareto'"),
        ("0,1,1,Gamma,1,1\n", "[", "chunk-0-dataset.json is not as ServeGen writes it"),
        (
            "0,1,1,Gamma,1,1\n",
            '{"0": {"input_tokens": "{1: x}", "output_tokens": "{1: 2}"}}',
            "length histogram cannot be read",
        ),
        ("0,90000,1,Gamma,1,1\n", "{}", "gives about 54,000,000 requests, too many to draw: choose a part with window"),
        ("0,0,0,,0,0\n", "{}", "has no requests in this window"),
        ("0,1,1,Gamma,-1,1\n", "{}", "line 1: shape -1 of Gamma is not above 0"),
        ("0,1,1,Weibull,nan,1\n", "{}", "line 1: shape nan of Weibull is not above 0"),
        ("nan,1,1,Gamma,1,1\n", "{}", "line 1: start nan is not a number of seconds"),
        ("0,1,nan,Gamma,1,1\n", "{}", "line 1: cv nan is negative or not finite"),
        ("600,1,1,Gamma,1,1\n0,1,1,Gamma,1,1\n", "{}", "line 2: start 0 is not one window after 600"),
        ("", "{}", "chunk-0-trace.csv is empty"),
        ("0,1,1,Gamma,1,1\n", '{"0": 7}', "chunk-0-dataset.json is not as ServeGen writes it"),
        (
            "0,1,1,Gamma,1,1\n",
            '{"0": {"input_tokens": "{-5: 1}", "output_tokens": "{1: 2}"}}',
            "negative or implausible",
        ),
        ("0,1,1,Gamma,1,1\n", '{"0": {"input_tokens": "{5e30: 1}", "output_tokens": "{1: 2}"}}', "negative or implaus"),
    ],
)
def test_a_broken_servegen_folder_is_named(tmp_path: Path, trace: str, dataset: str, says: str) -> None:
    write(tmp_path, "chunk-0-trace.csv", trace)
    write(tmp_path, "chunk-0-dataset.json", dataset)
    with pytest.raises(InputError, match=says):
        read_trace(tmp_path)


def test_an_archive_of_something_else_or_of_two_models(tmp_path: Path) -> None:
    for name, members in (("none.tgz", ["readme"]), ("two.tgz", ["a/chunk-0-trace.csv", "b/chunk-0-trace.csv"])):
        with tarfile.open(tmp_path / name, "w:gz") as archive:
            for member in members:
                info = tarfile.TarInfo(member)
                info.size = 20
                archive.addfile(info, io.BytesIO(b"0,1.0,1.0,Gamma,1,1\n"))
    with pytest.raises(InputError, match="the trace is empty"):
        read_trace(tmp_path / "none.tgz")
    with pytest.raises(InputError, match="holds several models"):
        read_trace(tmp_path / "two.tgz")


# Report and conversion


def test_check_counts_ties_unsorted_and_zero_rows_before_anything_is_changed(tmp_path: Path) -> None:
    text = "time,input_tokens,output_tokens,adapter,tenant\n0,4,4,a,x\n2,0,4,a,x\n2,4,4,b,y\n1,4,4,,y\n10,4,4,a,x\n"
    report = check(write(tmp_path, "t.csv", text))
    assert (report.rows_read, report.usable_rows, report.span_s, report.rate) == (5, 4, 10.0, 0.4)
    assert (report.ties, report.unsorted_rows, report.zero_token_rows, report.tenants) == (1, 1, 1, 2)
    gaps = np.array([1, 1, 0, 8])
    assert report.cv == pytest.approx(gaps.std() / gaps.mean())
    assert report.adapters is not None
    assert (report.adapters.distinct, report.adapters.base_share) == (2, 0.2)
    assert report.adapters.top == (("a", 0.75), ("b", 0.25))
    assert json.loads(json.dumps(report.as_dict()))["adapters"]["zipf"] == report.adapters.zipf
    assert dict(report.rows())["zero-token rows"] == "1"


@given(st.floats(0.2, 3), st.integers(3, 300))
def test_the_fitted_zipf_exponent_is_the_one_that_was_drawn(exponent: float, count: int) -> None:
    counts = np.arange(1, count + 1) ** -exponent * 1e9
    assert fit_zipf(counts) == pytest.approx(exponent, abs=1e-3)
    assert fit_zipf(counts[::-1]) == fit_zipf(counts)


def test_zipf_needs_two_adapters() -> None:
    assert fit_zipf(np.array([5])) is None
    assert fit_zipf(np.array([5, 5])) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_converted_trace_reads_back_equal(tmp_path: Path, suffix: str) -> None:
    for name, content in (("a.csv", AZURE), ("b.csv", BURST_3), ("c.csv", LOG), ("d.csv", GENTD), ("e.csv", VIDUR)):
        table = convert(write(tmp_path, name, content), tmp_path / f"out.{suffix}")
        again = read_trace(tmp_path / f"out.{suffix}", "generic")
        assert len(again) == len(table)
        for column in ("prompt", "output"):
            np.testing.assert_array_equal(getattr(again, column), getattr(table, column))
        if table.time_s is not None:
            np.testing.assert_allclose(again.time_s - again.time_s[0], table.time_s - table.time_s[0], atol=1e-6)  # type: ignore[index,operator]
        for column in ("adapter", "client", "tenant"):
            one, two = getattr(table, column), getattr(again, column)
            if one is not None:
                assert spelled(one) == spelled(two)
    assert len(list(tmp_path.glob("*out*"))) == 1


def spelled(labels: Labels) -> list[str | None]:
    return [None if code < 0 else labels.names[code] for code in labels.codes]


def test_convert_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", AZURE)
    with pytest.raises(InputError, match=r"should end in \.csv, \.jsonl, \.parquet"):
        convert(path, tmp_path / "out.txt")
    with pytest.raises(InputError, match="cannot be written"):
        convert(path, tmp_path / "nowhere" / "out.csv")


def test_formats_are_listed_once_each() -> None:
    names = [entry.name for entry in formats()]
    assert names[-1] == "generic" and len(set(names)) == len(names) == 9
    assert all(entry.description for entry in formats())
