"""Trace rows: small traces on disk, and the workloads of the trace cases."""

from __future__ import annotations

import json
from pathlib import Path

from loratory.scenarios.build import build_adapters, build_workload
from loratory.scenarios.load import load_scenario
from loratory.serving.workload import Workload

CASES = Path(__file__).resolve().parents[1] / "cases"


def built(case: str, *overrides: str, scenario: str = "scenario.yaml") -> Workload:
    loaded = load_scenario(str(CASES / case / scenario), list(overrides))
    return build_workload(loaded, 0, build_adapters(loaded, lambda rank: rank))


def counts(workload: Workload) -> dict[str, int]:
    return {name: int((workload.adapter == i).sum()) for i, name in enumerate(workload.adapters)}


def rows(folder: Path, times: list[float], name: str = "timestamp", **more: object) -> Path:
    path = folder / "t.jsonl"
    kinds = {"input_length": 100, "output_length": 10} | more
    path.write_text("".join(json.dumps({name: time, **kinds}) + "\n" for time in times))
    return path
