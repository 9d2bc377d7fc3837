"""A run that left its times, replayed: the same decisions in the same order, whatever the backend it came from."""

from __future__ import annotations

from typing import Any

import pytest
from roster import POLICIES

from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.events import Decided, Loaded, Stepped
from loratory.serving.run_recording import RecordedLoad, RecordedStep, Recording
from loratory.sim.cluster import simulate
from loratory.sim.recorded_times import replay
from loratory.testing import ToyCost, adapter, workload

ADAPTERS = tuple(adapter(name, rank) for name, rank in ((1, 8), (2, 16), (3, 8)))
ROWS: list[dict[str, Any]] = [
    {"at": 0.1 * i, "adapter": (1, 2, 3, 1, 2)[i % 5], "prompt": 5 + 7 * i % 23, "out": 1 + 5 * i % 9, "cap": 12}
    for i in range(40)
]


def _engine(policy: str, loading: str) -> dict[str, Any]:
    config = EngineConfig(
        max_loras=2, max_cpu_loras=3, max_num_seqs=4, max_num_batched_tokens=16, num_gpu_blocks=20, block_size=4,
        adapter_loading=loading,  # type: ignore[arg-type]
    )  # fmt: skip
    return {"config": config, "adapters": ADAPTERS, "cost": ToyCost(grid=True), "policy": POLICIES[policy]}


@pytest.mark.parametrize("policy", ["fifo", "affinity", "fair_share"])
@pytest.mark.parametrize("loading", ["sync", "async"])
def test_a_simulated_run_replayed_makes_the_same_decisions(policy: str, loading: str) -> None:
    parts = _engine(policy, loading)
    work, events = workload(ROWS, ADAPTERS), []
    simulate(work, **parts, sink=lambda index: events.append, jump=False)
    ends = {event.start: event.end for event in events if isinstance(event, Stepped)}
    asked = {event.now for event in events if isinstance(event, Decided)}
    recording = Recording(
        requests=[work.request(i) for i in range(len(work))],
        output_tokens={str(i): int(n) for i, n in enumerate(work.output_tokens)},
        steps=[RecordedStep(start, ends.get(start, start)) for start in sorted(asked | set(ends))],
        loads=[RecordedLoad(event.now, event.adapter) for event in events if isinstance(event, Loaded)]
        if loading == "async"
        else (),
    )
    again: list[Any] = []
    engine = Engine(parts["config"], ADAPTERS, parts["policy"](), parts["cost"], sink=again.append)
    played = replay(engine, recording)
    assert engine.unfinished == 0 and len(played) == len(recording.steps)
    assert _decisions(again) == _decisions(events)
    shapes = [event.shape for event in events if isinstance(event, Stepped)]
    assert [step.shape for step in played if step.shape.tokens] == [shape for shape in shapes if shape.tokens]
    assert sum(len(step.first) for step in played) == sum(len(step.last) for step in played) == len(ROWS)


def _decisions(events: list[Any]) -> list[tuple[Any, ...]]:
    """Time, action and outcome of each decision; a request by its id."""
    decided = [event for event in events if isinstance(event, Decided)]
    return [(e.now, type(e.action).__name__, _what(e.action), e.outcome) for e in decided]


def _what(action: Any) -> str:
    return str(action.request.request_id if hasattr(action, "request") else action.adapter)


def test_a_step_with_nothing_to_do_is_empty() -> None:
    parts = _engine("fifo", "sync")
    engine = Engine(parts["config"], ADAPTERS, parts["policy"](), parts["cost"])
    (step,) = replay(engine, Recording((), {}, [RecordedStep(1.0, 2.0)]))
    assert step.shape.tokens == 0 and not step.first and not step.last
