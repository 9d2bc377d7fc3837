"""summary.json: valid, stable, and with the intervals over seeds that numpy gives."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from loratory.reports import over_seeds, scalars, summary_of
from loratory.reports.stats import student_t
from loratory.reports.summary import to_json

RUN_KEYS = {
    "scenario", "policy", "backend", "seed", "requests", "duration_s", "throughput", "ttft_s", "tpot_s", "itl_s",
    "e2e_s", "queue_s", "adapters", "fairness", "engine", "slo", "per_adapter", "per_tenant",
}  # fmt: skip


def test_json_reads_back_and_is_the_same_bytes_each_time(report: Any) -> None:
    texts = [to_json(summary_of([report("fifo", s).run for s in range(2)])) for _ in range(2)]
    assert texts[0] == texts[1]
    read = json.loads(texts[0], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read == summary_of([report("fifo", s).run for s in range(2)])
    assert set(read["runs"][0]) >= RUN_KEYS
    for stats in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s"):
        assert list(read["runs"][0][stats]) == ["mean", "p50", "p90", "p95", "p99", "max"]


def test_policies_hold_mean_and_t_interval_over_seeds(report: Any) -> None:
    runs = [report(policy, seed).run for policy in ("a", "b") for seed in (0, 1, 2)]
    policies = over_seeds(runs)
    assert [p["policy"] for p in policies] == ["a", "b"] and policies[0]["seeds"] == [0, 1, 2]
    values = [run["ttft_s"]["p99"] for run in runs[:3]]
    half = student_t(2) * np.std(values, ddof=1) / np.sqrt(3)
    found = policies[0]["metrics"]["ttft_s.p99"]
    assert found["n"] == 3
    assert [found["low"], found["mean"], found["high"]] == pytest.approx(
        [np.mean(values) - half, np.mean(values), np.mean(values) + half], rel=1e-7
    )


def test_one_seed_has_no_interval(report: Any) -> None:
    found = over_seeds([report().run])[0]["metrics"]["e2e_s.mean"]
    assert found["low"] is None and found["high"] is None and found["n"] == 1


def test_scalars_are_numbers_by_dotted_name(report: Any) -> None:
    run = report().run
    found = scalars(run)
    assert found["ttft_s.p99"] == run["ttft_s"]["p99"] and found["slo.met"] == float(run["slo"]["met"])
    assert not any(name.startswith(("per_", "seed")) for name in found)
