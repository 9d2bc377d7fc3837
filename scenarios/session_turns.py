"""Session turns: the rows of a trace in which later turns of a session wait for the turn before, as they are due."""

from __future__ import annotations

import numpy as np

from loratory.errors import InputError
from loratory.scenarios.rng import Draws
from loratory.scenarios.traces.sessions import earliest_s, previous_rows
from loratory.scenarios.traces.table import TraceTable
from loratory.scenarios.workload_spec import WorkloadSpec
from loratory.serving.workload import Floats, Ints


def in_turn(workload: WorkloadSpec, table: TraceTable, draws: Draws) -> tuple[TraceTable, Floats, Ints, Floats]:
    """The rows to replay, their earliest arrivals (s), the row that each follows (-1: none), and the delay after that.

    ``workload.arrivals``, if given, set when sessions begin; in a closed loop sessions keep the trace's order.
    Raises `InputError` if nothing sets when they begin.
    """
    arrivals = workload.arrivals
    closed = arrivals is not None and arrivals.closed_loop is not None
    if arrivals is not None:
        table = _begun(table, arrivals.draw(draws.rng("arrivals"), *_how_many(workload, table)))
    elif table.time_s is None:
        raise InputError(
            f"{workload.trace}: its sessions have no times: add workload.arrivals, for example {{poisson: 10}}, which "
            "sets when sessions begin"
        )
    if not closed:
        table = table.take(np.argsort(earliest_s(table), kind="stable"))
    limit = workload.requests
    if limit is not None and limit < len(table):
        table = table.take(np.arange(limit), f"rows left out (after the first {limit}): {len(table) - limit}")
    n = len(table)
    after, delay = np.full(n, -1, dtype=np.int64), np.zeros(n)
    arrival = np.zeros(n) if closed else earliest_s(table)
    if table.session is None or table.delay_s is None:
        return table, arrival, after, delay
    waits = ~np.isnan(table.delay_s)
    after[waits] = previous_rows(table.session)[waits]
    delay[waits] = table.delay_s[waits]
    sessions = len(np.unique(table.session.codes[waits]))
    note = f"sessions with turns that wait: {sessions}; turns sent a delay after the turn before ended: {waits.sum()}"
    return table.noted(note), arrival, after, delay


def recorded_note(workload: WorkloadSpec, table: TraceTable) -> str | None:
    """A note on sessions whose rows all have times; None if no session has two rows."""
    if table.session is None:
        return None
    codes = table.session.codes[table.session.codes >= 0]
    sessions = len(np.unique(codes))
    if sessions == len(codes):
        return None
    if workload.arrivals is not None:
        return f"sessions: {sessions}; workload.arrivals give every turn a time, like every row"
    return f"sessions: {sessions}; turns keep their recorded times"


def _how_many(workload: WorkloadSpec, table: TraceTable) -> tuple[int | None, float | None]:
    """How many sessions begin, or until when: the arguments for drawing arrivals."""
    if workload.duration_s is not None:
        return None, workload.duration_s
    assert table.delay_s is not None
    return int(np.isnan(table.delay_s).sum()), None


def _begun(table: TraceTable, arrival: Floats) -> TraceTable:
    """The sessions that begin at these seconds, in the table's order; sessions without one are left out."""
    assert table.delay_s is not None and table.session is not None
    starts, before = np.isnan(table.delay_s), previous_rows(table.session)
    session = np.cumsum(starts) - 1
    for row in np.flatnonzero(~starts).tolist():
        session[row] = session[before[row]]
    begin = session < len(arrival)
    time = np.where(starts, np.append(arrival, np.nan)[np.minimum(session, len(arrival))], np.nan)
    table = table.with_times(time, table.delay_s)
    if begin.all():
        return table
    return table.take(begin, f"rows left out (their sessions begin after workload.duration_s): {int((~begin).sum())}")
