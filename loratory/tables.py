"""Tables: what the command line shows of summaries, policies and traces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from loratory.specs import Description

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("requests/s", "throughput.requests_per_s", "{:.2f}"),
    ("TTFT p50 s", "ttft_s.p50", "{:.3f}"),
    ("TTFT p99 s", "ttft_s.p99", "{:.3f}"),
    ("TPOT p99 ms", "tpot_s.p99", "{:.1f}"),
    ("E2E mean s", "e2e_s.mean", "{:.2f}"),
    ("hit rate", "adapters.hit_rate", "{:.1%}"),
    ("loads", "adapters.loads", "{:.0f}"),
    ("Jain", "fairness.jain", "{:.3f}"),
    ("SLO attained", "slo.attainment", "{:.1%}"),
)
_SCALE = {"tpot_s.p99": 1000.0}


def summary_table(summary: Mapping[str, Any]) -> Table:
    """One row a policy: means over the seeds, with the 95 % interval of TTFT p99 where there are several."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    table.add_column("completed", justify="right")
    for head, _, _ in COLUMNS:
        table.add_column(head, justify="right")
    for policy in summary["policies"]:
        runs = [run for run in summary["runs"] if run["policy"] == policy["policy"]]
        done = sum(run["requests"]["completed"] for run in runs)
        sent = sum(run["requests"]["submitted"] for run in runs)
        cells = [_cell(policy["metrics"].get(path), path, form) for _, path, form in COLUMNS]
        table.add_row(policy["policy"], f"{done} of {sent}", *cells)
    return table


def _cell(metric: Mapping[str, Any] | None, path: str, form: str) -> str:
    if metric is None or metric.get("mean") is None:
        return "-"
    return form.format(metric["mean"] * _SCALE.get(path, 1.0))


def policies_table(descriptions: list[Description]) -> Table:
    """One row a policy: name, what it does, parameters with defaults, source."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    table.add_column("what it does")
    table.add_column("parameters")
    table.add_column("source", style="dim")
    common = {"evict", "prefetch"}
    for d in descriptions:
        own = [f"{p.name}={_default(p.default)}" for p in d.parameters if p.name not in common]
        table.add_row(d.name, d.summary, ", ".join(own) or "-", d.source)
    return table


def parameters_table(description: Description) -> Table:
    """One row a parameter."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("parameter", "type", "default", "meaning"):
        table.add_column(head)
    for p in description.parameters:
        table.add_row(p.name, p.type, _default(p.default), p.description)
    return table


def _default(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
