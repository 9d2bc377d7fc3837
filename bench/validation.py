"""validation: simulate and run three scenarios, and write docs/validation.md: how far prediction is from measurement.

    python bench/validation.py --out results/validation          # simulate, run three times each, write the page

Profile the machine first (`loratory profile`), or name a profile with --profile. On a machine whose speed changes
within minutes, --calibrate FILE measures a new one in turns with the runs: some phases, a run, some phases and so on,
so that both meet the same machine; no step of a run enters it. The three scenarios are
scenarios/library/executor-{below,near,churn}.yaml: below the knee, near it, overload with adapters coming and going.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from loratory.experiment.calibrate import Plan, calibrate
from loratory.experiment.execute import execute_scenario
from loratory.experiment.run import run_scenario
from loratory.reports.agreement import Agreement, agreement
from loratory.scenarios.load import load_scenario
from loratory.scenarios.schema import Scenario
from loratory.serving.config import EngineConfig
from loratory.sim.catalogue import model as find_model
from loratory.sim.cost import load_profile

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
    parser.add_argument("--calibrate", type=Path, metavar="FILE", help="measure a profile in turns with the runs")
    given = parser.parse_args()
    if given.calibrate and (given.reuse or given.profile):
        parser.error("--calibrate measures a profile and runs: leave out --reuse and --profile")
    if given.calibrate and not given.calibrate.parent.is_dir():
        parser.error(f"{given.calibrate.parent} is no folder: name one with --calibrate")
    scenarios = {name: load_scenario(name, given.overrides) for name in given.scenarios}
    missing = [name for name in given.scenarios if not (given.out / name / "real-1").is_dir()]
    if given.reuse and missing:
        parser.error(f"{given.out} has no runs of {', '.join(missing)}: leave out --reuse, or name the folder in --out")
    loads: dict[str, list[float]] = {name: [] for name in given.scenarios}

    def real(scenario: str, repeat: int) -> None:
        execute_scenario(scenarios[scenario], given.out / scenario / f"real-{repeat}")
        loads[scenario].append(os.getloadavg()[0])
        print(f"{scenario} {repeat}", flush=True)

    # in turn, so that repeats of one are minutes apart, as the profile is
    runs = [] if given.reuse else [(name, n) for n in range(1, given.repeats + 1) for name in given.scenarios]
    if given.calibrate:
        calibrate_beside(scenarios[given.scenarios[0]], [partial(real, *run) for run in runs], given.calibrate)
        given.profile = str(given.calibrate)
    found: list[tuple[str, Agreement, float]] = []
    profile = ""
    overrides = list(given.overrides)
    if given.profile:
        overrides.append(f"cost={{kind: profile, profile: {given.profile}}}")
    for name in given.scenarios:
        scenario = load_scenario(name, overrides)
        profile = getattr(scenario.cost, "profile", "")
        shutil.rmtree(given.out / name / "sim", ignore_errors=True)
        run_scenario(scenario, given.out / name / "sim")
    for run in () if given.calibrate else runs:
        real(*run)
    for name in given.scenarios:
        folders = [given.out / name / f"real-{repeat}" for repeat in range(1, given.repeats + 1)]
        agreed = agreement(given.out / name / "sim", folders)
        found.append((name, agreed, max(loads[name], default=0.0)))
        print(name)
        heads, rows = agreed.table()
        for row in (heads, *rows):
            print("  ".join(f"{cell:>10}" for cell in row))
    write(given.page, profile, found)


def calibrate_beside(scenario: Scenario, runs: list[Callable[[], None]], out: Path) -> None:
    """A profile like `loratory profile`'s by default, written to ``out``; ``runs`` are spread over its phases.

    Model, dtype, device and threads are those of ``scenario``.
    """
    if scenario.executor.threads is not None:
        torch.set_num_threads(scenario.executor.threads)
    config = EngineConfig(max_loras=8, max_lora_rank=16, max_num_seqs=64, max_num_batched_tokens=2048)
    left = list(runs)

    def between(done: int, total: int) -> None:
        while left and done * len(runs) >= (len(runs) - len(left) + 0.5) * total:
            left.pop(0)()

    plan = Plan(config, (8, 16), 512, scenario.executor.dtype, scenario.executor.device)
    calibrate(find_model(scenario.model), None, plan, out.stem, between=between).save(out)


def write(page: Path, profile: str, found: list[tuple[str, Agreement, float]]) -> None:
    """The tables into the page, between the marks."""
    used = load_profile(profile)
    machine = used.machine
    text = [
        BEGIN,
        "",
        f"Machine: {machine.get('device_name')}, {machine.get('cores')} cores, {machine.get('threads')} threads, "
        f"torch {used.versions.get('torch')}, {machine.get('dtype')}.",
        f"Profile `{used.name}` of {used.created}: {used.samples} steps. Of its held-out steps, the median error is "
        f"{used.held_out.median:.1%} and the error of their sum {used.held_out.total:+.1%}. Repeats of one step differ "
        f"by {used.noise or 0:.1%} (median).",
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
