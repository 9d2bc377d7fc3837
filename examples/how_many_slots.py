"""How many GPU adapter slots does a workload need? The quickstart's, for several values of max_loras.

python examples/how_many_slots.py --slots 8 16 32 --duration-s 60
"""

from __future__ import annotations

import argparse

from loratory import load_scenario, run_scenario


def main() -> None:
    """Simulate each number of slots and print a row for each policy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--duration-s", type=float, default=60.0)
    given = parser.parse_args()
    print("max_loras  policy         TTFT p50, s TTFT p99, s hit rate within SLO")
    for slots in given.slots:
        settings = [f"engine.max_loras={slots}", f"workload.duration_s={given.duration_s}", "seeds=[0]"]
        summary = run_scenario(load_scenario("quickstart", settings, policies=["fifo", "affine_deficit"]))
        for run in summary["runs"]:
            ttft, hits, kept = run["ttft_s"], run["adapters"]["hit_rate"], run["slo"]["attainment"]
            print(f"{slots:9}  {run['policy']:<14} {ttft['p50']:11.3f} {ttft['p99']:11.3f} {hits:8.1%} {kept:10.1%}")


if __name__ == "__main__":
    main()
