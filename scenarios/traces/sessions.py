"""Sessions: which rows of a trace are later turns, and how long each waits for the end of the turn before it.

    row   session   time   delay          time_s   delay_s
    0     a         0                     0        NaN       begins at its own time
    1     b         1.5                   1.5      NaN
    2     a                2.0            NaN      2.0       begins 2 s after row 0 has ended
    3     a                               NaN      0.0       begins when row 2 has ended
    4     b         9.0    2.0            9.0      NaN       a row's own time overrides its delay

The turn before is the row before it of the same session, in the order of the file. Source of the layout: the
``mooncake_trace`` rows of AIPerf and Dynamo, where a first turn has a ``timestamp`` and a later one a ``delay`` in ms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loratory.errors import InputError
from loratory.scenarios.traces.table import Labels, TraceTable
from loratory.serving.workload import Floats, Ints


@dataclass(frozen=True, slots=True)
class Turns:
    """Times and delays of a trace's rows, seconds, as `TraceTable` has them, and which rows can be used."""

    time: Floats | None
    delay: Floats | None
    usable: npt.NDArray[np.bool_]
    notes: tuple[str, ...] = ()


def turns_of(time: Floats | None, delay: Floats | None, session: Labels, where: object = "trace") -> Turns:
    """What ``time`` and ``delay`` (s, NaN for an empty cell) mean for rows of these sessions.

    A row without a time of its own waits for the turn before it. If no row has a time, neither have first turns: the
    scenario's arrivals set when sessions begin. If some rows have times, a session without one is left out.
    Raises `InputError` for a session with waiting turns in which a time follows a delay or a later time.
    """
    before = previous_rows(session)
    n = len(before)
    timed = np.zeros(n, dtype=np.bool_) if time is None else ~np.isnan(time)
    later = before >= 0
    waits = later & ~timed
    usable = np.ones(n, dtype=np.bool_)
    if timed.any():
        usable = _reached(timed, before)
    notes = []
    if (lost := int((~usable).sum())) > 0:
        notes.append(f"rows left out (their session begins without a time): {lost}")
    given = np.full(n, np.nan) if delay is None else delay
    if (unused := int((~waits & usable & (given > 0)).sum())) > 0:
        notes.append(f"rows whose delay is not used (they have a time, or begin their session): {unused}")
    if not waits.any():
        return Turns(time, None, usable, tuple(notes))
    _refuse_tangled(time, session, before, waits, where)
    if (missing := int((waits & usable & np.isnan(given)).sum())) > 0:
        notes.append(f"later turns with neither time nor delay, which begin when the turn before ends: {missing}")
    return Turns(
        time if timed.any() else None,
        np.where(waits, np.nan_to_num(given), np.nan),
        usable,
        tuple(notes),
    )


def previous_rows(session: Labels) -> Ints:
    """For each row the position of the row before it in its session; -1 for the first, and without a session."""
    codes = session.codes
    order = np.argsort(codes, kind="stable")
    before = np.full(len(codes), -1, dtype=np.int64)
    same = (codes[order][1:] == codes[order][:-1]) & (codes[order][1:] >= 0)
    before[order[1:][same]] = order[:-1][same]
    return before


def earliest_s(table: TraceTable) -> Floats:
    """Each row's time; for a row that waits, its earliest possible time, as if no turn before it took any time, s."""
    assert table.time_s is not None
    if table.session is None or table.delay_s is None:
        return table.time_s
    earliest, delay = table.time_s.copy(), table.delay_s
    before = previous_rows(table.session)
    for row in np.flatnonzero(~np.isnan(delay)).tolist():
        earliest[row] = earliest[before[row]] + delay[row]
    return earliest


def without(table: TraceTable, keep: npt.NDArray[np.bool_], *notes: str) -> TraceTable:
    """The rows to keep; a turn that waited for a removed turn waits for the turn before that, or takes its time."""
    if table.session is None or table.delay_s is None or keep.all():
        return table.take(keep, *notes)
    time = np.full(len(table), np.nan) if table.time_s is None else table.time_s.copy()
    delay, before = table.delay_s.copy(), previous_rows(table.session)
    for row in np.flatnonzero(~np.isnan(delay)).tolist():
        last = before[row]
        if keep[last]:
            continue
        if np.isnan(delay[last]):
            time[row], delay[row] = time[last] + delay[row], np.nan
        else:
            delay[row] += delay[last]
            before[row] = before[last]
    mended = table.with_times(None if table.time_s is None else time, delay)
    return mended.take(keep, *notes)


def _reached(timed: npt.NDArray[np.bool_], before: Ints) -> npt.NDArray[np.bool_]:
    """Which rows have a time, or follow a row of their session that has one."""
    reached = timed.copy()
    for row in np.flatnonzero(~timed & (before >= 0)).tolist():
        reached[row] = reached[before[row]]
    return reached


def _refuse_tangled(
    time: Floats | None, session: Labels, before: Ints, waits: npt.NDArray[np.bool_], where: object
) -> None:
    """Refuses a session whose turns are not in one order: a time that follows a delay or a later time."""
    if time is None:
        return
    waiting = np.zeros(len(session.names) + 1, dtype=np.bool_)
    waiting[session.codes[waits]] = True
    timed = ~np.isnan(time) & (before >= 0) & waiting[session.codes]
    with np.errstate(invalid="ignore"):
        tangled = timed & (waits[before] | (time < time[before]))
    if tangled.any():
        name = session.names[session.codes[int(np.flatnonzero(tangled)[0])]]
        raise InputError(
            f"{where}: session {name!r} has a turn with a time after a turn with a delay or with a later time: "
            "give each turn after its first delay a delay, and order its rows by time"
        )
