"""parse_dates: texts as dates, in the one notation that fits a whole column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loratory.scenarios.traces.lazy_pandas import pd

DATED = r"\d[-/]\d|\d\.\d+\.\d|\d{8}T\d|\d[ /-][A-Za-z]{3}[ /-]\d{4}"
"""What a date contains and a number does not."""

_MONTH_FIRST = ("%m/%d/%Y", "%m-%d-%Y", "%m/%d/%y")
_DAY_FIRST = ("%d/%m/%Y", "%d-%m-%Y", "%d/%m/%y")
_PLAIN = ("%d.%m.%Y", "%d/%b/%Y", "%d-%b-%Y", "%d %b %Y", "%a, %d %b %Y", "%a %d %b %Y")
_TIMES = (" %H:%M:%S", ":%H:%M:%S", "T%H:%M:%S", " %I:%M:%S %p", " %H:%M", " %I:%M %p", ", %H:%M:%S", ", %I:%M:%S %p")
_ZONES = ("", "%z", " %z")


def parse_dates(text: pd.Series[Any], column: str) -> tuple[pd.Series[Any], tuple[str, ...]]:
    """The dates in ``text`` (blank cells missing), NaT for a cell that is not a date, and notes on what was guessed.

    ISO 8601 is tried first. Otherwise the column is read in another common form that fits all its cells: dates with
    slashes month first or day first, whichever fits; if both fit, the one that gives the shorter span.
    """
    spelled = text.str.replace(r"\s*(?:UTC|GMT)$", "Z", regex=True)
    iso = pd.to_datetime(spelled, utc=True, format="ISO8601", errors="coerce")
    there = text.notna()
    if not there.any() or not iso[there].isna().any():
        return iso, ()
    fraction = spelled.str.extract(r":\d\d(\.\d+)", expand=False).astype("Float64").fillna(0.0)
    whole = spelled.str.replace(r"(:\d\d)\.\d+", r"\1", regex=True)
    read = {}
    best = iso
    for order, days in (("month first", _MONTH_FIRST), ("day first", _DAY_FIRST), ("", _PLAIN)):
        for found in _forms(whole[there], days):
            dates = found.reindex(text.index) + pd.to_timedelta(fraction, unit="s")
            if found.notna().all():
                read[order] = dates
                break
            best = max(best, dates, key=lambda tried: int(tried.notna().sum()))
    if not read:
        return best, ()
    order, dates = min(read.items(), key=lambda item: item[1].max() - item[1].min())
    if len(read) == 1:
        return dates, ()
    if len({(found - found.min()).max() for found in read.values()}) == 1:
        return dates, ()
    return dates, (
        f"{column} is read {order}, which gives the shorter span: write dates as 2023-11-16 to avoid the ambiguity",
    )


def _forms(text: pd.Series[Any], days: tuple[str, ...]) -> Iterator[pd.Series[Any]]:
    """``text`` in each form that fits its first cell, NaT for a cell in another form."""
    first = text.iloc[:1]
    for form in (day + time + zone for day in days for time in _TIMES for zone in _ZONES):
        if pd.to_datetime(first, utc=True, format=form, errors="coerce").notna().all():
            yield pd.to_datetime(text, utc=True, format=form, errors="coerce")
