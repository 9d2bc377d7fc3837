"""Policy tables: the tables of a report with a row for each policy, from its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loratory.reports.fleet_words import cost_head, cost_note
from loratory.reports.number_text import count, listed, percent, seconds
from loratory.reports.summary import over_seeds
from loratory.reports.target_rows import target_rows


@dataclass(frozen=True, slots=True)
class TableCell:
    """A table cell: text, half the 95 % interval over seeds where there is one, and where its text leads to."""

    text: str
    spread: str = ""
    href: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a report; the first cell of a row names it."""

    caption: str
    heads: list[str]
    rows: list[list[TableCell]]


Form = Callable[[float | None], str]
_COLUMNS: dict[str, list[tuple[str, str, Form]]] = {
    "Latency": [
        ("TTFT mean", "ttft_s.mean", seconds),
        ("TTFT p50", "ttft_s.p50", seconds),
        ("TTFT p99", "ttft_s.p99", seconds),
        ("TPOT p50", "tpot_s.p50", seconds),
        ("TPOT p99", "tpot_s.p99", seconds),
        ("ITL p99", "itl_s.p99", seconds),
        ("end-to-end mean", "e2e_s.mean", seconds),
        ("end-to-end p99", "e2e_s.p99", seconds),
        ("queue time p99", "queue_s.p99", seconds),
    ],
    "Outcome": [
        ("submitted", "requests.submitted", count),
        ("completed", "requests.completed", count),
        ("rejected", "requests.rejected", count),
        ("aborted", "requests.aborted", count),
        ("failed", "requests.failed", count),
        ("never served", "never_served.count", count),
        ("truncated", "truncated.count", count),
        ("SLO attainment", "slo.attainment", percent),
    ],
    "Throughput": [
        ("requests/s", "throughput.requests_per_s", count),
        ("output tokens/s", "throughput.output_tokens_per_s", count),
        ("per GPU", "throughput.output_tokens_per_s_per_gpu", count),
        ("of the ceiling", "throughput.ceiling_share", percent),
        ("mean batch", "engine.mean_batch", count),
        ("steps running", "engine.busy_share", percent),
        ("preemptions", "engine.preemptions", count),
        ("busiest replica", "engine.imbalance", count),
        ("time waiting", "waiting.share", percent),
    ],
    "Fleet": [
        ("open: mean", "fleet.open.mean", count),
        ("open: fewest", "fleet.open.min", count),
        ("open: most", "fleet.open.max", count),
        ("GPU hours", "fleet.gpu_hours", count),
        ("cost", "fleet.cost", count),
        ("failures", "fleet.failures", count),
        ("requests sent again", "fleet.resent", count),
        ("homes of an adapter", "fleet.homes_mean", count),
        ("homes moved", "fleet.homes_moved", count),
    ],
    "Adapters with new versions": [
        ("requests to them", "fleet.rolled.requests_new", count),
        ("loads of them", "fleet.rolled.loads", count),
        ("from disk or farther", "fleet.rolled.cold_loads", count),
        ("requests that missed", "fleet.rolled.misses", count),
        ("TTFT p99 before", "fleet.rolled.ttft_p99_before_s", seconds),
        ("during", "fleet.rolled.ttft_p99_during_s", seconds),
        ("after", "fleet.rolled.ttft_p99_after_s", seconds),
        ("settled at", "fleet.rolled.settled_s", seconds),
        ("old versions gone at", "fleet.rolled.freed_s", seconds),
    ],
    "Adapters and fairness": [
        ("hit rate", "adapters.hit_rate", percent),
        ("loads", "adapters.loads", count),
        ("evictions", "adapters.evictions", count),
        ("loading", "adapters.loading_share", percent),
        ("mean wait for a load", "adapters.load_wait_s", seconds),
        ("Jain's index", "fairness.jain", count),
        ("largest service gap", "fairness.max_service_gap", count),
        ("promised bound", "fairness.bound", count),
    ],
}

_NOTES: Mapping[str, str] = {
    "Outcome": " (completed, rejected, aborted and failed are all that were submitted; never served and truncated are "
    "counted among them)",
}
"""What the caption of a table adds."""

_USES = (("slots", "slots"), ("KV blocks", "kv_blocks"), ("requests", "seqs"))
_MARKS = (("median", "p50"), ("most", "max"), ("limit", "limit"))


def policy_tables(runs: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables with a row for each policy: what it measured, means over its seeds."""
    policies = over_seeds(runs)
    tables = []
    for caption, columns in _COLUMNS.items():
        alone = {"engine.imbalance"} if runs[0]["replicas"] == 1 else set()
        used = [c for c in columns if c[1] not in alone and any(c[1] in policy["metrics"] for policy in policies)]
        if not used:
            continue
        rows = [
            [TableCell(policy["policy"]), *(cell(policy["metrics"].get(c[1]), c[2]) for c in used)]
            for policy in policies
        ]
        note = cost_note(runs) if caption == "Fleet" else _NOTES.get(caption, "")
        heads = [cost_head(runs) if column[1] == "fleet.cost" else column[0] for column in used]
        tables.append(Table(f"{caption}, per policy{note}", ["policy", *heads], rows))
    tables.append(_in_use(runs, policies))
    targets = target_rows(runs)
    if targets:
        heads = ["target", *(cell.policy for cell in targets[0].cells)]
        rows = [[TableCell(row.words), *(TableCell(cell.text) for cell in row.cells)] for row in targets]
        tables.insert(0, Table("SLO targets, per policy", heads, rows))
    return tables


def _in_use(runs: Sequence[Mapping[str, Any]], policies: Sequence[Mapping[str, Any]]) -> Table:
    """What was in use on a replica; a row for each kind of replica in a fleet whose kinds have other limits."""
    kinds = list(dict.fromkeys(k for _, name in _USES for k in runs[0]["usage"][name].get("kinds", {})))
    rows = []
    for policy in policies:
        for kind in kinds or [""]:
            cells = []
            for _, name in _USES:
                own = f".kinds.{kind}" if "kinds" in runs[0]["usage"][name] else ""
                cells += [cell(policy["metrics"].get(f"usage.{name}{own}.{mark}"), count) for _, mark in _MARKS]
            rows.append([TableCell(policy["policy"]), *([TableCell(kind)] if kinds else []), *cells])
    heads = ["policy", *(["kind"] if kinds else []), *(f"{use}: {mark}" for use, _ in _USES for mark, _ in _MARKS)]
    alike = [use for use, name in _USES if "kinds" not in runs[0]["usage"][name]]
    note = f" and kind{f' ({listed(alike)}: of all kinds together)' if alike else ''}" if kinds else ""
    return Table(f"In use on a replica, per policy{note}", heads, rows)


def cell(metric: Mapping[str, Any] | None, form: Form) -> TableCell:
    """The mean of a metric as ``form`` writes it, with half its interval."""
    if metric is None:
        return TableCell("–")
    half = None if metric["high"] is None else metric["high"] - metric["mean"]
    return TableCell(form(metric["mean"]), "" if not half else form(half))


def or_dash(form: Form, value: float | None) -> str:
    return "–" if value is None else form(value)
