"""A backend from hell: an engine driven by hand through arrivals, aborts, early ends, loads that are late or fail."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from roster import POLICIES

from loratory.serving.plan import StepResult
from loratory.testing import CheckedEngine, World, worlds


def _drive(world: World, policy: str, seed: int) -> CheckedEngine:
    draw = random.Random(seed)
    work = world.workload
    events: list[Any] = []
    engine = CheckedEngine(
        world.config, world.adapters, POLICIES[policy](), world.cost, world.kv_bytes_per_token, events.append
    )
    todo = [work.request(i, 0.0) for i in range(len(work))]
    flying: list[tuple[str, bool]] = []
    now, rests = 0.0, 0
    sync = world.config.adapter_loading == "sync"
    while (todo or engine.unfinished) and rests < 300:
        for _ in range(draw.randrange(4)):
            if todo:
                engine.submit(todo.pop(0)._replace(arrival=now))
        if draw.random() < 0.1:
            engine.abort(str(draw.randrange(len(work))), "by chance")
        while flying and draw.random() < 0.5:
            name, prefetch = flying.pop(draw.randrange(len(flying)))
            if draw.random() < 0.2:
                engine.load_failed(name, "by chance", prefetch=prefetch)
            else:
                engine.loaded(name, prefetch)
        plan = engine.plan(now)
        now += draw.choice([0.0, 0.004, 0.05, 1.0])
        if plan is None:
            rests += 1
            continue
        rests = 0
        flying += [(load.adapter.name, load.prefetch) for load in plan.loads if load.prefetch or not sync]
        steps = draw.randint(1, plan.max_repeat + 1)
        tokens = [s.request_id for s in plan.decodes] + [p.sequence.request_id for p in plan.prefills if p.completes]
        finished = [request_id for request_id in tokens if draw.random() < 0.05]
        load_s = draw.choice([0.0, 0.3]) if sync and any(not load.prefetch for load in plan.loads) else 0.0
        engine.commit(plan, StepResult(steps, finished, load_s), now + load_s)
        now += load_s
    engine.end_all(now, "failed", "left over")
    return engine


@pytest.mark.parametrize("policy", POLICIES)
@examples(15)
@given(world=worlds(deadlines=False), seed=st.integers(0, 10**6))
def test_an_engine_survives_any_backend(policy: str, world: World, seed: int) -> None:
    engine = _drive(world, policy, seed)
    assert sorted(s.request_id for s in engine.ended_sequences) == sorted(map(str, range(len(world.workload))))
    assert engine.unfinished == 0 and not engine.ledger.running and not len(engine.ledger.waiting)
    for sequence in engine.ended_sequences:
        assert engine.sampled[sequence.request_id] == sequence.generated <= sequence.max_tokens
        if sequence.state == "completed":
            assert (sequence.why == "length") == (sequence.generated == sequence.max_tokens) or sequence.why == "stop"
