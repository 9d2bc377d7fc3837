"""Sessions in traces: which rows are turns that wait for the turn before, and what becomes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.errors import InputError
from loratory.scenarios.traces import ReadOptions, TraceTable, clean, read_trace
from loratory.scenarios.traces.column_reader import labels_of
from loratory.scenarios.traces.columns import ColumnsSpec
from loratory.scenarios.traces.sessions import earliest_s, previous_rows, turns_of, without

NAN = float("nan")


def lines(folder: Path, *rows: dict[str, object]) -> Path:
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def turn(session: str, **more: object) -> dict[str, object]:
    return {"session_id": session, "input_length": 100, "output_length": 10, **more}


def same(found: object, wanted: list[float]) -> None:
    np.testing.assert_array_equal(found, wanted)  # type: ignore[arg-type]


def test_a_later_turn_has_a_delay_in_milliseconds_instead_of_a_time(tmp_path: Path) -> None:
    """The layout of AIPerf's and Dynamo's mooncake rows."""
    path = lines(tmp_path, turn("a", timestamp=1000), turn("a", delay=5000), turn("b", timestamp=2500), turn("a"))
    table = read_trace(path)
    assert table.format == "mooncake" and table.session is not None and table.session.names == ("a", "b")
    same(table.time_s, [0, NAN, 1.5, NAN])
    same(table.delay_s, [NAN, 5, NAN, 0])
    assert table.notes == ("later turns with neither time nor delay, which begin when the turn before ends: 1",)
    done = clean(table)
    same(done.time_s, [0, 1.5, NAN, NAN])
    same(earliest_s(done), [0, 1.5, 5, 5])


def test_sessions_without_any_time_leave_the_first_turns_to_arrivals(tmp_path: Path) -> None:
    path = lines(tmp_path, turn("a"), turn("a", delay=200), turn("b"), turn("b", delay=300))
    table = read_trace(path, "generic", ReadOptions(columns=ColumnsSpec(input="input_length"), time_unit="ms"))
    assert table.time_s is None
    same(table.delay_s, [NAN, 0.2, NAN, 0.3])


def test_a_time_comes_before_a_delay_and_a_session_without_a_start_is_left_out(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        turn("a", timestamp=0),
        turn("a", timestamp=9000, delay=20),
        turn("b", delay=5),
        turn("b", delay=5),
        turn("a", delay=10),
    )
    table = read_trace(path)
    same(table.time_s, [0, 9, NAN])
    same(table.delay_s, [NAN, NAN, 0.01])
    assert table.notes == (
        "rows left out (their session begins without a time): 2",
        "rows whose delay is not used (they have a time, or begin their session): 1",
    )


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([turn("a", timestamp=0), turn("a", delay=-1)], "line 2: delay .* is negative"),
        (
            [turn("a", timestamp=5), turn("a", timestamp=0), turn("a", delay=1)],
            "session 'a' has a turn with a time after",
        ),
        ([turn("a", timestamp=5), turn("a", delay=1), turn("a", timestamp=9)], "session 'a' has a turn with a time"),
        ([turn("a", timestamp=5, priority=1.5)], "line 1: priority .* is not a whole number"),
    ],
)
def test_delays_that_make_no_sense(tmp_path: Path, rows: list[dict[str, object]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_trace(lines(tmp_path, *rows))


def test_a_turn_that_is_left_out_hands_its_wait_on(tmp_path: Path) -> None:
    """What a user would have waited for stays: the delays of the rows left out, or the time of the first."""
    path = lines(
        tmp_path,
        turn("a", timestamp=0),
        turn("a", delay=1000) | {"output_length": 0},
        turn("a", delay=2000),
        turn("b", timestamp=500) | {"output_length": 0},
        turn("b", delay=4000),
    )
    done = clean(read_trace(path))
    same(done.time_s, [0, NAN, 4.5])
    same(done.delay_s, [NAN, 3, NAN])


@st.composite
def tables(draw: st.DrawFn) -> TraceTable:
    rows = draw(
        st.lists(
            st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 50)), st.integers(0, 9)),
            min_size=1,
            max_size=30,
        )
    )
    session = labels_of([name for name, _, _ in rows])
    waiting: set[str] = set()
    time = np.full(len(rows), NAN)
    for i, (name, own, _) in enumerate(rows):  # a session has times, never earlier ones, and from some turn on delays
        mine = [time[j] for j in range(i) if rows[j][0] == name]
        if own is None or name in waiting:
            waiting.update({name} if mine else ())
            time[i] = NAN if mine else 0.0
        else:
            time[i] = max([own, *mine])
    turns = turns_of(time, np.array([float(d) for _, _, d in rows]), session)
    n = len(rows)
    ones = np.ones(n, dtype=np.int64)
    whole = TraceTable("generic", n, turns.time, ones, ones, session=session, delay_s=turns.delay)
    return without(whole, turns.usable)


@given(tables(), st.data())
def test_leaving_turns_out_moves_no_other_turn(table: TraceTable, data: st.DataObject) -> None:
    if not len(table):
        return
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table))))
    less = without(table, keep)
    same(earliest_s(less), earliest_s(table)[keep].tolist())
    if less.delay_s is not None and less.session is not None:
        assert (previous_rows(less.session)[~np.isnan(less.delay_s)] >= 0).all()


@given(tables())
def test_rows_to_replay_are_in_the_earliest_order_and_turns_keep_theirs(table: TraceTable) -> None:
    if not len(table):
        return
    numbered = table.take(np.arange(len(table)))
    done = clean(numbered)
    assert (np.diff(earliest_s(done)) >= 0).all()
    assert sorted(earliest_s(done).tolist()) == sorted(earliest_s(table).tolist())


def test_chats_that_continue_another_are_its_session(tmp_path: Path) -> None:
    """Bailian: ``parent_chat_id`` names the turn before, which may be outside the file; -1 or nothing begins."""
    rows = [(1, -1), (2, 1), (3, 2), (4, 77), (5, 77), (6, None)]
    path = lines(
        tmp_path,
        *(
            {"chat_id": chat, "parent_chat_id": parent, "timestamp": chat, "input_length": 9, "output_length": 1}
            for chat, parent in rows
        ),
    )
    table = read_trace(path)
    assert table.format == "bailian" and table.session is not None and table.delay_s is None
    assert [table.session.names[code] for code in table.session.codes] == ["1", "1", "1", "77", "77", "6"]
