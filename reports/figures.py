"""Figures: the plots of a report as SVG texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loratory.reports.number_text import percent
from loratory.reports.panels import Figure, line_look, panels, plain_ticks, short_name
from loratory.reports.run_columns import WAITS
from loratory.reports.slo import SloLimit, read_slo
from loratory.reports.summary import RunReport, over_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")
_GREYS = ("#f2f2f2", "#9ecae1", "#fdd0a2", "#d9d9d9", "#a1d99b")
_CAUSES = ("queue", "adapter load", "prefill", "decode", "preemption")
_SERVICE_PANELS = 6
_ABOVE = 2.0
"""A bound is drawn up to this multiple of the largest gap; a higher one is named, so that the lines stay high."""
_SPREAD = 20.0
"""If the gaps of policies differ by more than this factor, their axis is logarithmic."""

_POINTS: dict[str, Any] = {"textcoords": "offset points"}


def draw(reports: Sequence[RunReport]) -> list[Figure]:
    """Every figure that the runs have data for. Unless a figure states otherwise, it shows each policy's first seed."""
    first: dict[str, RunReport] = {}
    for report in reports:
        first.setdefault(report.info.policy, report)
    shown = list(first.values())
    seed = f" Seed {shown[0].info.seed}." if len(reports) > len(shown) else ""
    limits = read_slo(shown[0].info.slo)
    figures = [
        _attainment(reports),
        _cdf(shown, "ttft", "Time to first token", limits, seed),
        _cdf(shown, "tpot", "Time per output token", limits, seed),
        _cdf(shown, "e2e", "End-to-end time", limits, seed),
        _by_rank(shown, seed),
        _waits(shown, seed),
        _over_time(shown, seed),
        _service(shown, seed),
        _gap(shown, seed),
        _cache(shown, seed),
    ]
    return [figure for figure in figures if figure is not None]


def _cdf(shown: list[RunReport], metric: str, title: str, limits: list[SloLimit], seed: str) -> Figure | None:
    curves = [(r.info.policy, r.curves.levels, r.curves.quantiles[metric]) for r in shown]
    if not any(len(values) for _, _, values in curves):
        return None
    marks = [limit for limit in limits if limit.metric == metric]

    def paint(axes: list[Axes]) -> None:
        (ax,) = axes
        positive = False
        for place, (policy, levels, values) in enumerate(curves):
            if len(values):
                ax.plot(values, levels * 100, label=short_name(policy), **line_look(place, len(values)))
                positive = positive or bool((values > 0).any())
        for limit in marks:
            ax.axvline(limit.most_s, color="black", linewidth=1.0, linestyle=(0, (2, 2)))
            ax.annotate(f"SLO {limit.mark}", (limit.most_s, 3), rotation=90, ha="right", va="bottom", fontsize=8)
        if positive:
            ax.set_xscale("log")
            plain_ticks(ax.xaxis)
        ax.set(xlabel=f"{title.lower()}, seconds", ylabel="requests at or below, %", ylim=(0, 101))

    caption = f"Share of requests at or below each {title.lower()}; further left is better.{seed}"
    if marks:
        caption += " The dashed line is the SLO's limit."
    return Figure(f"cdf_{metric}", f"{title} per policy", caption, panels(1, 2.9, paint, len(curves)))


def _by_rank(shown: list[RunReport], seed: str) -> Figure | None:
    if not any(len(r.curves.ranks) > 1 for r in shown):
        return None

    def paint(axes: list[Axes]) -> None:
        for ax, row, name in zip(axes, (0, 1), ("median", "p99"), strict=True):
            for place, report in enumerate(shown):
                values = report.curves.rank_ttft_s[row]
                some = ~np.isnan(values) & (values > 0)
                look = line_look(place, len(values)) | {"markevery": 1}
                ax.plot(report.curves.ranks[some], values[some], label=short_name(report.info.policy), **look)
            ax.set(xscale="log", yscale="log", ylabel=f"TTFT {name}, seconds")
            plain_ticks(ax.xaxis)
            plain_ticks(ax.yaxis)
        axes[-1].set_xlabel("adapter popularity rank (1: most requested)")

    caption = (
        "Time to first token against the popularity of the adapter. A line that rises to the right means that rare "
        f"adapters wait; one that rises to the left, that the hot ones do. Ranks are grouped.{seed}"
    )
    return Figure("rank", "Latency against adapter popularity", caption, panels(2, 2.1, paint, len(shown)))


def _waits(shown: list[RunReport], seed: str) -> Figure:
    def paint(axes: list[Axes]) -> None:
        (ax,) = axes
        places = np.arange(len(shown))
        left = np.zeros(len(shown))
        for cause, label, hatch, colour in zip(WAITS, _CAUSES, _HATCHES, _GREYS, strict=True):
            widths = np.array([report.curves.waits_s[cause] for report in shown])
            bars: dict[str, Any] = {
                "left": left,
                "hatch": hatch,
                "color": colour,
                "edgecolor": "black",
                "linewidth": 0.6,
            }
            ax.barh(places, widths, height=0.66, label=label, **bars)
            left = left + widths
        ax.set_yticks(places, [short_name(report.info.policy) for report in shown])
        ax.invert_yaxis()
        ax.grid(False, axis="y")
        ax.set_xlabel("mean seconds of a completed request")

    caption = f"Mean end-to-end time of completed requests by cause; the parts add up to the total.{seed}"
    svg = panels(1, 0.8 + 0.3 * len(shown), paint, len(_CAUSES))
    return Figure("waits", "Where the time went", caption, svg)


def _over_time(shown: list[RunReport], seed: str) -> Figure:
    from matplotlib.ticker import MaxNLocator

    names = (("waiting", "waiting"), ("running", "running"), ("resident", "adapters on GPU"))

    def paint(axes: list[Axes]) -> None:
        for ax, (key, label) in zip(axes, names, strict=True):
            for place, report in enumerate(shown):
                curves = report.curves
                ax.plot(
                    curves.times,
                    curves.series[key],
                    label=short_name(report.info.policy),
                    **line_look(place, len(curves.times)),
                )
            ax.set_ylabel(label)
            ax.set_ylim(bottom=0)
        _slot_lines(axes[-1], shown)
        for ax in axes:
            ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes[-1].set_xlabel("seconds since the start")

    caption = f"Requests waiting and running, and adapters resident on the GPU, averaged over each moment.{seed}"
    if any(report.info.fleet is not None for report in shown):
        caption += " Adapters and slots are those of replicas that are open or drain."
    return Figure("over_time", "Load over time", caption, panels(3, 1.45, paint, len(shown)))


def _slot_lines(ax: Axes, shown: list[RunReport]) -> None:
    """How many slots there are: one line where that is the same under every policy, else one in each one's colour."""
    known = {(tuple(s[0]), tuple(s[1])): place for place, r in enumerate(shown) if (s := r.curves.slots) is not None}
    most = max((max(counts, default=0.0) for _, counts in known), default=0.0)
    if not most:
        return
    look: dict[str, Any] = {"linewidth": 1.0, "linestyle": (0, (2, 2)), "drawstyle": "steps-post"}
    for (times, counts), place in known.items():
        until = max(shown[place].run["duration_s"], times[-1])
        colour = "black" if len(known) == 1 else line_look(place, 1)["color"]
        ax.plot([*times, until], [*counts, counts[-1]], color=colour, **look)
    stay = len(known) == 1 and len(set(next(iter(known))[1])) == 1
    text = f"all {most:,.0f} slots" if stay else "dashed: slots"
    where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (-2, 3), "ha": "right", **_POINTS}
    ax.annotate(text, (1.0, most), fontsize=8, **where)
    ax.set_ylim(top=1.3 * most)


def _service(shown: list[RunReport], seed: str) -> Figure | None:
    drawn = [r for r in shown if r.curves.service][:_SERVICE_PANELS]
    tenants = list(dict.fromkeys(tenant for report in drawn for tenant in report.curves.service))
    if len(tenants) < 2:
        return None
    look = {tenant: line_look(place, 240) for place, tenant in enumerate(tenants)}

    def paint(axes: list[Axes]) -> None:
        for ax, report in zip(axes, drawn, strict=True):
            for tenant in tenants:
                values = report.curves.service.get(tenant)
                if values is not None:
                    ax.plot(report.curves.service_times, values / 1000, label=short_name(tenant), **look[tenant])
            ax.set_title(short_name(report.info.policy), loc="left")
            ax.set_ylabel("1,000 tokens")
            ax.set_ylim(bottom=0)
        handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        missing = [label for label in handles if label not in axes[0].get_legend_handles_labels()[1]]
        for label in missing:
            axes[0].plot([], [], label=label, **look[next(t for t in tenants if short_name(t) == label)])
        axes[-1].set_xlabel("seconds since the start")

    caption = (
        "Service that each tenant has received so far, in weighted tokens: prompt tokens plus twice the output tokens. "
        f"Lines that diverge while both tenants wait show unfairness.{seed}"
    )
    if any(len(report.run["per_tenant"]) > len(report.curves.service) for report in drawn):
        caption += " Only the tenants with the most service are shown."
    if len(shown) > len(drawn):
        caption += f" Only the first {len(drawn)} policies are shown."
    svg = panels(len(drawn), 1.55, paint, len(tenants))
    return Figure("service", "Service per tenant", caption, svg)


def _gap(shown: list[RunReport], seed: str) -> Figure | None:
    if max(len(report.curves.service) for report in shown) < 2:
        return None
    most = [float(report.curves.gap.max(initial=0.0)) for report in shown]
    top, least = max(most), min((value for value in most if value >= 1), default=0.0)
    log = top > _SPREAD * least > 0
    promised = {report.info.policy: report.info.bound for report in shown if report.info.bound is not None}
    near = {policy for policy, bound in promised.items() if bound <= (_SPREAD if log else _ABOVE) * top}
    far = [f"{short_name(policy)} {bound / 1000:,.0f}" for policy, bound in promised.items() if policy not in near]

    def paint(axes: list[Axes]) -> None:
        (ax,) = axes
        for place, report in enumerate(shown):
            curves, policy = report.curves, report.info.policy
            look = line_look(place, len(curves.gap))
            values = np.where(curves.gap >= 1, curves.gap, np.nan) if log else curves.gap
            ax.plot(curves.service_times, values / 1000, label=short_name(policy), **look)
            if policy in near:
                ax.axhline(promised[policy] / 1000, color=look["color"], linewidth=1.0, linestyle=(0, (2, 2)))
        if near:
            highest = max(promised[policy] for policy in near) / 1000
            text = "promised" if len(near) > 1 else f"promised by {short_name(next(iter(near)))}"
            ax.annotate(text, (1.0, highest), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
        if log:
            ax.set_yscale("log")
            plain_ticks(ax.yaxis)
        else:
            ax.set_ylim(bottom=0)
        ax.set(xlabel="seconds since the start", ylabel="gap, 1,000 weighted tokens")

    caption = (
        "The largest difference in service, over weight, between two tenants since both began to wait continuously. "
        f"{'Not drawn' if log else 'Zero'} when fewer than two tenants wait.{seed}"
    )
    if near:
        caption += " A thin dashed line is the bound that a policy promises."
    if far:
        caption += f" Promised bounds far above the plot, in 1,000 weighted tokens: {', '.join(far)}."
    return Figure("gap", "Fairness gap", caption, panels(1, 2.6, paint, len(shown)))


def _cache(shown: list[RunReport], seed: str) -> Figure | None:
    if not any(r.curves.cache["hits"].sum() + r.curves.cache["misses"].sum() > 0 for r in shown):
        return None

    def paint(axes: list[Axes]) -> None:
        for place, report in enumerate(shown):
            cache, times = report.curves.cache, report.curves.cache_times
            look = line_look(place, len(times))
            width = float(times[1] - times[0])
            tries = cache["hits"] + cache["misses"]
            rate = np.where(tries > 0, cache["hits"] / np.maximum(tries, 1), np.nan)
            axes[0].plot(times + width / 2, rate * 100, label=short_name(report.info.policy), **look)
            axes[1].plot(times + width / 2, cache["loads"] / width, **look)
            axes[2].plot(times + width / 2, cache["evictions"] / width, **look)
        axes[0].set(ylabel="hits, %", ylim=(0, 103))
        axes[1].set_ylabel("loads/s")
        axes[2].set_ylabel("evictions/s")
        for ax in axes[1:]:
            ax.set_ylim(bottom=0)
        axes[2].set_xlabel("seconds since the start")

    caption = (
        "Share of admitted adapter requests whose adapter was on the GPU already, and how often adapters were loaded "
        f"and evicted.{seed}"
    )
    return Figure("cache", "Adapter cache", caption, panels(3, 1.45, paint, len(shown)))


def _attainment(reports: Sequence[RunReport]) -> Figure | None:
    policies = over_seeds([report.run for report in reports])
    rows = [(p["policy"], p["metrics"].get("slo.attainment"), p["metrics"].get("slo.met")) for p in policies]
    if not any(share for _, share, _ in rows):
        return None

    def paint(axes: list[Axes]) -> None:
        (ax,) = axes
        for place, (_, share, met) in enumerate(rows):
            if share is None:
                continue
            good = met is not None and met["mean"] == 1
            value = share["mean"] * 100
            colour, hatch = ("#009E73", "") if good else ("#f0f0f0", "////")
            low, high = (100 * (share[end] if share[end] is not None else share["mean"]) for end in ("low", "high"))
            spread = None if share["low"] is None else [[value - max(low, 0.0)], [min(high, 100.0) - value]]
            bars: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.6}
            ax.barh(place, value, xerr=spread, height=0.66, capsize=3, **bars)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            judged = "SLO not judged" if met is None else "SLO met" if good else "SLO missed"
            text = f"{percent(share['mean'])} within every limit; {judged}"
            ax.annotate(text, (0, place), xytext=(6, 0), va="center", fontsize=8.5, bbox=box, **_POINTS)
        ax.set_yticks(range(len(rows)), [short_name(policy) for policy, _, _ in rows])
        ax.invert_yaxis()
        ax.grid(False, axis="y")
        ax.set(xlabel="requests within every limit, %", xlim=(0, 105))

    caption = "Share of all requests that completed within every limit of the SLO; mean over seeds with 95 % interval."
    if len(reports) > len(rows):
        caption += " The SLO is met where every seed meets it."
    return Figure("slo", "SLO attainment per policy", caption, panels(1, 0.8 + 0.3 * len(rows), paint))
