"""Adapters that go, and come back, while requests run and wait: no policy stumbles, and no service is forgotten."""

from __future__ import annotations

import pytest
from roster import POLICIES

from loratory.policies.fair_share import FairShare
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.plan import StepResult
from loratory.serving.request import Request
from loratory.testing import ToyCost, adapter

CONFIG = EngineConfig(max_loras=1, max_cpu_loras=2, num_gpu_blocks=40, async_scheduling=False)


def step(engine: Engine, now: float) -> float:
    plan = engine.plan(now)
    if plan is not None:
        engine.commit(plan, StepResult(), now + 0.01)
    return now + 0.01


@pytest.mark.parametrize("policy", POLICIES)
def test_an_adapter_goes_while_another_waits_for_its_slot(policy: str) -> None:
    engine = Engine(CONFIG, [adapter(1), adapter(2)], POLICIES[policy](), ToyCost())
    engine.submit(Request("runs", "a1", 0.0, 4, 400, tenant="t1"))
    now = step(engine, 0.0)
    engine.submit(Request("waits", "a2", now, 4, 3, tenant="t2"))
    for _ in range(20):
        now = step(engine, now)
    answers: list[str] = []
    engine.adapters.remove("a1", answers.append)
    engine.abort("runs")
    for _ in range(20):
        now = step(engine, now)
    assert answers == [""] and "a1" not in engine.ledger.adapters
    engine.submit(Request("follows", "a2", now, 4, 3, tenant="t2"))
    for _ in range(200):
        now = step(engine, now)
    assert engine.unfinished == 0


def test_an_adapter_that_comes_back_goes_on_with_its_counts() -> None:
    engine = Engine(CONFIG, [adapter(1)], FairShare(by="adapter"), ToyCost())
    now = 0.0
    for turn in range(3):
        engine.submit(Request(f"r{turn}", "a1", now, 4, 3))
        for _ in range(5):
            now = step(engine, now)
        assert engine.unfinished == 0
        view = engine.view.adapters["a1"]
        assert (view.admitted_tokens, view.output_tokens, view.uses) == (4 * turn + 4, 3 * turn + 3, turn + 1)
        engine.adapters.remove("a1", lambda _: None)
        now = step(engine, now)
        assert "a1" not in engine.view.adapters
        engine.add_adapter(adapter(1), now)
        assert view.tier == "disk" and engine.view.adapters["a1"].uses == turn + 1
