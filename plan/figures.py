"""Figures: the plots of a plan as SVG texts: cost against latency, capacity, slots against adapters, sensitivity.

Verdicts have a shape as well as a colour: met a disc, too close a diamond, missed a cross.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, log
from typing import TYPE_CHECKING, Any

from loratory.plan.objectives import Metric, Objective, known, objectives
from loratory.reports.number_text import count, listed, plural
from loratory.reports.panels import Figure, panels, plain_ticks, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VERDICTS: Mapping[str, str] = {"met": "met", "too_close": "too close to call", "missed": "missed"}

_LOOKS: Mapping[str, dict[str, Any]] = {
    "missed": {"marker": "x", "color": "#D55E00", "zorder": 2},
    "too_close": {"marker": "D", "color": "#E69F00", "markerfacecolor": "white", "zorder": 3},
    "met": {"marker": "o", "color": "#009E73", "zorder": 4},
}
_SIGNS: Mapping[str, str] = {"met": "✓", "too_close": "≈", "missed": "✗"}
_TINTS: Mapping[str, str] = {"met": "#cdebe0", "too_close": "#fdf1cf", "missed": "#f7d9c6"}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_LINES = ("-", "--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (9, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "*")
_CURVES = 7
_BAR: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.6, "height": 0.62}
_CELLS = 12
"""A heat map writes its values into the cells up to this many columns."""
_SPREAD = 20.0
"""Values that differ by more than this factor get a logarithmic axis."""
_FAR = 6.0
"""A limit that is more than this many times the axis is named beside it instead of drawn."""
_FACTORS: Mapping[str, str] = {"skew": "skew (zipf exponent)"}


def draw_plan(plan: Mapping[str, Any]) -> list[Figure]:
    """Every figure that the plan has data for; latency is the first target of its SLO."""
    targets = objectives(plan)
    if not targets:
        return []
    first = targets[0]
    drawn = [
        _pareto(plan, first),
        *(_curves(plan, first, x) for x in dict.fromkeys(curve["x"] for curve in plan["curves"])),
        _heat(plan, targets),
        _tornado(plan, targets),
    ]
    return [figure for figure in drawn if figure is not None]


def cost_of(plan: Mapping[str, Any]) -> tuple[str, str]:
    """The key of what a candidate costs, and its unit: the price where every candidate has one, or else its GPUs. An
    autoscaled one has either on average, and none where its runs were stopped."""
    rows = [row for row in plan["candidates"] if row["gpus_mean"] is not None]
    if rows and all(row["price_per_hour"] is not None for row in rows):
        return "price_per_hour", f"{currency(plan) or 'price'} an hour"
    return "gpus_mean", "GPUs"


def currency(plan: Mapping[str, Any]) -> str:
    """The currency of the prices; empty where no candidate is best, which alone names it."""
    return plan.get("currency") or (plan["best"] or {}).get("currency") or ""


def _pareto(plan: Mapping[str, Any], target: Objective) -> Figure | None:
    key, unit = cost_of(plan)
    rows = [
        row
        for row in plan["candidates"]
        if row["load"] == 1.0 and row["gpus_mean"] is not None and _value(row["metrics"], target) is not None
    ]
    if len({row[key] for row in rows}) < 2:
        return None
    frontier = frontier_of(rows, key, target)
    best = plan["best"]["candidate"] if plan["best"] else None
    size = 4.5 if len(rows) <= 100 else 3.0

    def paint(axes: list[Axes]) -> None:
        (ax,) = axes
        for verdict, look in _LOOKS.items():
            some = [row for row in rows if row["verdict"] == verdict]
            if some:
                _errors(ax, [row[key] for row in some], [row["metrics"][target.name] for row in some], target, look)
                xs, ys = [row[key] for row in some], [_shown(row["metrics"], target) for row in some]
                ax.plot(xs, ys, linestyle="", markersize=size, label=VERDICTS[verdict], **look)
        cut = [row for row in rows if known(row["metrics"][target.name]) is None]
        if cut:
            xs, ys = [row[key] for row in cut], [_shown(row["metrics"], target) for row in cut]
            ax.plot(
                xs, ys, linestyle="", marker="^", color="#D55E00", markerfacecolor="white", label="missed, at least"
            )
        if len(frontier) > 1:
            xs, ys = [row[key] for row in frontier], [_shown(row["metrics"], target) for row in frontier]
            ax.plot(xs, ys, drawstyle="steps-post", color="#0072B2", linewidth=1.2, zorder=1, label="frontier")
        for row in rows:
            if row["id"] == best:
                ring: dict[str, Any] = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "color": "black"}
                ax.plot([row[key]], [_shown(row["metrics"], target)], linestyle="", label="the answer", **ring)
        ax.set(xlabel=short_name(unit), ylabel=_axis(target))
        _scale(ax, [_shown(row["metrics"], target) for row in rows], target)
        _limit(ax, target)
        if key == "gpus_mean" and all(row["gpus_mean"] == row["gpus"] for row in rows):
            _whole(ax)

    entries = len({row["verdict"] for row in rows}) + 3
    tally = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in _LOOKS}
    numbers = listed([f"{number:,} {VERDICTS[verdict]}" for verdict, number in tally.items() if number])
    better = f"further left is cheaper, {'higher' if target.share else 'lower'} is better"
    caption = f"{plural(len(rows), 'candidate')}: {numbers}; {better}. Bars are 95 % intervals over seeds."
    if len(frontier) > 1:
        caption += " The blue line joins the candidates than which none is both cheaper and better."
    if len(rows) < len(plan["candidates"]):
        caption += " Candidates without a value, or at another load, are not drawn."
    title = f"{'Price' if key == 'price_per_hour' else 'GPUs'} against {target.label}"
    return Figure("pareto", title, caption, panels(1, 3.3, paint, entries))


def frontier_of(rows: Sequence[Mapping[str, Any]], key: str, target: Objective) -> list[Mapping[str, Any]]:
    """Candidates than which no other is as cheap and better, from the cheapest; none that was cut short."""
    sign = -1.0 if target.share else 1.0
    whole = [row for row in rows if known(row["metrics"][target.name]) is not None]
    kept: list[Mapping[str, Any]] = []
    for row in sorted(whole, key=lambda row: (row[key], sign * _shown(row["metrics"], target), row["id"])):
        if not kept or sign * _shown(row["metrics"], target) < sign * _shown(kept[-1]["metrics"], target):
            kept.append(row)
    return kept


def _curves(plan: Mapping[str, Any], target: Objective, x: str) -> Figure | None:
    found = [curve for curve in plan["curves"] if curve["x"] == x]
    found = [curve for curve in found if sum(_value(p["metrics"], target) is not None for p in curve["points"]) > 1]
    if not found:
        return None
    shown = sorted(found, key=lambda curve: -(curve["largest"] or 0.0))[:_CURVES]

    def paint(axes: list[Axes]) -> None:
        (ax,) = axes
        values: list[float] = []
        for place, curve in enumerate(shown):
            points = sorted(
                (p for p in curve["points"] if _value(p["metrics"], target) is not None), key=lambda point: point["x"]
            )
            xs, ys = [p["x"] for p in points], [_shown(p["metrics"], target) for p in points]
            values += ys
            colour = _COLOURS[place % len(_COLOURS)]
            look: dict[str, Any] = {"color": colour, "linestyle": _LINES[place % len(_LINES)]}
            ax.plot(xs, ys, label=short_name(curve["label"], 42), marker=_MARKERS[place], **look)
            open_points = [(a, b) for a, b, p in zip(xs, ys, points, strict=True) if p["verdict"] != "met"]
            if open_points:
                hollow: dict[str, Any] = {"marker": _MARKERS[place], "markerfacecolor": "white", "color": colour}
                ax.plot(*zip(*open_points, strict=True), linestyle="", zorder=5, **hollow)
            _errors(ax, xs, [p["metrics"][target.name] for p in points], target, {"color": colour})
            if curve["largest"] is not None and len(shown) == 1:
                ax.axvline(curve["largest"], color=colour, linewidth=0.9, linestyle=(0, (1, 2)))
        ax.set(xlabel=x, ylabel=_axis(target))
        _scale(ax, values, target)
        _limit(ax, target)
        if x != "requests/s":
            _whole(ax)

    caption = (
        f"{target.label} against {x}, with 95 % intervals over seeds. Filled points meet the whole SLO, hollow ones "
        "miss it or are too close to call."
    )
    largest = [f"{count(c['largest'])} for {short_name(c['label'], 60)}" for c in shown if c["largest"] is not None]
    if largest:
        caption += f" Largest that is met: {'; '.join(largest)}."
    if len(found) > len(shown):
        caption += f" The {len(shown)} that sustain the most are drawn, of {len(found)}."
    name = {"requests/s": "rate", "adapters": "adapters", "replicas": "replicas"}.get(x, "other")
    return Figure(f"capacity_{name}", f"Capacity: {x}", caption, panels(1, 3.0, paint, len(shown), columns=1))


def _heat(plan: Mapping[str, Any], targets: Sequence[Objective]) -> Figure | None:
    heat = plan["heat"]
    target = None if heat is None else next((t for t in targets if t.name == heat["metric"]), None)
    if heat is None or target is None:
        return None
    xs, ys, cells = heat["xs"], heat["ys"], heat["cells"]
    texts = len(xs) <= _CELLS

    def paint(axes: list[Axes]) -> None:
        from matplotlib.patches import Rectangle

        (ax,) = axes
        for row, line in enumerate(cells):
            for column, cell in enumerate(line):
                if cell is None:  # the two cannot be combined
                    ax.text(column, row, "–", ha="center", va="center", fontsize=8)
                    continue
                verdict = cell["verdict"]
                face: dict[str, Any] = {"facecolor": _TINTS[verdict], "edgecolor": "white", "linewidth": 1.5}
                ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **face))
                value = known(cell["metrics"].get(target.name))
                text = (
                    f"{_SIGNS[verdict]}\n{'–' if value is None else target.number(value)}" if texts else _SIGNS[verdict]
                )
                ax.text(column, row, text, ha="center", va="center", fontsize=8 if len(xs) <= 7 else 6.5)
        ax.set(
            xlim=(-0.5, len(xs) - 0.5),
            ylim=(-0.5, len(ys) - 0.5),
            xlabel=short_name(heat["x"], 40),
            ylabel=short_name(heat["y"]),
        )
        ax.set_xticks(range(len(xs)), [count(x) for x in xs], rotation=0 if len(xs) <= _CELLS else 90)
        ax.set_yticks(range(len(ys)), [count(y) for y in ys])
        ax.grid(False)

    short_x = heat["x"].rpartition(".")[2]
    caption = (
        f"{target.label} for each {short_x} and number of {heat['y']}: ✓ met, ≈ too close to call, ✗ missed, "
        "– cannot be. The verdict is on the whole SLO."
    )
    height = 1.0 + 0.42 * max(2, len(ys))
    return Figure("heat", f"{short_x} against {heat['y']}", caption, panels(1, height, paint))


def _tornado(plan: Mapping[str, Any], targets: Sequence[Objective]) -> Figure | None:
    rows = [(item, *_room(item)) for item in by_room(plan["sensitivity"]) if not item["note"] or item["points"]]
    rows = [row for row in rows if row[1] is not None or row[2] is not None]
    if not rows:
        return None
    names = {target.name: target.label for target in targets}

    def paint(axes: list[Axes]) -> None:
        (ax,) = axes
        far = 1.0
        for place, (item, holds, breaks) in enumerate(rows):
            end = 1.0 if holds is None else holds
            ax.barh(place, end - 1.0, left=1.0, color="#009E73", **_BAR)
            if breaks is not None:
                ax.barh(place, breaks - end, left=end, color="#f0f0f0", hatch="////", **_BAR)
            tip = max(1.0, end, breaks or 1.0)
            far = max(far, tip)
            why = "holds as far as tried" if breaks is None else names.get(item["breaks_first"] or "", "missed")
            ax.annotate(short_name(why, 30), (tip, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
        ax.axvline(1.0, color="black", linewidth=1.0)
        ax.set_yticks(range(len(rows)), [_FACTORS.get(item["factor"], short_name(item["factor"])) for item, *_ in rows])
        ax.invert_yaxis()
        ax.grid(False, axis="y")
        low, high = ax.get_xlim()
        ax.set(xlabel="times what it is now", xlim=(low, high + 0.55 * (high - low)))

    caption = (
        "How far each factor can go from what it is now, alone, before the SLO breaks, the nearest first. Green: the "
        "SLO holds; hatched: "
        "between the last value that holds and the first that does not. Beside it, what breaks first."
    )
    return Figure("sensitivity", "How far each factor can go", caption, panels(1, 0.9 + 0.36 * len(rows), paint))


def by_room(factors: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The factors of a sensitivity, the one with the least room first."""

    def room(item: Mapping[str, Any]) -> float:
        breaks = _room(item)[1]
        if breaks is None:
            return float("inf")
        return abs(log(breaks)) if breaks > 0 else 0.0

    return sorted(factors, key=room)


def _room(item: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """How far the SLO holds and where it breaks, in multiples of what the factor is now."""
    now = item["now"]

    def over(value: float | None) -> float | None:
        return value / now if value is not None and now else None

    return over(item["holds_to"]), over(item["breaks_at"])


def _value(metrics: Mapping[str, Metric], target: Objective) -> float | None:
    """What is drawn of a metric: its mean, or the least that it is where the run was cut short."""
    metric = metrics.get(target.name)
    value = known(metric)
    if value is None and metric is not None:
        value = metric.get("at_least")
    return value if value is not None and isfinite(value) else None


def _shown(metrics: Mapping[str, Metric], target: Objective) -> float:
    value = _value(metrics, target)
    assert value is not None, "candidates without a value were left out before"
    return 100 * value if target.share else value


def _errors(
    ax: Axes, xs: Sequence[float], metrics: Sequence[Metric], target: Objective, look: Mapping[str, Any]
) -> None:
    """Intervals as bars, of the metrics that have one."""
    scale = 100 if target.share else 1
    for x, metric in zip(xs, metrics, strict=True):
        value, low, high = known(metric), metric.get("low"), metric.get("high")
        if value is None or low is None or high is None:
            continue
        low, high = target.ends(low, high)
        spread = [[max(0.0, scale * (value - low))], [max(0.0, scale * (high - value))]]
        ax.errorbar([x], [scale * value], yerr=spread, fmt="none", ecolor=look["color"], elinewidth=0.9, capsize=2)


def _axis(target: Objective) -> str:
    return f"{short_name(target.label, 44)}, {'%' if target.share else 'seconds'}"


def _scale(ax: Axes, values: Sequence[float], target: Objective) -> None:
    """A logarithmic axis for times that differ much, which has no place for a zero."""
    if not target.share and min(values) > 0 and max(values) > _SPREAD * min(values):
        ax.set_yscale("log")
        plain_ticks(ax.yaxis)
    elif not target.share:
        ax.set_ylim(bottom=0)


def _limit(ax: Axes, target: Objective) -> None:
    limit = 100 * target.limit if target.share else target.limit
    low, high = ax.get_ylim()
    if not low <= limit <= high:
        if limit < low or limit > _FAR * high:  # a line there would squeeze the points
            below = limit < low
            text = f"limit {target.number(target.limit)}, {'below' if below else 'above'}"
            place = (1.0, 0.02 if below else 0.98)
            ax.annotate(text, place, xycoords="axes fraction", ha="right", va="bottom" if below else "top", fontsize=8)
            return
        ax.set_ylim(top=1.08 * limit)
    ax.axhline(limit, color="black", linewidth=1.0, linestyle=(0, (2, 2)), zorder=0)
    ax.annotate("limit", (1.0, limit), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)


def _whole(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
