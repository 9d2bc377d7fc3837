"""PageTable: the tables of plan.html, made of a plan's dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loratory.plan.figures import VERDICTS, by_room
from loratory.plan.objectives import Objective, metric_label
from loratory.reports.number_text import count, plural

CANDIDATES = 200
"""Candidates that the page lists; plan.json has all."""

_DISCARDED = 40
_SIGNS: Mapping[str, str] = {"met": "✓", "too_close": "≈", "missed": "✗"}
_ORDER = ("met", "too_close", "missed")


@dataclass(frozen=True, slots=True)
class Column:
    """The head of a column; ``text``: it holds sentences, which wrap."""

    head: str
    text: bool = False


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table; the first cell of a row names it. ``note``: a sentence below it."""

    caption: str
    columns: list[Column]
    rows: list[list[str]]
    note: str = ""


def verdict_text(verdict: str) -> str:
    """``✓ met``."""
    return f"{_SIGNS[verdict]} {VERDICTS[verdict]}"


def slo_table(targets: Sequence[Objective], row: Mapping[str, Any] | None, subject: str) -> PageTable:
    """Each target with its limit and the value of ``row``, a candidate or the best, which ``subject`` names."""
    columns = [Column("target"), Column("limit"), Column("value [95 % interval]"), Column("verdict")]
    rows = []
    for target in targets:
        metric = None if row is None else row["metrics"].get(target.name)
        limit = f"{'at least' if target.share else 'at most'} {target.number(target.limit)}"
        rows.append([target.label, limit, target.text(metric), _kept(metric)])
    return PageTable(f"The SLO and {subject}", columns, rows)


def _kept(metric: Mapping[str, Any] | None) -> str:
    met = None if metric is None else metric.get("met")
    if metric is None or (met is None and metric.get("mean") is None):
        return "–"
    return verdict_text("too_close" if met is None else "met" if met else "missed")


def what_if_table(plan: Mapping[str, Any], targets: Sequence[Objective]) -> PageTable | None:
    """One change at a time, from the answer."""
    if not plan["what_if"]:
        return None
    rows = [
        [
            item["label"],
            verdict_text(item["verdict"]),
            *(target.text(item["metrics"].get(target.name)) for target in targets),
        ]
        for item in plan["what_if"]
    ]
    best = plan["best"]
    if best is not None:
        values = [target.text(best["metrics"].get(target.name)) for target in targets]
        rows.insert(0, ["the answer, as it is", verdict_text(plan["verdict"]), *values])
    heads = [Column("change", text=True), Column("verdict"), *(Column(target.label) for target in targets)]
    return PageTable("One change at a time", heads, rows)


def regret_table(plan: Mapping[str, Any]) -> PageTable | None:
    """Each policy's metrics and how many times the clairvoyant's they are."""
    if not plan["regret"]:
        return None
    names = list(dict.fromkeys(name for row in plan["regret"] for name in row["metrics"]))
    rows = [[row["policy"], *(_regret(row, name) for name in names)] for row in plan["regret"]]
    note = (
        "The clairvoyant knows every output's length and every request to come, which no policy can: it evicts and "
        "orders with that knowledge. How far a policy is from it bounds what a better policy could gain."
    )
    heads = [Column("policy"), *(Column(metric_label(name)) for name in names)]
    return PageTable("Each policy, and how many times the clairvoyant's value it has", heads, rows, note)


def _regret(row: Mapping[str, Any], name: str) -> str:
    unit = Objective(name, "", "", 0.0, share=not name.endswith("_s"))
    value, ideal, ratio = (row[part].get(name) for part in ("metrics", "clairvoyant", "ratio"))
    if value is None:
        return "not known"
    text = unit.number(value)
    return text if ideal is None or ratio is None else f"{text}: {count(ratio)} times {unit.number(ideal)}"


def sensitivity_table(plan: Mapping[str, Any], targets: Sequence[Objective]) -> PageTable | None:
    """How far each factor can go, the one with the least room first."""
    if not plan["sensitivity"]:
        return None
    labels = {target.name: target.label for target in targets}
    rows = []
    for item in by_room(plan["sensitivity"]):
        times = " times" if item["unit"] == "times" else ""
        told = ["–" if item[key] is None else f"{count(item[key])}{times}" for key in ("holds_to", "breaks_at")]
        first = labels.get(item["breaks_first"] or "", item["breaks_first"] or "–")
        name = item["factor"] if times else f"{item['factor']} ({item['unit']})"
        rows.append([name, count(item["now"]), *told, first, item["note"]])
    heads = [Column("factor"), Column("now"), Column("holds to"), Column("breaks at")]
    heads.append(Column("what breaks first", text=True))
    if any(row[-1] for row in rows):
        heads.append(Column("note", text=True))
    return PageTable("Each factor alone", heads, [row[: len(heads)] for row in rows])


def curve_tables(plan: Mapping[str, Any], targets: Sequence[Objective]) -> list[PageTable]:
    """The points of each capacity curve."""
    tables = []
    for curve in plan["curves"]:
        points = sorted(curve["points"], key=lambda point: point["x"])
        rows = [
            [
                count(p["x"]),
                verdict_text(p["verdict"]),
                *(target.text(p["metrics"].get(target.name)) for target in targets),
            ]
            for p in points
        ]
        heads = [Column(curve["x"]), Column("verdict"), *(Column(target.label) for target in targets)]
        tables.append(PageTable(curve["label"], heads, rows))
    return tables


def heat_table(plan: Mapping[str, Any], targets: Sequence[Objective]) -> PageTable | None:
    """The heat map's values, one row for each number of adapters."""
    heat = plan["heat"]
    target = None if heat is None else next((t for t in targets if t.name == heat["metric"]), None)
    if heat is None or target is None:
        return None

    def text(cell: Mapping[str, Any] | None) -> str:
        return "–" if cell is None else f"{_SIGNS[cell['verdict']]} {target.text(cell['metrics'].get(target.name))}"

    rows = [[count(y), *map(text, line)] for y, line in zip(heat["ys"], heat["cells"], strict=True)]
    name = heat["x"].rpartition(".")[2]
    heads = [Column(heat["y"]), *(Column(f"{name} {count(x)}") for x in heat["xs"])]
    return PageTable(f"{target.label} by {name} and {heat['y']}", heads, rows)


def candidate_table(plan: Mapping[str, Any], targets: Sequence[Objective], unit: str) -> PageTable | None:
    """The candidates that were simulated: those that meet the SLO first, the cheapest of them first; `CANDIDATES`."""
    rows = plan["candidates"]
    if not rows:
        return None
    best = plan["best"]["candidate"] if plan["best"] else None
    priced = any(row["price_per_hour"] is not None for row in rows)
    loads = any(row["load"] != 1.0 for row in rows)

    def place(row: Mapping[str, Any]) -> tuple[object, ...]:
        price = row["price_per_hour"] if row["price_per_hour"] is not None else float("inf")
        return row["id"] != best, _ORDER.index(row["verdict"]), price, row["gpus"], row["id"]

    shown = sorted(rows, key=place)[:CANDIDATES]
    scaled = any(row["gpus_mean"] != row["gpus"] for row in rows)
    heads = [Column("candidate"), Column("verdict"), Column("GPUs")]
    heads += [Column("GPUs on average"), Column("GPU hours")] if scaled else []
    heads += [Column(unit)] if priced else []
    heads += [Column("load")] if loads else []
    heads += [*(Column(target.label) for target in targets), Column("seeds")]
    heads += [Column("why", text=True)] if any(_why(row) for row in shown) else []
    cells = []
    for row in shown:
        cell = [row["label"] + (" (the answer)" if row["id"] == best else ""), verdict_text(row["verdict"])]
        cell.append(f"{row['gpus']:,}")
        if scaled:
            hours = row["metrics"].get("gpu_hours", {}).get("mean")
            cell += ["–" if value is None else count(value) for value in (row["gpus_mean"], hours)]
        if priced:
            cell.append("–" if row["price_per_hour"] is None else f"{row['price_per_hour']:,.2f}")
        if loads:
            cell.append("as given" if row["load"] == 1.0 else f"{count(row['load'])} times")
        cell += [target.text(row["metrics"].get(target.name)) for target in targets]
        cells.append([*cell, _seeds(row), _why(row)][: len(heads)])
    note = f"{len(rows) - len(shown):,} more are in plan.json." if len(rows) > len(shown) else ""
    return PageTable(f"{plural(len(rows), 'candidate')} simulated", heads, cells, note)


def _seeds(row: Mapping[str, Any]) -> str:
    return f"{row['seeds']}{', stopped early' if row['stopped_early'] else ''}"


def _why(row: Mapping[str, Any]) -> str:
    more = row["more_seeds"]
    return (
        f"{row['reason']}{'; ' if row['reason'] else ''}about {more} more seeds would decide" if more else row["reason"]
    )


def discarded_tables(plan: Mapping[str, Any]) -> list[PageTable]:
    """Those that were not simulated, by what ruled them out; the largest group first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in plan["discarded"]:
        groups.setdefault(row["by"], []).append(row)
    tables = []
    for by, rows in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        shown = [[row["label"], row["reason"]] for row in rows[:_DISCARDED]]
        note = f"{len(rows) - len(shown):,} more are in plan.json." if len(rows) > len(shown) else ""
        heads = [Column("candidate"), Column("why", text=True)]
        tables.append(PageTable(f"{by}: {plural(len(rows), 'candidate')}", heads, shown, note))
    return tables
