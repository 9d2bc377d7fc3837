"""cost.noise from a scenario to what a user sees: an interval over seeds, and the same workload as before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loratory.errors import InputError
from loratory.experiment.resolve import build
from loratory.experiment.run import run_scenario
from loratory.reports.seeds import seed_notes
from loratory.scenarios.build import build_workload
from loratory.scenarios.load import dump, load_text
from loratory.sim.cost import load_profile

ROOT = Path(__file__).resolve().parents[2]
TRACE = "time,input_tokens,output_tokens,adapter\n" + "".join(
    f"{0.05 * i:.2f},{100 + 37 * i % 300},{20 + i % 30},a{i % 4}\n" for i in range(60)
)
BASE = """
name: replayed
model: llama-3.1-8b
gpu: a100-80gb
engine: {max_loras: 4}
adapters: {count: 4}
workload: {trace: trace.csv}
seeds: [0, 1, 2, 3]
"""
NOTE = "seeds 0, 1, 2 and 3 gave the same run"


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    (tmp_path / "trace.csv").write_text(TRACE)
    (tmp_path / "replayed.yaml").write_text(BASE)
    return tmp_path


def _metric(summary: dict[str, Any], name: str) -> dict[str, float]:
    found: dict[str, float] = summary["policies"][0]["metrics"][name]
    return found


@pytest.mark.parametrize("noise", ["{cv: 0.2}", "{run_cv: 0.05}", "{stall_rate_hz: 1, stall_s: 0.1}"])
def test_one_trace_gives_an_interval_over_seeds(folder: Path, noise: str) -> None:
    silent = run_scenario(load_text(BASE, folder=folder))
    assert _metric(silent, "e2e_s.mean")["low"] == _metric(silent, "e2e_s.mean")["high"]
    assert seed_notes(silent["runs"])[0].startswith(NOTE) and "noise" not in silent["setup"]
    noisy = run_scenario(load_text(BASE, folder=folder, overrides=[f"cost.noise={noise}"]))
    for name in ("e2e_s.mean", "ttft_s.p99", "itl_s.p99", "tpot_s.p99"):
        assert _metric(noisy, name)["low"] < _metric(noisy, name)["high"]
    assert seed_notes(noisy["runs"]) == [] and noisy["setup"]["noise"]
    assert run_scenario(load_text(BASE, folder=folder, overrides=[f"cost.noise={noise}"])) == noisy
    shared = run_scenario(load_text(BASE, folder=folder, overrides=[f"cost.noise={noise}"]), jobs=2)
    assert shared == noisy


def test_stalls_are_seen_between_tokens(folder: Path) -> None:
    """A stall of 0.5 s is a gap of at least 0.5 s between two tokens, whatever the simulation could jump over."""
    plain, noisy = (
        run_scenario(load_text(BASE, folder=folder, overrides=["seeds=[0]", *more]))["runs"][0]
        for more in ([], ["cost.noise={stall_rate_hz: 1, stall_s: 0.5}"])
    )
    assert plain["itl_s"]["max"] < 0.2
    assert 0.5 < noisy["itl_s"]["max"] < 1.7


def test_noise_changes_no_workload(folder: Path) -> None:
    lengths = "input_tokens: {lognormal: {mean: 90, cv: 1}}, output_tokens: 9"
    drawn = BASE.replace("trace: trace.csv", f"arrivals: {{poisson: 9}}, {lengths}, requests: 50")
    for text in (BASE, drawn):
        scenarios = [load_text(text, folder=folder, overrides=more) for more in ([], ["cost.noise={cv: 0.2}"])]
        plain, noisy = (build_workload(s, 3, build(s).adapters) for s in scenarios)
        assert plain.arrival.tolist() == noisy.arrival.tolist()
        assert plain.prompt_tokens.tolist() == noisy.prompt_tokens.tolist()


@pytest.mark.parametrize(
    ("noise", "says"),
    [
        ("{cv: -0.1}", "cost.noise.cv should be at least 0, not -0.1"),
        ("{vc: 0.1}", "cost.noise.vc: unknown key; did you mean 'cv'?"),
        ("{}", "cost.noise has no effect: give cv, run_cv, stall_rate_hz with stall_s, or residuals, or remove it"),
        ("{stall_s: 0}", "cost.noise has no effect"),
        (
            "{stall_rate_hz: 1000, stall_s: 1.0e+9}",
            "cost.noise.stall_s is 1e+09, and times stall_rate_hz that makes steps 1e+12 times as long: lower",
        ),
        ("{stall_s: 0.3}", "cost.noise.stall_s needs stall_rate_hz above 0: add it, or remove stall_s"),
        ("{stall_rate_hz: 0.3}", "cost.noise.stall_rate_hz needs stall_s above 0"),
        ("{cv: 11}", "cost.noise.cv is 11, above 10, the largest expected"),
        ("0.05", "cost.noise should be a mapping such as {cv: 0.05}, or residuals, not 0.05"),
        ("residual", "cost.noise should be a mapping such as {cv: 0.05}, or residuals, not 'residual'"),
        ("residuals", "cost.noise.residuals needs cost.kind profile, whose file holds what was measured"),
    ],
)
def test_a_mistake_is_told_in_one_line(folder: Path, noise: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        load_text(BASE, folder=folder, overrides=[f"cost.noise={noise}"])
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_mistake_below_a_profile_is_told_with_its_key(folder: Path) -> None:
    """`cost.profile` is a key as well as the kind: it is not part of the path of the others."""
    for key, value in (("scale", "-1"), ("noise", "{residuals: true, cv: 0.1}"), ("sclae", "2")):
        with pytest.raises(InputError, match=rf"cost\.{key}"):
            load_text(BASE, folder=folder, overrides=[f"cost={{kind: profile, profile: p, {key}: {value}}}"])


def test_residuals_need_a_profile_that_holds_them(folder: Path) -> None:
    given = "cost={{kind: profile, profile: {}, noise: residuals}}"
    scenario = load_text(BASE, folder=folder, overrides=[given.format("loratory-cpu-56m")])
    with pytest.raises(InputError, match=r"cost\.noise\.residuals needs what was measured, and profile loratory-cpu"):
        build(scenario)
    assert load_profile("loratory-cpu-56m").residuals is None
    scenario = load_text(BASE, folder=folder, overrides=[given.format("vllm-0.32-cpu-56m"), "seeds=[0, 1]"])
    summary = run_scenario(scenario)
    assert summary["setup"]["noise"] == "step times scatter like the 4,558 residuals of the profile"
    assert load_text(dump(scenario)) == scenario


def _printed(folder: Path, *more: str) -> str:
    command = [sys.executable, "-m", "loratory", "run", "replayed.yaml", "--out", "out", *more]
    environment = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert max(map(len, done.stdout.splitlines())) <= 80
    return done.stdout


def test_a_terminal_of_80_columns_shows_cost_model_error_noise_and_intervals(folder: Path) -> None:
    said = _printed(folder, "--set", "cost.noise={cv: 0.2, run_cv: 0.05}")
    flat = " ".join(said.split())
    assert "cost model: roofline of llama-3.1-8b; known error: " in flat
    assert "; noise: step times with cv 0.2; the level of each run with cv 0.05" in flat
    assert said.count("±") > 8 and NOTE not in flat
    report = (folder / "out" / "report.html").read_text()
    assert "step times with cv 0.2" in report and "±" in report and "gave the same run" not in report
    silent = _printed(folder)
    assert NOTE in " ".join(silent.split()) and "noise:" not in silent
    assert "gave the same run" in (folder / "out" / "report.html").read_text()


def test_a_cv_of_0_is_no_noise(folder: Path) -> None:
    """So that a sweep over cv can begin with none."""
    silent = run_scenario(load_text(BASE, folder=folder))
    for noise in ("{cv: 0}", "{cv: 0.0, run_cv: 0}"):
        scenario = load_text(BASE, folder=folder, overrides=[f"cost.noise={noise}"])
        none = run_scenario(scenario)
        assert none["runs"] == silent["runs"] and none["policies"] == silent["policies"]
        assert "noise" not in none["setup"] and build(scenario).noise is None
        assert load_text(dump(scenario), folder=folder) == scenario


@pytest.mark.parametrize(
    "noise",
    [
        "{cv: 1.0e+300}",
        "{run_cv: 1.0e+200}",
        "{stall_rate_hz: 1.0e+308, stall_s: 1}",
        "{stall_rate_hz: 1000, stall_s: 1.0e+9}",
    ],
)
def test_noise_that_cannot_be_drawn_is_refused_even_without_limits(folder: Path, noise: str) -> None:
    with pytest.raises(InputError, match=r"cost\.noise\.\w+ (should be at most|is 1e\+09)"):
        load_text(BASE, folder=folder, overrides=[f"cost.noise={noise}"], unbounded=True)


@pytest.mark.parametrize("noise", ["{cv: 1.0e+6}", "{run_cv: 1.0e+6}", "{stall_rate_hz: 1.0e+9, stall_s: 1.0e-6}"])
def test_the_most_noise_that_is_drawn_gives_numbers(folder: Path, noise: str) -> None:
    changes = [f"cost.noise={noise}", "seeds=[0]", "workload={arrivals: {poisson: 5}, input_tokens: 50}"]
    changes += ["workload.output_tokens=5", "workload.requests=10"]
    (run,) = run_scenario(load_text(BASE, folder=folder, overrides=changes, unbounded=True))["runs"]
    assert run["requests"]["completed"] == 10 and 0 < run["e2e_s"]["mean"] < float("inf")
