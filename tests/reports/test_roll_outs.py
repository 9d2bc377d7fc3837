"""Roll-outs in reports: by version, the loads they cost, TTFT before, during and after, and when the old one went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import Command, command_line

from loratory.experiment.run import run_scenario
from loratory.scenarios.load import load_text

BASE = """
name: rolled
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 4, max_cpu_loras: 16, max_num_seqs: 32}
adapters: {count: 8, ranks: 16, popularity: {zipf: 1.0}, initial_tier: remote}
workload:
  {arrivals: {poisson: 20}, input_tokens: {uniform: [50, 400]}, output_tokens: {uniform: [10, 80]}, duration_s: 12}
cluster:
  replicas: 2
  router: lora_affinity
  events: [{at_s: 4, roll_out: {adapters: 2, steps: [0.25, 1], every_s: 2}}, {at_s: 9, roll_out: [adapter-000]}]
"""


def _run(*overrides: str) -> dict[str, Any]:
    return run_scenario(load_text(BASE, "rolled.yaml", None, overrides), decisions=False)


def test_the_report_says_what_each_roll_out_did() -> None:
    found = _run()["runs"][0]
    rows, served = found["fleet"]["roll_outs"], {row["adapter"]: row for row in found["per_adapter"]}
    assert [(row["old"], row["new"]) for row in rows] == [
        ("adapter-000", "adapter-000@2"),
        ("adapter-001", "adapter-001@2"),
        ("adapter-000@2", "adapter-000@3"),
    ]
    for row in rows:
        assert row["requests_new"] == served[row["new"]]["requests"] > 0
        assert row["loads"] == served[row["new"]]["loads"] >= row["cold_loads"] >= 1
        assert row["began_s"] <= row["moved_s"] <= row["settled_s"] and row["old_ended_s"] <= row["settled_s"]
        assert row["freed_s"] >= row["moved_s"]
        assert row["ttft_p99_during_s"] is not None and row["misses"] >= 1
    assert rows[0]["shares"] == [{"at_s": 4.0, "share": 0.25}, {"at_s": 6.0, "share": 1.0}]
    assert 0 < rows[1]["requests_old"] < rows[1]["requests_during"]
    both = served["adapter-001"]["requests"] + served["adapter-001@2"]["requests"]
    assert sum(rows[1][f"requests_{phase}"] for phase in ("before", "during", "after")) == both
    identities = [(served[row["new"]]["lora_int_id"], served[row["new"]]["version"]) for row in rows]
    assert identities == [(9, 2), (10, 2), (11, 3)], "eight adapters have the ids 1 to 8, and none is used again"
    total = found["fleet"]["rolled"]
    assert total["requests_new"] == sum(row["requests_new"] for row in rows) and total["unfinished"] == 0


def test_copies_made_before_spare_cold_loads() -> None:
    roll_out = "cluster.events=[{at_s: 4, roll_out: {adapters: 3, preload: %s}}]"
    cold, warm = (_run(roll_out % each)["runs"][0]["fleet"]["rolled"] for each in ("false", "true"))
    assert cold["cold_loads"] >= 3 and warm["cold_loads"] == 0 < warm["loads"]
    assert warm["ttft_p99_during_s"] < cold["ttft_p99_during_s"]


def test_a_fleet_without_roll_outs_says_nothing_of_them() -> None:
    fleet = _run("cluster.events=[{at_s: 4, drain: 1}]")["runs"][0]["fleet"]
    assert "roll_outs" not in fleet and "rolled" not in fleet


def test_a_roll_out_that_the_run_does_not_see_to_its_end_is_told() -> None:
    found = _run("cluster.events=[{at_s: 11, roll_out: {adapters: 1, steps: [0.5, 1], every_s: 60}}]")["runs"][0]
    (row,) = found["fleet"]["roll_outs"]
    assert row["moved_s"] is row["freed_s"] is row["settled_s"] is row["ttft_p99_after_s"] is None
    assert found["fleet"]["rolled"]["unfinished"] == 1
    assert any("adapter-000@2 was at a share of 0.5 when the run was over" in text for text in found["warnings"])


def test_the_command_line_has_a_line_and_the_page_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rolled.yaml").write_text(BASE)
    loratory: Command = command_line(capsys, monkeypatch)
    told = loratory("run", "rolled.yaml", "--set", "seeds=[0, 1]", "--out", "out")
    (line,) = [line for line in told.out.splitlines() if line.startswith("roll-out: ")]
    assert "new versions of 2 adapters" in line and "before" in line and "the old versions were gone at" in line
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Roll-outs under fifo, means over 2 seeds" in page and "adapter-000@3" in page
