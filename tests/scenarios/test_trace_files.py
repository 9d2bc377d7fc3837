"""Files of traces: lines, packed files, broken and hostile ones, and the conversion to the generic format."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from trace_rows import CASES, rows

from loratory.errors import InputError
from loratory.scenarios.traces import ReadOptions, check, convert, read_trace
from loratory.scenarios.traces.columns import ColumnsSpec


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
        ("t.jsonl", '{"timestamp": 0}\n{"timestamp"\n', "line 2 is not JSON"),
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
