"""TraceTimes: a column of times as seconds, in the unit that was asked for, or that the column or its values show.

A note reports a unit that was guessed, and a rate or a span that is implausible for a service.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from loratory.errors import InputError
from loratory.scenarios.traces.column_reader import ColumnReader
from loratory.serving.workload import Floats

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_NAMED = re.compile(
    r"(?:^|[_\W])"
    r"(?:(?P<s>s|secs?|seconds?)|(?P<ms>ms|msecs?|millis|milliseconds?)"
    r"|(?P<us>us|usecs?|micros|microseconds?)|(?P<ns>ns|nsecs?|nanos|nanoseconds?))\W*$"
)
_EPOCH_S = (9.4e8, 2.6e9)  # from 1999 to 2052, seconds since 1970
LATEST_S = 1e10
_FAST, _SLOW = 200.0, 0.012  # requests/s beyond which another unit is tried if none is given
_FAST_WHOLE = 500.0  # the same for whole numbers, which are seldom seconds
_DOUBT_FAST, _DOUBT_SLOW = 200.0, 0.02
_UNTOLD = (_DOUBT_FAST, _DOUBT_SLOW)  # requests/s beyond which a guessed unit is doubted
_BY_FORMAT = (1000.0, 0.005)  # a unit from the format alone: BurstGPT's quiet hours have 0.02/s
_TOLD = (1000.0, 1e-4)  # and a unit from the file or its reader
_LONG_S = 1000 * 86_400.0
_ENOUGH, _SOME = 10, 5  # rows needed for a rate, and for an implausibly high one


@dataclass(frozen=True, slots=True)
class TraceTimes:
    """Times in seconds (NaN for an empty cell), and their unit; None if they are dates."""

    time: Floats
    unit: str | None
    notes: tuple[str, ...] = ()


def unit_in_name(column: str) -> str | None:
    """The unit a column's name ends in: arrival_ms, time (us), startNs; None if it has none."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column)
    found = _NAMED.search(spaced.lower())
    return None if found is None else next(unit for unit, text in found.groupdict().items() if text)


def read_times(reader: ColumnReader, column: str, asked: str | None, usual: str, guess: bool) -> TraceTimes:
    """The times in ``column``: in the unit ``asked`` for, else in that of its name or its values, else ``usual``.

    Numbers that are seconds, ms, us or ns since 1970 are recognised by their size. With ``guess``, a unit that gives a
    plausible rate replaces one that does not. Raises `InputError` for a unit asked of dates, and for times that are
    implausible in every unit.
    """
    if reader.dated(column):
        if asked is not None:
            raise InputError(
                f"{reader.columns.path}: time_unit does not apply, because {column} holds dates: remove it"
            )
        time, guessed = reader.dates(column)
        with np.errstate(invalid="ignore"):
            reader.refuse(time > LATEST_S, column, "is 300 years after the earliest")
        return TraceTimes(time, None, (*guessed, *_doubts(time, None, _TOLD)))
    raw = reader.numbers(column)
    unit, notes = (asked, []) if asked is not None else _unit(reader, column, raw, usual, guess)
    told = asked is not None or bool(notes) or unit_in_name(column) is not None
    time = raw * UNITS[unit]
    with np.errstate(invalid="ignore"):
        reader.refuse(
            np.abs(time) > LATEST_S, column, f"is beyond 300 years in {_WORDS[unit]} (time_unit may be wrong)"
        )
    return TraceTimes(time, unit, (*notes, *_doubts(time, unit, _TOLD if told else _UNTOLD if guess else _BY_FORMAT)))


def _unit(reader: ColumnReader, column: str, raw: Floats, usual: str, guess: bool) -> tuple[str, list[str]]:
    named, epoch = unit_in_name(column), _epoch(raw)
    if named is not None:
        if epoch is not None and epoch != named:
            raise InputError(
                f"{reader.columns.path}: {column} is in {_WORDS[named]} by its name, but in {_WORDS[epoch]} since 1970 "
                f"by its numbers: set time_unit to {named} or {epoch}"
            )
        return named, []
    if epoch is not None:
        told = f"{column} is read as {_WORDS[epoch]} since 1970, by the size of its numbers: time_unit overrides that"
        return epoch, [] if epoch == usual else [told]
    rate = _rate(raw * UNITS[usual])
    if not guess or rate is None:
        return usual, []
    whole = bool((raw[~np.isnan(raw)] % 1 == 0).all())
    others = list(UNITS)[: list(UNITS).index(usual)][::-1] if rate > (_FAST_WHOLE if whole else _FAST) else []
    if rate < _SLOW and whole:
        others = list(UNITS)[list(UNITS).index(usual) + 1 :]
    for unit in others:
        better = _rate(raw * UNITS[unit])
        if better is not None and _DOUBT_SLOW <= better <= _DOUBT_FAST:
            return unit, [
                f"{column} is read as {_WORDS[unit]}, {_figure(better)} requests/s; as {_WORDS[usual]}, as usual, "
                f"they would be {_figure(rate)}: time_unit overrides that"
            ]
    return usual, []


def _epoch(raw: Floats) -> str | None:
    """The unit in which every number is a date of our time, counted from 1970; None for other numbers."""
    known = raw[~np.isnan(raw)]
    if not len(known):
        return None
    low, high = float(known.min()), float(known.max())
    return next((u for u, s in UNITS.items() if low * s >= _EPOCH_S[0] and high * s <= _EPOCH_S[1]), None)


def _rate(time: Floats, least: int = _ENOUGH) -> float | None:
    """Requests a second; None for fewer rows than ``least``, or without a span."""
    known = time[~np.isnan(time)]
    span = float(known.max() - known.min()) if len(known) >= least else 0.0
    return (len(known) - 1) / span if span > 0 else None


def _doubts(time: Floats, unit: str | None, bounds: tuple[float, float]) -> tuple[str, ...]:
    """A note on a rate beyond ``bounds`` (highest, lowest, requests/s), or an implausible span."""
    rate = _rate(time, 2)
    if rate is None:
        rows = int((~np.isnan(time)).sum())
        return (f"all {rows} rows have one time: they arrive at once",) if rows >= _ENOUGH else ()
    span = float(np.nanmax(time) - np.nanmin(time))
    count = int((~np.isnan(time)).sum())
    fast = count >= _SOME and rate > bounds[0]
    slow = span > _LONG_S or (count >= _ENOUGH and rate < bounds[1])
    if not fast and not slow:
        return ()
    length = f"{span / 86_400:,.0f} days" if span > 172_800 else f"{span:,.3g} s"
    text = f"arrives at {_figure(rate)} requests/s over {length}, which is unusual"
    units = list(UNITS)
    at = len(units) if unit is None else units.index(unit)
    others = units[:at][::-1] if fast else units[at + 1 :]
    if unit is None or not others:
        return (f"{text}: check the times",)
    rates = {other: rate * UNITS[unit] / UNITS[other] if count >= _ENOUGH else 0.0 for other in others}
    likely = next((other for other in others if _BY_FORMAT[1] <= rates[other] <= _DOUBT_FAST), others[0])
    return (f"{text}: if the times are in {_WORDS[likely]}, set time_unit: {likely}",)


def _figure(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.3g}"
