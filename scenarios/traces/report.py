"""TraceReport: what a trace holds, to look at before it is trusted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from loratory.errors import several, shortened
from loratory.scenarios.traces import servegen
from loratory.scenarios.traces.blocks import repeated_share
from loratory.scenarios.traces.clean import unsorted_rows, zero_rows
from loratory.scenarios.traces.format import ReadOptions
from loratory.scenarios.traces.known import format_of, read_trace
from loratory.scenarios.traces.table import Labels, TraceTable
from loratory.serving.workload import Floats, Ints

_IDLE_WINDOW_S = 600.0
_TOP = 10
_TIMED = "every turn at its own time"


@dataclass(frozen=True, slots=True)
class Spread:
    """A column of token counts in a few numbers."""

    min: float
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class RequestShares:
    """How requests spread over adapters (or clients, if the trace names no adapters: ``by``).

    ``zipf``: exponent fitted by maximum likelihood over the adapters seen, None below two. ``top``: the most used, with
    their share of the requests that have an adapter. ``base_share``: share of requests without an adapter.
    ``median_cv``: median over adapters of the CV of their own inter-arrival times; ``idle_windows``: share of
    ten-minute windows in which an adapter has no request, over all adapters. Both None without times.
    """

    by: str
    distinct: int
    base_share: float
    top: tuple[tuple[str, float], ...]
    zipf: float | None
    median_cv: float | None
    idle_windows: float | None


@dataclass(frozen=True, slots=True)
class TraceReport:
    """What `check` found. Times are seconds; ``cv`` is of the inter-arrival times, in time order.

    ``rows`` counts every row of the file; ``ties`` rows with the same time as the one before, ``unsorted_rows`` rows
    earlier than the one before, ``zero_token_rows`` rows without prompt or output tokens. ``columns``: pairs of a
    quantity and the column that holds it. ``time_unit``: of the times, None for dates.
    ``unread``: its other columns. ``waiting_turns``: rows that
    wait for the turn before instead of having a time. ``repeated_blocks``: share of the hash ids that an earlier row
    has as well. ``notes``: everything else.
    """

    path: str
    format: str
    rows_read: int
    usable_rows: int
    span_s: float | None
    rate: float | None
    cv: float | None
    ties: int | None
    unsorted_rows: int
    zero_token_rows: int
    input_tokens: Spread | None
    output_tokens: Spread | None
    adapters: RequestShares | None
    tenants: int | None
    notes: tuple[str, ...]
    columns: tuple[tuple[str, str], ...] = ()
    time_unit: str | None = None
    unread: tuple[str, ...] = ()
    sessions: int | None = None
    waiting_turns: int | None = None
    block_tokens: int | None = None
    repeated_blocks: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def rows(self) -> tuple[tuple[str, str], ...]:
        """(name, value) lines for the terminal."""
        lines = [
            ("format", self.format),
            *((("columns", ", ".join(f"{key}: {name}" for key, name in self.columns)),) if self.columns else ()),
            *((("not read", several(map(_short, self.unread), 8)),) if self.unread else ()),
            *((("time unit", self.time_unit),) if self.time_unit is not None else ()),
            ("rows", f"{self.rows_read:,} ({self.usable_rows:,} usable)"),
            ("span", "no times" if self.span_s is None else f"{self.span_s:,.3f} s ({self.span_s / 3600:.2f} h)"),
            (
                "rate",
                "-"
                if self.rate is None
                else f"{self.rate:.4g} {'rows with a time' if self.waiting_turns else 'requests'}/s",
            ),
            ("CV of inter-arrivals", "-" if self.cv is None else f"{self.cv:.3f}"),
            ("ties", "-" if self.ties is None else f"{self.ties:,}"),
            ("unsorted rows", f"{self.unsorted_rows:,}"),
            ("zero-token rows", f"{self.zero_token_rows:,}"),
            ("input tokens", _spread_text(self.input_tokens)),
            ("output tokens", _spread_text(self.output_tokens)),
        ]
        if self.adapters is None:
            lines.append(("adapters", "none named: the scenario's popularity chooses"))
        else:
            lines.extend(_popularity_lines(self.adapters))
        if self.tenants is not None:
            lines.append(("tenants", f"{self.tenants:,}"))
        if self.sessions is not None:
            waits = f"{self.waiting_turns:,} turns wait for the turn before" if self.waiting_turns else _TIMED
            lines.append(("sessions", f"{self.sessions:,}, {waits}"))
        if self.block_tokens is not None:
            lines.append(
                (
                    "prefix blocks",
                    f"{self.block_tokens} tokens each, {self.repeated_blocks or 0:.1%} come more than once",
                )
            )
        return (*lines, *(("note", note) for note in self.notes))


def check(path: Path | str, format: str | None = None, options: ReadOptions | None = None) -> TraceReport:
    """Report on a trace. Nothing is dropped or sorted first, so the report shows what `clean` would do.

    A ServeGen folder holds fits, from which requests are drawn later; its report describes the fits. Raises
    `InputError` for a trace that is missing, empty or broken.
    """
    options = replace(options or ReadOptions(), blocks=True)
    chosen = format_of(Path(path), format, options)
    if chosen.name == "servegen":
        options.refuse_columns(Path(path), "servegen", "which has fits instead of rows")
        return _check_fits(Path(path))
    table = read_trace(path, chosen.name, options)
    zero = zero_rows(table)
    span = rate = cv = ties = None
    if table.time_s is not None:
        ordered = np.sort(table.time_s[~np.isnan(table.time_s)])
        span = float(ordered[-1] - ordered[0])
        rate = (len(ordered) - 1) / span if span > 0 else None
        cv = _cv(ordered)
        ties = int((np.diff(ordered) == 0).sum())
    labels = table.adapter or table.client
    return TraceReport(
        path=str(path),
        format=table.format,
        rows_read=table.rows_read,
        usable_rows=len(table) - int(zero.sum()),
        span_s=span,
        rate=rate,
        cv=cv,
        ties=ties,
        unsorted_rows=unsorted_rows(table),
        zero_token_rows=int(zero.sum()),
        input_tokens=_spread(table.prompt),
        output_tokens=_spread(table.output),
        adapters=None if labels is None else _popularity(table, labels),
        tenants=None if table.tenant is None else len(table.tenant.names),
        notes=table.notes,
        columns=table.columns,
        time_unit=table.time_unit,
        unread=table.unread,
        sessions=None if table.session is None else len(table.session.names),
        waiting_turns=None if table.delay_s is None else int((~np.isnan(table.delay_s)).sum()),
        block_tokens=None if table.blocks is None else table.blocks.tokens,
        repeated_blocks=None if table.blocks is None else round(repeated_share(table.blocks), 6),
    )


def fit_zipf(counts: Ints | Floats) -> float | None:
    """Zipf exponent of the most likely ranking by ``counts`` (any order); None below two adapters.

    Solves sum(p_k log k) = mean(log rank) by bisection between 0 and 10; the likelihood is convex in the exponent.
    """
    ordered = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
    ordered = ordered[ordered > 0]
    if len(ordered) < 2:
        return None
    logs = np.log(np.arange(1, len(ordered) + 1))
    target = float((ordered * logs).sum() / ordered.sum())
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.exp(-middle * logs)
        if float((weights * logs).sum() / weights.sum()) > target:
            low = middle
        else:
            high = middle
    return round((low + high) / 2, 4)


def _check_fits(path: Path) -> TraceReport:
    clients = servegen.read_clients(path)
    expected = np.array([servegen.expected_requests((client,), None, 1.0) for client in clients])
    total = float(expected.sum())
    start = min(client.windows[0].start_s for client in clients)
    end = max(client.windows[-1].start_s + client.window_s() for client in clients)
    busy = [window for client in clients for window in client.windows if window.rate > 0]
    windows = sum(len(client.windows) for client in clients)
    order = np.argsort(-expected, kind="stable")
    with_lengths = sum(
        1 for client in clients if any(len(t.get("input_tokens", "")) > 2 for t in client.lengths.values())
    )
    return TraceReport(
        path=str(path),
        format="servegen",
        rows_read=windows,
        usable_rows=len(busy),
        span_s=end - start,
        rate=total / (end - start),
        cv=None,
        ties=None,
        unsorted_rows=0,
        zero_token_rows=0,
        input_tokens=None,
        output_tokens=None,
        adapters=RequestShares(
            by="client",
            distinct=int((expected > 0).sum()),
            base_share=0.0,
            top=tuple((clients[i].name, round(float(expected[i]) / max(total, 1.0), 6)) for i in order[:_TOP]),
            zipf=fit_zipf(expected),
            median_cv=float(np.median([window.cv for window in busy])) if busy else None,
            idle_windows=1.0 - len(busy) / windows,
        ),
        tenants=None,
        notes=(
            f"fits of {len(clients)} clients, which give about {total:,.0f} requests; rows are their windows",
            f"{with_lengths} of {len(clients)} clients have lengths of their own",
        ),
    )


def _popularity(table: TraceTable, labels: Labels) -> RequestShares:
    counts = np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.names))
    total = int(counts.sum())
    order = np.argsort(-counts, kind="stable")[:_TOP]
    median_cv = idle = None
    if table.time_s is not None and len(labels.names):
        timed = ~np.isnan(table.time_s)
        median_cv, idle = _burstiness(table.time_s[timed], labels.take(timed))
    return RequestShares(
        by="adapter" if table.adapter is not None else "client",
        distinct=int((counts > 0).sum()),
        base_share=round(1.0 - total / len(labels.codes), 6),
        top=tuple((labels.names[i], round(int(counts[i]) / max(total, 1), 6)) for i in order),
        zipf=fit_zipf(counts),
        median_cv=median_cv,
        idle_windows=idle,
    )


def _burstiness(time: Floats, labels: Labels) -> tuple[float | None, float]:
    order = np.lexsort((time, labels.codes))
    codes, times = labels.codes[order], time[order]
    edges = np.searchsorted(codes, np.arange(len(labels.names) + 1))
    cvs = [_cv(times[a:b]) for a, b in pairwise(edges.tolist())]
    known = [cv for cv in cvs if cv is not None]
    windows = int(time.max() // _IDLE_WINDOW_S) + 1
    has = codes >= 0
    busy = len(np.unique(codes[has] * windows + (times[has] // _IDLE_WINDOW_S).astype(np.int64)))
    median = round(float(np.median(known)), 4) if known else None
    return median, round(1.0 - busy / (windows * len(labels.names)), 4)


def _cv(times: Floats) -> float | None:
    """CV of the gaps of ordered times; None below three times or when all are equal."""
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean()) if len(gaps) > 1 and gaps.mean() > 0 else None


def _spread(values: Ints | None) -> Spread | None:
    if values is None or not len(values):
        return None
    p50, p90, p99 = (float(p) for p in np.percentile(values, (50, 90, 99)))
    return Spread(float(values.min()), float(values.mean()), p50, p90, p99, float(values.max()))


def _short(name: str) -> str:
    return shortened(name, 40)


def _spread_text(spread: Spread | None) -> str:
    if spread is None:
        return "none: the scenario's lengths are used"
    return (
        f"mean {spread.mean:,.1f}, P50 {spread.p50:,.0f}, P90 {spread.p90:,.0f}, P99 {spread.p99:,.0f}, "
        f"from {spread.min:,.0f} to {spread.max:,.0f}"
    )


def _popularity_lines(found: RequestShares) -> list[tuple[str, str]]:
    zipf = "" if found.zipf is None else f", Zipf exponent {found.zipf:.2f}"
    lines = [(f"{found.by}s", f"{found.distinct:,}{zipf}, {found.base_share:.1%} of requests without one")]
    lines.append((f"top {found.by}s", ", ".join(f"{name} {share:.1%}" for name, share in found.top[:5])))
    if found.idle_windows is not None:
        median = "-" if found.median_cv is None else f"{found.median_cv:.2f}"
        lines.append(("burstiness", f"median CV {median}, idle in {found.idle_windows:.0%} of ten-minute windows"))
    return lines
