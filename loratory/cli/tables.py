"""Tables: summaries, policies and reproductions as the command line shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from loratory.experiment.class_spec import Description
from loratory.reports.regret import regret_table

if TYPE_CHECKING:
    from loratory.reproduce.render import Grid

MEASURES: tuple[tuple[str, str, str], ...] = (
    ("requests/s", "throughput.requests_per_s", "{:,.2f}"),
    ("output tokens/s", "throughput.output_tokens_per_s", "{:,.0f}"),
    ("  per GPU", "throughput.output_tokens_per_s_per_gpu", "{:,.0f}"),
    ("  of the ceiling", "throughput.ceiling_share", "{:.1%}"),
    ("TTFT p50, s", "ttft_s.p50", "{:.3f}"),
    ("TTFT p99, s", "ttft_s.p99", "{:.3f}"),
    ("TPOT p99, ms", "tpot_s.p99", "{:.1f}"),
    ("E2E mean, s", "e2e_s.mean", "{:.2f}"),
    ("hit rate", "adapters.hit_rate", "{:.1%}"),
    ("adapter loads", "adapters.loads", "{:,.0f}"),
    ("Jain's index", "fairness.jain", "{:.3f}"),
)
"""(label, metric, form) of the rows of `summary_tables`: means over the seeds, with half their 95 % interval."""

LIMITS = {"none": "nothing", "context": "context limit", "rejected": "rejections"}
_SCALE = {"tpot_s.p99": 1000.0}
_WIDEST_NAME = 24


def summary_tables(summary: Mapping[str, Any], columns: int = 80) -> list[Table]:
    """One row per measure and one column per policy, in as many tables as fit whole numbers into these columns."""
    measures = [m for m in MEASURES if any(m[1] in policy["metrics"] for policy in summary["policies"])]
    labels = ["SLO", "within every limit", "requests completed", "limited by", *(m[0] for m in measures)]
    every = [[policy["policy"], *_cells(policy, summary["runs"], measures)] for policy in summary["policies"]]
    if all(cells[1] == "-" for cells in every):
        labels, every = labels[2:], [[cells[0], *cells[3:]] for cells in every]
    elif all(cells[2] == "-" for cells in every):
        labels, every = [labels[0], *labels[2:]], [[*cells[:2], *cells[3:]] for cells in every]
    return _blocks(labels, every, columns)


def regret_tables(summary: Mapping[str, Any], columns: int = 80) -> list[Table]:
    """The same for what is compared with the clairvoyant, which is the first column; the second is the lower bound."""
    heads, rows = regret_table(summary["policies"], summary["regret"])
    return _blocks(heads[1:], rows, columns)


def _blocks(labels: list[str], every: list[list[str]], columns: int) -> list[Table]:
    """Tables with these labels on the left, and one column for each list of cells, of which the first is its name."""
    left = max(map(len, labels))
    blocks: list[list[list[str]]] = []
    free = 0
    for cells in every:
        if not blocks or _width(cells) > free:
            blocks.append([])
            free = columns - left - 2
        blocks[-1].append(cells)
        free -= _width(cells)
    return [_block(labels, block) for block in blocks]


def _width(cells: list[str]) -> int:
    """Width of a policy's column with the space before it; the first cell, its name, may be folded."""
    return 3 + max(*map(len, cells[1:]), min(len(cells[0]), _WIDEST_NAME))


def _block(labels: list[str], policies: list[list[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for cells in policies:
        table.add_column(Text(cells[0]), justify="right", overflow="fold", width=_width(cells) - 3)
    for label, *row in zip(labels, *(cells[1:] for cells in policies), strict=True):
        table.add_row(label, *row)
    return table


def _cells(policy: Mapping[str, Any], every: Sequence[Mapping[str, Any]], measures: list[Any]) -> list[str]:
    """The cells of one policy: SLO, share of requests within it, completed requests, bottleneck, then the measures."""
    runs = [run for run in every if run["policy"] == policy["policy"]]
    done = sum(run["requests"]["completed"] for run in runs)
    sent = sum(run["requests"]["submitted"] for run in runs)
    missed = sum(run["slo"]["met"] is False for run in runs)
    slo = "-" if runs[0]["slo"]["met"] is None else "met" if not missed else "missed"
    if 0 < missed < len(runs):
        slo += f" ({missed} of {len(runs)} seeds)"
    limits = [run["bottleneck"] for run in runs]
    limit = max(dict.fromkeys(limits), key=limits.count)
    share = metric_cell(policy["metrics"].get("slo.attainment"), "", "{:.1%}")
    cells = [metric_cell(policy["metrics"].get(path), path, form) for _, path, form in measures]
    return [
        slo,
        share,
        f"all {done:,}" if done == sent else f"{done:,} of {sent:,}",
        LIMITS.get(limit, limit),
        *cells,
    ]


def metric_cell(metric: Mapping[str, Any] | None, path: str, form: str) -> str:
    """A metric's mean in ``form``, with half its interval behind ±; times are scaled as their label says."""
    if metric is None or metric.get("mean") is None:
        return "-"
    scale = _SCALE.get(path, 1.0)
    text = form.format(metric["mean"] * scale)
    text = "99.9%" if text == "100.0%" and metric["mean"] < 1 else text
    half = 0.0 if metric.get("high") is None else metric["high"] - metric["mean"]
    return f"{text} ±{form.format(half * scale).removesuffix('%')}" if half else text


def guests_table(word: str, descriptions: list[Description]) -> Table:
    """One row per policy or router (``word``): name, what it does, parameters with defaults."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(word, no_wrap=True)
    table.add_column("what it does")
    table.add_column("parameters", overflow="fold", min_width=24)
    common = {"evict", "prefetch", "reserve"}
    for d in descriptions:
        own = [
            f"{p.name}: {p.without}" if p.default is None and p.without else f"{p.name}={p.default_words}"
            for p in d.parameters
            if p.name not in common
        ]
        table.add_row(d.name, d.summary, ", ".join(own) or "-")
    return table


def sources_text(description: Description) -> str:
    """Where a policy or router comes from, and what of that it lacks, if its docstring says so."""
    lacks = f". Not modelled: {description.not_modelled}" if description.not_modelled else ""
    return f"source: {description.source or '-'}{lacks}"


def parameters_table(description: Description) -> Table:
    """One row per parameter."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("parameter", "type", "default", "meaning"):
        table.add_column(head)
    for p in description.parameters:
        table.add_row(p.name, p.type, p.default_words, p.description)
    return table


def grid_table(grid: Grid) -> Table:
    """A grid of a reproduction: words are aligned left, numbers right."""
    table = Table(title=grid.caption or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for place, head in enumerate(grid.heads):
        table.add_column(head, justify="left" if place in grid.words else "right")
    for row in grid.rows:
        table.add_row(*map(Text, row))
    return table
