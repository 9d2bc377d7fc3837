"""plan_speed: CPU minutes of a plan over 200 candidates, 3 seeds and 20,000 requests each. See bench/README.md."""

from __future__ import annotations

import argparse
import cProfile
import pstats
import resource
import time
from typing import Any

import yaml

from loratory.plan.run import plan_scenario
from loratory.scenarios.load import load_text

AIM_MINUTES = 30.0
"""CPU minutes in which the whole plan is to be done."""

WHOLE = 200 * 3 * 20_000
"""Requests of the whole plan: candidates, seeds, requests of each."""

SPACE: dict[str, list[Any]] = {
    "engine.max_loras": [8, 16, 24, 32, 64],
    "engine.max_num_seqs": [64, 128, 192, 256],
    "engine.max_num_batched_tokens": [2048, 8192],
    "policy": ["fifo", "affinity", "affine_deficit", "rotation", "fair_share"],
}
"""200 combinations; for fewer, values are left out from the middle of the longest lists."""


def scenario(options: argparse.Namespace) -> dict[str, Any]:
    """bench/whole_process.yaml's traffic for each replica, with an SLO and a plan."""
    space = {key: list(values) for key, values in SPACE.items()}
    while count(space) > options.candidates:
        longest = max(space.values(), key=len)
        if len(longest) == 1:
            break
        del longest[len(longest) // 2]
    fleet = options.ask == "fleet"
    plan: dict[str, Any] = {
        "ask": options.ask,
        "space": space,
        "seeds": {"first": options.seeds, "most": options.seeds},
        "details": options.details,
    }
    if fleet:
        plan["replicas"] = {"least": 1, "most": options.replicas}
    else:
        plan["goal"] = "ttft_p99_s"
    return {
        "name": "plan-speed",
        "model": "llama-3.1-8b",
        "gpu": "a100-80gb",
        "engine": {"max_loras": 32, "max_cpu_loras": 64, "max_lora_rank": 16},
        "adapters": {"count": 64, "ranks": [8, 16], "popularity": {"zipf": 1.0}, "initial_tier": "host"},
        "workload": {
            "arrivals": {"poisson": options.rate * options.replicas},
            "input_tokens": {"lognormal": {"mean": 1155, "cv": 0.96, "max": 14000}},
            "output_tokens": {"lognormal": {"mean": 211, "cv": 0.8, "max": 1000}},
            "requests": options.requests,
        },
        "cluster": {"replicas": 1 if fleet else options.replicas},
        "policies": ["fifo"],
        "slo": {"ttft_p99_s": 2.0, "tpot_p99_s": 0.1},
        "plan": plan,
    }


def count(space: dict[str, list[Any]]) -> int:
    """Combinations of a space."""
    size = 1
    for values in space.values():
        size *= len(values)
    return size


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ask", choices=("settings", "fleet"), default="settings")
    parser.add_argument("--candidates", type=int, default=200, help="most combinations of settings")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=4, help="of every candidate, or the most of a fleet")
    parser.add_argument("--rate", type=float, default=5.0, help="Poisson arrivals a second for each replica")
    parser.add_argument("--details", action="store_true", help="also what a plan shows around its best candidate")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--profile", type=int, metavar="ROWS", help="print the functions that take most of the time")
    return parser.parse_args()


def main() -> None:
    """Plan, and print what it took."""
    options = arguments()
    made = load_text(yaml.safe_dump(scenario(options), sort_keys=False), "plan_speed")
    combinations = count(made.plan.space or {})
    profile = cProfile.Profile() if options.profile else None
    start, wall = cpu_seconds(), time.perf_counter()
    found = (
        profile.runcall(plan_scenario, made, jobs=options.jobs) if profile else plan_scenario(made, jobs=options.jobs)
    )
    cpu_s, wall_s = cpu_seconds() - start, time.perf_counter() - wall
    asked = combinations * options.seeds * options.requests
    print(found["answer"])
    print(
        f"{combinations} combinations x {options.seeds} seeds x {options.requests:,} requests: {found['runs']} runs, "
        f"{found['requests_simulated']:,} requests simulated, {cpu_s / 60:.1f} CPU minutes "
        f"({cpu_s - found['cpu_s']:.1f} s of them outside the runs), {wall_s / 60:.1f} minutes"
    )
    print(
        f"{found['requests_simulated'] / cpu_s:,.0f} simulated requests a CPU second, {asked / cpu_s:,.0f} asked for: "
        f"the whole plan takes {WHOLE / (asked / cpu_s) / 60:.1f} CPU minutes (aim {AIM_MINUTES:.0f})"
    )
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(options.profile)


def cpu_seconds() -> float:
    """CPU seconds of this process and of its ended children."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in spent)


if __name__ == "__main__":
    main()
