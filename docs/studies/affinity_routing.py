"""The figures of affinity-routing.md: each is one command, which writes a table (CSV) and a drawing (SVG).

python docs/studies/affinity_routing.py capacity        # or skew, slots, age, who
python docs/studies/affinity_routing.py all --jobs 2
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

from loratory import run_scenario
from loratory.scenarios.load import load_scenario

HERE = Path(__file__).parent
SCENARIO = HERE / "affinity-routing.yaml"
ROUTERS = {
    "round_robin": "round_robin",
    "least_loaded": "least_loaded",
    "lora_affinity": "lora_affinity",
    "lora_affinity, lora weight 4": "lora_affinity:lora=4",
    "multiplex": "multiplex",
    "residency_filter": "residency_filter",
    "rendezvous": "rendezvous",
}
LIMIT_S = 2.0
"""The TTFT p99 up to which a load counts as served."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One run: its settings over the scenario's, and the values of its row in the table."""

    settings: tuple[str, ...]
    values: tuple[tuple[str, Any], ...]


def measure(point: Point) -> Row:
    """Run a point over two seeds; latencies in seconds, means over both."""
    scenario = load_scenario(SCENARIO, overrides=[*point.settings, "seeds=[0, 1]"])
    runs = run_scenario(scenario, decisions=False)["runs"]
    return {**dict(point.values), **{key: sum(row[key] for row in map(reading, runs)) / len(runs) for key in READ}}


READ = ("ttft_p50_s", "ttft_p99_s", "loads_per_request", "hit_rate", "worst_s", "median_s", "hot_s", "cold_s", "uneven")


def reading(run: Row) -> Row:
    """What a run showed. ``worst_s`` and ``median_s``: TTFT p99 of the worst and the median adapter; ``hot_s`` and
    ``cold_s``: the mean of it over the tenth of the adapters that were asked for most, and over the rest."""
    asked = [row for row in run["per_adapter"] if row["requests"] >= 5 and row["ttft_p99_s"] is not None]
    marks = [row["ttft_p99_s"] for row in asked]
    hot = max(1, len(marks) // 10)
    return {
        "ttft_p50_s": run["ttft_s"]["p50"],
        "ttft_p99_s": run["ttft_s"]["p99"],
        "loads_per_request": run["adapters"]["loads"] / run["requests"]["measured"],
        "hit_rate": run["adapters"]["hit_rate"],
        "worst_s": max(marks),
        "median_s": median(marks),
        "hot_s": sum(marks[:hot]) / hot,
        "cold_s": sum(marks[hot:]) / max(1, len(marks) - hot),
        "uneven": run["engine"]["imbalance"],
    }


def largest_rate(adapters: int, router: tuple[str, str]) -> Row:
    """The largest rate at which TTFT p99 is at most `LIMIT_S`, to a request a second, by halves."""
    name, spec = router
    served, refused, last = 0, 80, None
    while refused - served > 1:
        rate = (served + refused) // 2
        settings = (f"cluster.router={spec}", f"adapters.count={adapters}", f"workload.arrivals={{poisson: {rate}}}")
        row = measure(Point(settings, (("router", name), ("adapters", adapters), ("rate", rate))))
        if row["ttft_p99_s"] <= LIMIT_S:
            served, last = rate, row
        else:
            refused = rate
    empty = {"router": name, "adapters": adapters, "rate": 0, **dict.fromkeys(READ)}
    return last or empty


def capacity(pool: ProcessPoolExecutor) -> None:
    """Requests a second that each router serves, over adapters for each slot."""
    asked = [(count, router) for count in (16, 32, 64, 128, 256) for router in ROUTERS.items()]
    rows = list(pool.map(largest_rate, *zip(*asked, strict=True)))
    write("capacity", rows)
    up = f"requests/s with TTFT p99 up to {LIMIT_S:g} s"
    draw("capacity", rows, Figure("adapters", (), "", "rate", "adapters (32 slots)", up, True))


@dataclass(frozen=True)
class Figure:
    """Every router at every value of one setting: ``column`` is its name in the table, ``y`` what is drawn over it."""

    column: str
    values: tuple[float, ...]
    setting: str
    y: str
    across: str
    up: str
    log: bool = False


FIGURES = {
    "skew": Figure(
        "zipf",
        (0.0, 0.5, 1.0, 1.5, 2.0),
        "adapters.popularity={{zipf: {}}}",
        "ttft_p99_s",
        "Zipf exponent",
        "TTFT p99, s",
    ),
    "slots": Figure(
        "adapters",
        (16, 32, 64, 128, 256),
        "adapters.count={}",
        "loads_per_request",
        "adapters (32 slots)",
        "adapter loads a request",
        True,
    ),
    "age": Figure(
        "delay_s",
        (0.0, 0.1, 0.5, 2.0, 5.0),
        "cluster.metrics_delay_s={}",
        "ttft_p99_s",
        "age of metrics, s",
        "TTFT p99, s",
    ),
    "who": Figure(
        "rate",
        (15, 25, 35, 45),
        "workload.arrivals={{poisson: {}}}",
        "cold_s",
        "requests/s",
        "mean TTFT p99 of the colder adapters, s",
    ),
}


def vary(name: str, pool: ProcessPoolExecutor) -> None:
    """One of `FIGURES`."""
    figure = FIGURES[name]
    points = [
        Point((f"cluster.router={spec}", figure.setting.format(value)), (("router", router), (figure.column, value)))
        for value in figure.values
        for router, spec in ROUTERS.items()
    ]
    rows = list(pool.map(measure, points))
    write(name, rows)
    draw(name, rows, figure)


def write(name: str, rows: Sequence[Row]) -> None:
    """The table of a figure."""
    with (HERE / f"affinity-routing-{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def draw(name: str, rows: Sequence[Row], figure: Figure) -> None:
    """A line for each router."""
    matplotlib.rcParams["svg.hashsalt"] = "loratory"
    drawing, axes = plt.subplots(figsize=(7.0, 4.0))
    for place, router in enumerate(ROUTERS):
        mine = [row for row in rows if row["router"] == router]
        across, up = [row[figure.column] for row in mine], [row[figure.y] for row in mine]
        axes.plot(across, up, marker="osD^vPX"[place], label=router)
    if figure.log:
        axes.set_xscale("log", base=2)
        ticks = sorted({row[figure.column] for row in rows})
        axes.set_xticks(ticks, ticks)
    axes.set_xlabel(figure.across)
    axes.set_ylabel(figure.up)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    drawing.tight_layout()
    drawing.savefig(HERE / f"affinity-routing-{name}.svg", metadata={"Date": None})
    plt.close(drawing)


def main() -> None:
    """Make the figures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure", choices=["capacity", *FIGURES, "all"])
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.jobs) as pool:
        for name in FIGURES if options.figure == "all" else [options.figure]:
            if name in FIGURES:
                vary(name, pool)
        if options.figure in ("capacity", "all"):
            capacity(pool)


if __name__ == "__main__":
    main()
