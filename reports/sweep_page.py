"""Sweep page: report.html over all variants of a sweep: verdicts, one table, figures against the swept keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from loratory.errors import several
from loratory.reports.html import page
from loratory.reports.number_text import count, percent, plural, seconds
from loratory.reports.policy_tables import Table, TableCell, cell
from loratory.reports.sweep import (
    policies_of,
    rows_of,
    shared_notes,
    short_keys,
    slo_text,
    value_text,
)
from loratory.reports.sweep_figures import sweep_figures
from loratory.reports.verdict_types import Verdict

_COLUMNS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("within every limit", "slo.attainment", percent),
    ("TTFT p99", "ttft_s.p99", seconds),
    ("TPOT p99", "tpot_s.p99", seconds),
    ("output tokens/s", "throughput.output_tokens_per_s", count),
    ("of the ceiling", "throughput.ceiling_share", percent),
    ("TTFT p50", "ttft_s.p50", seconds),
    ("end-to-end mean", "e2e_s.mean", seconds),
    ("time waiting", "waiting.share", percent),
    ("hit rate", "adapters.hit_rate", percent),
    ("loads", "adapters.loads", count),
    ("Jain's index", "fairness.jain", count),
    ("requests/s", "throughput.requests_per_s", count),
    ("completed", "requests.completed", count),
    ("busiest replica", "engine.imbalance", count),
    ("GPU hours", "fleet.gpu_hours", count),
    ("cost", "fleet.cost", count),
)


def sweep_page(title: str, description: str, summary: Mapping[str, Any]) -> str:
    """The page of a sweep's summary. Every text from outside is escaped; the same runs give the same bytes."""
    swept = {key: ", ".join(map(value_text, values)) for key, values in summary["sweep"].items()}
    told = [*(Verdict(**verdict) for verdict in summary["verdicts"]), *_left_out(summary), *_notes(summary)]
    lead = [line for line in (description, _lead(summary)) if line]
    return page(title, lead, {**swept, **summary["setup"]}, told, [_table(summary)], sweep_figures(summary))


def _lead(summary: Mapping[str, Any]) -> str:
    variants, policies = summary["variants"], policies_of(summary)
    seeds = variants[0]["policies"][0]["seeds"]
    runs = sum(len(policy["seeds"]) for _, policy in rows_of(summary))
    backends = {policy["backend"] for _, policy in rows_of(summary)}
    how = "measured on the executor" if backends == {"executor"} else "simulated"
    parts = [
        f"A sweep of {plural(len(summary['sweep']), 'key')}, {how}: {plural(len(variants), 'variant')}",
        f"{len(policies)} {'policy' if len(policies) == 1 else 'policies'}",
        plural(len(seeds), "seed"),
        plural(runs, "run"),
    ]
    return ", ".join(parts) + ". The first cell of each row leads to the report of its variant."


def _left_out(summary: Mapping[str, Any]) -> list[Verdict]:
    return [
        Verdict("Left out", "note", f"{each['name']}, which cannot run: {each['why']}") for each in summary["left_out"]
    ]


def _notes(summary: Mapping[str, Any]) -> list[Verdict]:
    return [
        Verdict("Note", "note", f"{several(names)}: {text}" if names else text) for names, text in shared_notes(summary)
    ]


def _table(summary: Mapping[str, Any]) -> Table:
    rows = rows_of(summary)
    short = short_keys(list(summary["sweep"]))
    used = [column for column in _COLUMNS if any(_differs(policy, column[1]) for _, policy in rows)]
    with_slo = any(policy["slo"]["met"] is not None for _, policy in rows)
    heads = ["variant", *short.values(), "policy", *(["SLO"] if with_slo else []), "limited by"]
    cells = []
    for variant, policy in rows:
        texts = [*(value_text(variant["settings"][key]) for key in short), policy["policy"]]
        texts += [*([slo_text(policy)] if with_slo else []), policy["bottleneck"]]
        cells.append(
            [
                TableCell(variant["name"], href=f"{quote(variant['folder'])}/report.html"),
                *map(TableCell, texts),
                *(cell(policy["metrics"].get(metric), form) for _, metric, form in used),
            ]
        )
    caption = "Every variant and policy: means over seeds, request counts per seed"
    return Table(caption, [*heads, *(head for head, _, _ in used)], cells)


def _differs(policy: Mapping[str, Any], metric: str) -> bool:
    """Whether a metric says something: it is there, and is not how even one replica is."""
    found = policy["metrics"].get(metric)
    return found is not None and not (metric == "engine.imbalance" and found["mean"] == 1.0)
