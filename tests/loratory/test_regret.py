"""Regret: what users see of the clairvoyant, in the summary, the report, the terminal, and from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import Command

from loratory import run_scenario
from loratory.experiment.clairvoyant import CLAIRVOYANT
from loratory.plan.regret import METRICS, regret
from loratory.reports.regret import regret_notes, regret_sentences, regret_table
from loratory.scenarios.load import load_text
from loratory.scenarios.schema import Scenario

SMALL = """
name: small
model: llama-3.1-8b
gpu: a100-80gb
engine: {max_loras: 2, max_cpu_loras: 6, max_lora_rank: 16, max_num_seqs: 32, max_num_batched_tokens: 4096}
adapters: {count: 6, ranks: 16, initial_tier: host}
workload: {arrivals: {poisson: 4}, input_tokens: {uniform: [10, 300]}, output_tokens: {uniform: [5, 150]}, requests: 80}
policies: [fifo, rotation]
slo: {ttft_p99_s: 1.0}
seeds: [0, 1]
"""


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_text(SMALL)


@pytest.fixture(scope="module")
def result(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("regret") / "small"
    return run_scenario(scenario, folder, regret=True), folder


def test_it_is_marked_and_no_policy_among_others(result: tuple[dict[str, Any], Path]) -> None:
    summary, folder = result
    best = summary["regret"]["clairvoyant"]
    assert (best["policy"], best["oracle"], best["seeds"]) == (CLAIRVOYANT, True, [0, 1])
    assert [policy["policy"] for policy in summary["policies"]] == ["fifo", "rotation"]
    assert {run["policy"] for run in summary["runs"]} == {"fifo", "rotation"}
    assert not any(run["oracle"] for run in summary["runs"])
    assert json.loads((folder / "summary.json").read_text()) == summary
    page = (folder / "report.html").read_text()
    assert CLAIRVOYANT in page and "Distance from the possible" in page and "lower bound" in page


def test_ratios_are_those_of_the_means_and_are_not_clipped(result: tuple[dict[str, Any], Path]) -> None:
    summary, _ = result
    best = summary["regret"]["clairvoyant"]["metrics"]
    below = 0
    for policy, other in zip(summary["policies"], summary["regret"]["policies"], strict=True):
        assert other["policy"] == policy["policy"]
        for path, ratio in other["ratio"].items():
            assert ratio == pytest.approx(policy["metrics"][path]["mean"] / best[path]["mean"], rel=1e-6)
            below += ratio < 1
        for path, least in other["lower_bound"].items():
            assert least <= policy["metrics"][path]["mean"] * (1 + 1e-6)
    assert below  # hit rate and attainment of a policy that starves adapters


def test_what_a_policy_does_is_the_same_without_it(scenario: Scenario, result: tuple[dict[str, Any], Path]) -> None:
    runs = run_scenario(scenario)["runs"]
    assert runs == [{k: v for k, v in run.items() if k != "lower_bound"} for run in result[0]["runs"]]


def test_processes_give_the_same(scenario: Scenario, result: tuple[dict[str, Any], Path]) -> None:
    assert run_scenario(scenario, jobs=3, regret=True) == result[0]


def test_from_python(scenario: Scenario, result: tuple[dict[str, Any], Path]) -> None:
    (fifo,) = regret(scenario, ["fifo"], [0, 1])
    summary = result[0]
    assert fifo["policy"] == "fifo"
    for key in ("metrics", "clairvoyant", "lower_bound", "ratio"):
        assert set(fifo[key]) == set(METRICS)
    assert fifo["ratio"]["ttft_mean_s"] == summary["regret"]["policies"][0]["ratio"]["ttft_s.mean"]
    assert fifo["lower_bound"]["e2e_mean_s"] == summary["regret"]["lower_bound"]["e2e_s.mean"]
    assert fifo["metrics"]["loads"] == summary["policies"][0]["metrics"]["adapters.loads"]["mean"]


def test_noise_has_no_lower_bound() -> None:
    noisy = load_text(SMALL.replace("seeds: [0, 1]", "cost: {kind: roofline, noise: {cv: 0.3}}"))
    found = run_scenario(noisy, regret=True)
    assert found["regret"]["lower_bound"] == {}
    assert any("noise" in text for text in regret_notes(found["policies"], found["regret"]))


def test_means_over_other_requests_are_named() -> None:
    late = SMALL.replace("[fifo, rotation]", "[deadline]").replace("requests: 80", "requests: 80, deadline_s: 0.3")
    found = run_scenario(load_text(late), regret=True)
    assert any("deadline completed" in text for text in regret_notes(found["policies"], found["regret"]))


def test_table_and_sentences(result: tuple[dict[str, Any], Path]) -> None:
    summary = result[0]
    heads, rows = regret_table(summary["policies"], summary["regret"])
    assert [row[0] for row in rows] == [CLAIRVOYANT, "lower bound", "fifo", "rotation"]
    assert all(len(row) == len(heads) for row in rows)
    ratio = summary["regret"]["policies"][0]["ratio"]["ttft_s.mean"]
    assert regret_sentences(summary["regret"])[0].startswith(f"fifo: mean TTFT {ratio:.2f} and mean E2E ")


def test_command_line(loratory: Command, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    done = loratory("run", str(tmp_path / "small.yaml"), "--regret", "--out", str(tmp_path / "out"))
    assert done.code == 0
    assert "times the clairvoyant's" in done.out and "lower bound" in done.out
    refused = loratory("run", str(tmp_path / "small.yaml"), "--regret", "--on", "executor")
    assert refused.code == 2
    assert "--regret needs simulated runs" in refused.err
