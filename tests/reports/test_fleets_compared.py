"""Fleets compared: what `loratory compare` says of replicas, routers, GPU hours, cost and the spread over replicas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import command_line

from loratory.experiment.run import run_scenario
from loratory.reports import compare
from loratory.scenarios.load import load_text

BASE = """
name: fleet
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 4, max_cpu_loras: 16, max_num_seqs: 32}
adapters: {count: 12, ranks: 16, popularity: {zipf: 1.0}}
workload:
  {arrivals: {poisson: 30}, input_tokens: {uniform: [50, 400]}, output_tokens: {uniform: [10, 80]}, duration_s: 5}
cluster: {router: lora_affinity, replicas: 3}
plan: {prices: {h100-80gb: 3.0, a100-80gb: 1.5}, currency: EUR}
"""


def _results(tmp_path: Path, *changes: str) -> tuple[list[Path], list[dict[str, Any]]]:
    folders = [tmp_path / str(place) for place in range(len(changes))]
    runs = []
    for folder, change in zip(folders, changes, strict=True):
        scenario = load_text(BASE, "fleet.yaml", None, [each for each in change.split("|") if each])
        summary = run_scenario(scenario, decisions=False)
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "scenario.yaml").write_text(yaml.safe_dump(scenario.model_dump(mode="json", exclude_none=True)))
        runs.append(summary["runs"][0])
    return folders, runs


MIXED = "cluster.replicas=[{count: 2}, {gpu: a100-80gb, tensor_parallel_size: 2, engine: {max_loras: 2}}]"
FAILING = "cluster.events=[{at_s: 2, fail: 0}]"


def test_fleets_stand_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, runs = _results(tmp_path, "", f"{MIXED}|cluster.router=rendezvous", FAILING, "cluster.replicas=1")
    ((policy, facts),) = compare(folders).fleets
    found = {fact.name: fact.values for fact in facts}
    assert policy == "fifo"
    assert found["replicas"] == (
        "3 of h100-80gb",
        "2 of h100-80gb; 1 of 2 x a100-80gb, max_loras 2",
        "3 of h100-80gb",
        "1 of h100-80gb",
    )
    assert found["router"] == ("lora_affinity", "rendezvous", "lora_affinity", "lora_affinity")
    for place, per_hour, gpus in ((0, 9.0, 3), (1, 9.0, 4), (3, 3.0, 1)):
        hours = runs[place]["duration_s"] / 3600
        assert float(found["cost"][place].removesuffix(" EUR")) == pytest.approx(per_hour * hours, rel=1e-2)
        assert float(found["GPU hours"][place]) == pytest.approx(gpus * hours, rel=1e-2)
    fleet = runs[2]["fleet"]
    assert float(found["GPU hours"][2]) == pytest.approx(fleet["gpu_hours"], rel=1e-2)
    assert float(found["cost"][2].removesuffix(" EUR")) == pytest.approx(fleet["cost"], rel=1e-2)
    requests = sorted(row["requests"] for row in runs[0]["per_replica"])
    assert found["requests of a replica"][0] == f"{requests[0]} to {requests[-1]}"
    assert found["requests of a replica"][3] == found["busiest replica / mean"][3] == "-"
    told = command_line(capsys, monkeypatch)("compare", *map(str, folders)).out
    assert "fifo: the fleets, means over seeds" in told and "2 x a100-80gb" in told


def test_lone_replicas_are_no_fleets(tmp_path: Path) -> None:
    folders, _ = _results(tmp_path, "cluster={}", "cluster={}|engine.max_loras=2")
    assert compare(folders).fleets == ()
    assert "fleets" not in compare(folders).as_dict()
