"""Times of traces: units by name, size or rate, dates in every form, and implausible ones that are reported."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from trace_rows import rows

from loratory.errors import InputError
from loratory.scenarios.traces import ReadOptions, check, read_trace
from loratory.scenarios.traces.times import unit_in_name

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


def test_the_second_of_two_columns_of_times_is_told(tmp_path: Path) -> None:
    report = check(rows(tmp_path, [0.0, 1.0, 2.0], arrived_at=3, adapter="a"))
    assert "time: column arrived_at is used, not timestamp: columns.time overrides that" in report.notes


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
