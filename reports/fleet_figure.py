"""Fleet figure: how many replicas there were over time, of fleets in which they come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loratory.reports.number_text import listed
from loratory.reports.panels import Figure, line_look, panels, short_name
from loratory.reports.summary import RunReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = ((("open",), "open"), (("starting", "draining"), "start or drain"), (("failed",), "failed"))
"""States of replicas, and the label of their panel; the last one is drawn only where a replica failed."""

_MARKS: Mapping[str, Mapping[str, Any]] = {
    "replica fails": {"color": "#D55E00", "linestyle": "-"},
    "replica recovers": {"color": "#009E73", "linestyle": (0, (5, 2))},
    "roll-out begins": {"color": "#000000", "linestyle": (0, (1, 2))},
}


def fleet_figures(reports: Sequence[RunReport]) -> list[Figure]:
    """The figure of each policy's first seed; none for fleets that stay as they are."""
    first: dict[str, RunReport] = {}
    for report in reports:
        first.setdefault(report.info.policy, report)
    shown = [report for report in first.values() if _changes(report)]
    if not shown:
        return []
    seed = f" Seed {shown[0].info.seed}." if len(reports) > len(first) else ""
    failed = any(row["failed"] for report in shown for row in report.run["fleet"]["over_time"])
    states = _PANELS if failed else _PANELS[:-1]
    marks = marks_of(shown[0])

    def paint(axes: list[Axes]) -> None:
        from matplotlib.ticker import MaxNLocator

        for ax, (which, label) in zip(axes, states, strict=True):
            for place, report in enumerate(shown):
                rows = report.run["fleet"]["over_time"]
                times = [*(row["at_s"] for row in rows), report.run["duration_s"]]
                counts = [sum(row[state] for state in which) for row in rows]
                look = line_look(place, len(times))
                ax.plot(
                    times, [*counts, counts[-1]], drawstyle="steps-post", label=short_name(report.info.policy), **look
                )
            for kind, moments in marks.items():
                for place, moment in enumerate(moments):
                    look = {**_MARKS[kind], **({"label": kind} if place == 0 else {})}
                    ax.axvline(moment, linewidth=1.0, **look)
            ax.set_ylabel(label)
            ax.set_ylim(bottom=0, top=max(1.0, ax.get_ylim()[1]))
            ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes[-1].set_xlabel("seconds since the start")

    caption = "Replicas that take requests, and those that start or end their last requests"
    caption += f"{'; and those that have failed' if failed else ''}.{seed}"
    if marks:
        whose = f" (under {shown[0].info.policy})" if len(shown) > 1 else ""
        caption += f" Vertical lines{whose}: {listed(list(marks))}."
    return [Figure("fleet", "Replicas over time", caption, panels(len(states), 1.45, paint, len(shown) + len(marks)))]


def marks_of(report: RunReport) -> dict[str, list[float]]:
    """The seconds at which a replica fails or recovers, or a roll-out begins; kinds without any are left out."""
    fleet, start_s = report.info.fleet, report.info.start_s
    if fleet is None:
        return {}
    found: dict[str, list[float]] = {kind: [] for kind in _MARKS}
    before: dict[int, str] = {}
    for at_s, replica, state in fleet.changes:
        if state == "failed":
            found["replica fails"].append(at_s - start_s)
        elif before.get(replica) == "failed":
            found["replica recovers"].append(at_s - start_s)
        before[replica] = state
    found["roll-out begins"] = [each.began_s - start_s for each in fleet.roll_outs if each.began_s is not None]
    return {kind: list(dict.fromkeys(moments)) for kind, moments in found.items() if moments}


def _changes(report: RunReport) -> bool:
    """Whether there is more to draw than replicas that stay."""
    return len(report.run.get("fleet", {}).get("over_time", ())) > 1
