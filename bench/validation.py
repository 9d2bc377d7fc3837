"""validation: simulate and run three scenarios, and write docs/validation.md: how far prediction is from measurement.

    python bench/validation.py --out results/validation          # simulate, run three times each, write the page

Profile the machine first (`loratory profile`), or name a profile with --profile. The three scenarios are
scenarios/library/executor-{below,near,churn}.yaml: below the knee, near it, overload with adapters coming and going.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from loratory.execute import execute_scenario
from loratory.run import run_scenario
from reports.agreement import Agreement, agreement
from scenarios.load import load_scenario
from sim.cost import load_profile

SCENARIOS = ("executor-below", "executor-near", "executor-churn")
PAGE = Path(__file__).parents[1] / "docs" / "validation.md"
BEGIN, END = "<!-- tables: made by bench/validation.py -->", "<!-- end of tables -->"


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/validation"))
    parser.add_argument("--profile", default=None, help="instead of the scenarios' own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--reuse", action="store_true", help="simulate anew, against the runs measured before in --out")
    given = parser.parse_args()
    overrides = list(given.overrides)
    if given.profile:
        overrides.append(f"cost={{kind: profile, profile: {given.profile}}}")
    found: list[tuple[str, Agreement, float]] = []
    profile = ""
    scenarios = {name: load_scenario(name, overrides) for name in given.scenarios}
    loads: dict[str, list[float]] = {name: [] for name in scenarios}
    missing = [name for name in scenarios if not (given.out / name / "real-1").is_dir()]
    if given.reuse and missing:
        parser.error(f"{given.out} has no runs of {', '.join(missing)}: leave out --reuse, or name the folder in --out")
    for name, scenario in scenarios.items():
        profile = getattr(scenario.cost, "profile", "")
        shutil.rmtree(given.out / name / "sim", ignore_errors=True)
        run_scenario(scenario, given.out / name / "sim")
    for repeat in range(1, 1 if given.reuse else given.repeats + 1):
        for name, scenario in scenarios.items():  # in turn, so that repeats of one are minutes apart, as the profile is
            execute_scenario(scenario, given.out / name / f"real-{repeat}")
            loads[name].append(os.getloadavg()[0])
    for name in scenarios:
        folders = [given.out / name / f"real-{repeat}" for repeat in range(1, given.repeats + 1)]
        agreed = agreement(given.out / name / "sim", folders)
        found.append((name, agreed, max(loads[name], default=0.0)))
        print(name)
        heads, rows = agreed.table()
        for row in (heads, *rows):
            print("  ".join(f"{cell:>10}" for cell in row))
    write(given.page, profile, found)


def write(page: Path, profile: str, found: list[tuple[str, Agreement, float]]) -> None:
    """The tables into the page, between the marks."""
    used = load_profile(profile)
    machine = used.machine
    text = [
        BEGIN,
        "",
        f"Machine: {machine.get('device_name')}, {machine.get('cores')} cores, {machine.get('threads')} threads, "
        f"torch {used.versions.get('torch')}, {machine.get('dtype')}.",
        f"Profile `{used.name}` of {used.created}: {used.samples} steps, held-out error of a step "
        f"{used.held_out.median:.1%} (median), of their sum {used.held_out.total:+.1%}; equal steps differ by "
        f"{used.noise or 0:.1%} (median).",
    ]
    for name, agreed, load in found:
        heads, rows = agreed.table()
        quiet = f"; load average up to {load:.1f}" if load else ""
        text += ["", f"## {name}", "", f"{len(agreed.measurements)} measured runs{quiet}.", ""]
        text += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        text += ["| " + " | ".join(row) + " |" for row in rows]
    text += ["", END]
    old = page.read_text(encoding="utf-8")
    before, after = old.split(BEGIN)[0], old.split(END)[1]
    page.write_text(before + "\n".join(text) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
