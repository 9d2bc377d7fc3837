"""HTML: report.html, one self-contained file that opens offline: verdicts, then tables, then figures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from loratory.reports.figures import draw
from loratory.reports.fleet_figure import fleet_figures
from loratory.reports.groups import FEW, groups, same_units
from loratory.reports.number_text import count, listed, percent, plural, seconds
from loratory.reports.panels import Figure
from loratory.reports.per_replica import replicas_over_seeds
from loratory.reports.policy_tables import Table, TableCell, or_dash, policy_tables
from loratory.reports.regret import regret_notes, regret_table
from loratory.reports.roll_outs import PHASES, roll_outs_over_seeds
from loratory.reports.run_info import IDENTITY, RunInfo
from loratory.reports.summary import RunReport, over_seeds
from loratory.reports.verdict_types import Verdict, by_policy
from loratory.reports.verdicts import verdicts

_REPLICAS = 64
"""Replicas that the table of a fleet shows."""

_IDENTITIES = 100
_ROWS = 12
_MARKS = {"good": "✓", "bad": "✗", "note": "•"}

_TERMS = (
    ("TTFT", "time to first token: from a request's arrival to its first output token."),
    ("TPOT", "time per output token: from first token to finish, over (output tokens - 1)."),
    ("ITL", "inter-token latency: each gap between two successive output tokens."),
    ("queue time", "from arrival to first admission, without the wait for an adapter's load."),
    ("hit rate", "share of admitted adapter requests whose adapter was on the GPU and had been used before."),
    ("load share", "share of end-to-end time spent waiting for an adapter's load."),
    ("ceiling", "output tokens/s that the cost model gives one GPU with a full batch of this workload's mean request."),
    ("time waiting", "share of all requests' time in the system in which they wait to run."),
    ("slots in use", "distinct adapters in the batch; medians are over the time of the steps."),
    ("GPU hours", "of GPUs whose replica starts, is open, or drains; those of a failed one do not count."),
    (
        "busiest replica",
        "its waiting and running request-seconds, over what it would have had if at each moment all open replicas had "
        "as many; 1 is even.",
    ),
    ("kind", "replicas with the same GPU and engine settings; named by what is its own."),
    ("busy", "of a replica: the time of its steps over the time that it was there: it started, was open, or drained."),
    ("running, waiting", "of a replica: requests in the batch, and in its queue; averages over the time of its steps."),
    ("never served", "without a token, and not rejected; these requests also count as failed or aborted."),
    ("failed", "ended without an answer, because their replica failed or nothing could serve them."),
    ("loading", "share of the time in which an adapter is being loaded to the GPU."),
    ("attainment", "share of all requests that completed within every limit of the SLO."),
    ("service", "weighted tokens: a request's prompt tokens plus twice its output tokens."),
    (
        "service gap",
        "largest difference in service, over weight, between two tenants while both have requests waiting.",
    ),
    (
        "Jain's index",
        "1 if every tenant received equal service over weight; 1/n if one of n tenants received all of it.",
    ),
    ("p50, p99", "half, 99 % of the values are at or below."),
    ("±", "half the 95 % Student-t interval of the mean over seeds."),
)


def render(
    title: str,
    reports: Sequence[RunReport],
    description: str = "",
    setup: Mapping[str, str] | None = None,
    regret: Mapping[str, Any] | None = None,
) -> str:
    """The report on all runs; ``setup``: what ran, by label, for its first block; ``regret``: see its module.

    Every text from outside is escaped; the same runs give the same bytes.
    """
    runs = [report.run for report in reports]
    return page(
        title,
        [line for line in (description, _lead(reports)) if line],
        setup or {},
        verdicts(runs),
        [*policy_tables(runs), *_regret(runs, regret)],
        [*draw(reports), *fleet_figures(reports)],
        [*_groups(runs), *_identities(reports[0].info)],
    )


def page(
    title: str,
    lead: Sequence[str],
    setup: Mapping[str, str],
    told: Sequence[Verdict],
    tables: Sequence[Table],
    figures: Sequence[Figure],
    groups: Sequence[Table] = (),
) -> str:
    """A report of these parts, in one file. ``groups``: tables that are folded at first."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    template = environment.from_string(_resource("report.html"))
    pictures = [
        {
            "name": figure.name,
            "title": figure.title,
            "caption": figure.caption,
            "data": base64.b64encode(figure.svg.encode()).decode("ascii"),
        }
        for figure in figures
    ]
    return template.render(
        title=title,
        css=Markup(_resource("report.css")),
        lead=lead,
        setup=setup,
        verdicts=told,
        marks=_MARKS,
        tables=tables,
        groups=groups,
        figures=pictures,
        terms=_TERMS,
    )


def _resource(name: str) -> str:
    return files("loratory.reports").joinpath(name).read_text(encoding="utf-8")


def _changes(run: Mapping[str, Any]) -> bool:
    return "fleet" in run and len(run["fleet"]["over_time"]) > 1


def _lead(reports: Sequence[RunReport]) -> str:
    """One line: what ran, on which backend, how long."""
    backends = sorted({report.info.backend for report in reports})
    policies = list(dict.fromkeys(report.info.policy for report in reports))
    seeds = sorted({report.info.seed for report in reports})
    run = reports[0].run
    where = {"sim": "simulated", "executor": "measured on the executor"}
    parts = [
        listed([where.get(backend, backend) for backend in backends]),
        f"{len(policies)} {'policy' if len(policies) == 1 else 'policies'}",
        plural(len(seeds), "seed"),
        f"{'up to ' if _changes(run) else ''}{plural(run['replicas'], 'replica')}",
        f"{plural(run['requests']['submitted'], 'request')} over {seconds(run['duration_s'])}",
        f"{plural(run['adapters']['seen'], 'adapter')} requested",
    ]
    cuts = sorted({report.run["warmup_s"] for report in reports})
    if cuts[-1]:
        parts.append(
            f"the first {' to '.join(seconds(cut) for cut in dict.fromkeys((cuts[0], cuts[-1])))} not measured"
        )
    text = ", ".join(parts)
    return text[0].upper() + text[1:] + "."


def _regret(runs: Sequence[Mapping[str, Any]], regret: Mapping[str, Any] | None) -> list[Table]:
    """The policies beside one that knows the future, and beside what none can beat."""
    if regret is None:
        return []
    policies = over_seeds(runs)
    heads, rows = regret_table(policies, regret)
    caption = f"Distance from the possible. {' '.join(regret_notes(policies, regret))}"
    return [Table(caption, heads, [[TableCell(text) for text in row] for row in rows])]


def _groups(runs: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Tenants and adapters that waited longest under each policy, means over its seeds."""
    tables: list[Table] = []
    for policy in by_policy(runs):
        first = policy.runs[0]
        for unit, heading in (("tenant", "Tenants"), ("adapter", "Adapters")):
            if len(first[f"per_{unit}"]) > 1 and not (unit == "tenant" and same_units(first)):
                caption = f"{heading} with the longest TTFT p99 under {policy.name}"
                tables.append(_worst(policy.runs, unit, caption))
        if "roll_outs" in first.get("fleet", {}):
            tables.append(_roll_outs(policy.runs, f"Roll-outs under {policy.name}"))
        if "per_replica" in first:
            tables.append(_replicas(policy.runs, f"Replicas under {policy.name}"))
    return tables


def _replicas(runs: Sequence[Mapping[str, Any]], caption: str) -> Table:
    """The replicas of a fleet, by index."""
    rows = replicas_over_seeds(runs)
    shown = rows[:_REPLICAS]
    if len(rows) > len(shown):
        caption += f" ({len(shown)} of {len(rows):,}; summary.json has all)"
    if len(runs) > 1:
        caption += f", means over {len(runs)} seeds"
    kinds = any(row["kind"] for row in rows)
    heads = ["replica", *(["kind"] if kinds else []), "requests", "output tokens", "TTFT p50", "TTFT p99", "TPOT p99"]
    heads += ["hit rate", "loads", "busy", "running", "waiting", "adapters on the GPU"]
    cells = [
        [
            str(row["replica"]),
            *([str(row["kind"])] if kinds else []),
            count(row["requests"]),
            count(row["output_tokens"]),
            *(or_dash(seconds, row[mark]) for mark in ("ttft_p50_s", "ttft_p99_s", "tpot_p99_s")),
            or_dash(percent, row["hit_rate"]),
            count(row["loads"]),
            percent(row["busy_share"]),
            *(count(row[key]) for key in ("running", "waiting", "resident")),
        ]
        for row in shown
    ]
    return Table(caption, heads, [[TableCell(text) for text in row] for row in cells])


def _roll_outs(runs: Sequence[Mapping[str, Any]], caption: str) -> Table:
    """The roll-outs of new versions, in order of time."""
    rows = roll_outs_over_seeds(runs)
    shown = rows[:_REPLICAS]
    if len(rows) > len(shown):
        caption += f" ({len(shown)} of {len(rows):,}; summary.json has all)"
    if len(runs) > 1:
        caption += f", means over {len(runs)} seeds"
    times = {"began_s": "began", "moved_s": "all moved", "old_ended_s": "last old request ended", "freed_s": "old gone"}
    heads = ["new version", "before it", *times.values(), "requests: old", "new", "loads", "from disk or farther"]
    heads += [f"TTFT p99 {phase}" for phase in PHASES]
    cells = [
        [
            row["new"],
            row["old"],
            *(or_dash(seconds, row[key]) for key in times),
            *(count(row[key]) for key in ("requests_old", "requests_new", "loads", "cold_loads")),
            *(or_dash(seconds, row[f"ttft_p99_{phase}_s"]) for phase in PHASES),
        ]
        for row in shown
    ]
    return Table(caption, heads, [[TableCell(text) for text in row] for row in cells])


def _identities(info: RunInfo) -> list[Table]:
    """The identity of each existing adapter, so that a result can be checked against the weights behind it."""
    known = list(info.identities.items())
    if not known:
        return []
    caption = "Adapters by id, version and digest"
    if len(known) > _IDENTITIES:
        caption += f" ({_IDENTITIES} of {len(known):,}; run_info.json lists all)"
    rows = [
        [name, *("–" if identity[key] is None else str(identity[key]) for key in IDENTITY)] for name, identity in known
    ]
    heads = ["adapter", "id", "version", "digest"]
    return [Table(caption, heads, [[TableCell(text) for text in row] for row in rows[:_IDENTITIES]])]


def _worst(runs: Sequence[Mapping[str, Any]], unit: str, caption: str) -> Table:
    """The groups with the longest p99 TTFT: first those without any token, last those with too few requests."""
    rows = groups(runs, unit)
    shown = rows[:_ROWS]
    if len(rows) > len(shown):
        caption += f" ({len(shown)} of {len(rows):,})"
    if len(runs) > 1:
        caption += f", means over {len(runs)} seeds"
    if any(row["few"] for row in shown):
        caption += f"; those with fewer than {FEW} requests per seed last"
    heads = [unit, "requests", "completed", "TTFT p50", "TTFT p99", "queue time p99"]
    heads += ["service", "weight"] if unit == "tenant" else ["hit rate", "loads", "load wait"]
    return Table(caption, heads, [_group(row, unit) for row in shown])


def _group(row: Mapping[str, Any], unit: str) -> list[TableCell]:
    cells = [
        row[unit] if row[unit] is not None else "base model",
        count(row["requests"]),
        count(row["completed"]),
        *(or_dash(seconds, row[mark]) for mark in ("ttft_p50_s", "ttft_p99_s", "queue_p99_s")),
    ]
    if unit == "tenant":
        cells += [count(row["service"]), count(row["weight"])]
    else:
        cells += [or_dash(percent, row["hit_rate"]), count(row["loads"]), seconds(row["load_wait_s"])]
    return [TableCell(text) for text in cells]
