"""Chaos: under bad clients and restless operators no request is lost, no output differs, and nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from chaos_driver import IDLE, Chaos, Report, Size
from chaos_operators import POLICIES

REQUESTS = int(os.environ.get("LORATORY_CHAOS_REQUESTS", "20000"))


def hold(report: Report, most_growth_bytes: int) -> None:
    """Everything that must be true of a run."""
    print(report.text())
    assert not report.faults, report.text()
    for before, after in report.holds:
        assert not any(after[key] for key in IDLE), after
        assert after["files"] <= before["files"] + 2, (before, after)
        assert after["threads"] <= before["threads"] + 4, (before, after)
        assert after["tasks"] <= before["tasks"] + 2, (before, after)
        assert after["resident_bytes"] <= before["resident_bytes"] + most_growth_bytes, (before, after)
    assert report.checked > report.requests // 4
    orders = report.orders
    assert orders["loads"] and orders["unloads"] and orders["swaps"], report.text()


def test_a_little_chaos(tmp_path: Path) -> None:
    size = Size(requests=300, questions=6, adapters=3, trials=0)
    report = Chaos(tmp_path, size).run()
    assert report.requests >= size.requests
    hold(report, 40_000_000)


@pytest.mark.slow
def test_much_chaos(tmp_path: Path) -> None:
    size = Size(requests=REQUESTS, lives=4, questions=40, adapters=6, contents=4)
    report = Chaos(tmp_path, size).run()
    assert report.requests >= size.requests
    hold(report, 40_000_000)
    assert report.orders["swaps by the operator's route"] >= size.lives
    assert {policy.partition(":")[0] for policy in POLICIES} == {*report.policies}, report.text()
    assert set(report.ends) >= {"completed", "aborted: gone", "aborted: shutting down"}, report.text()
