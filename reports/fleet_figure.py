"""Fleet figure: how many replicas there were over time, of fleets in which they come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loratory.reports.figures import Figure, line_look, panels, short_name
from loratory.reports.summary import RunReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def fleet_figures(reports: Sequence[RunReport]) -> list[Figure]:
    """The figure of each policy's first seed; none for fleets that stay as they are."""
    first: dict[str, RunReport] = {}
    for report in reports:
        first.setdefault(report.info.policy, report)
    shown = [report for report in first.values() if len(report.run.get("fleet", {}).get("over_time", ())) > 1]
    if not shown:
        return []
    seed = f" Seed {shown[0].info.seed}." if len(reports) > len(first) else ""

    def paint(axes: list[Axes]) -> None:
        from matplotlib.ticker import MaxNLocator

        for ax, (states, label) in zip(
            axes, ((("open",), "open"), (("starting", "draining"), "start or drain")), strict=True
        ):
            for place, report in enumerate(shown):
                rows = report.run["fleet"]["over_time"]
                times = [*(row["at_s"] for row in rows), report.run["duration_s"]]
                counts = [sum(row[state] for state in states) for row in rows]
                look = line_look(place, len(times))
                ax.plot(
                    times, [*counts, counts[-1]], drawstyle="steps-post", label=short_name(report.info.policy), **look
                )
            ax.set_ylabel(label)
            ax.set_ylim(bottom=0)
            ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes[-1].set_xlabel("seconds since the start")

    caption = f"Replicas that take requests, and those that start or end their last requests.{seed}"
    return [Figure("fleet", "Replicas over time", caption, panels(2, 1.45, paint, len(shown)))]
