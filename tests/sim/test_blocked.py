"""Requests that wait for a slot cost the host time in each step, also those that arrive while a batch decodes."""

from __future__ import annotations

import pytest
from lab import run

from loratory.serving.config import EngineConfig
from loratory.sim.catalogue import gpu, model
from loratory.sim.cost import RooflineCost, RooflineOptions
from loratory.testing import World, adapter, workload


@pytest.mark.parametrize("preset", ["vllm-0.8.5", "vllm-0.32"])
def test_every_step_takes_what_its_shape_costs(preset: str) -> None:
    """One request decodes while five for another adapter arrive, which has no slot until it ends."""
    rows = [{"at": 0.0, "adapter": 1, "prompt": 8, "out": 60}]
    rows += [{"at": 0.05 * n, "adapter": 2, "prompt": 8, "out": 2} for n in range(1, 6)]
    engine = EngineConfig.model_validate({"as": preset, "max_loras": 1, "num_gpu_blocks": 500})
    cost = RooflineCost(
        model("llama-3.1-8b"), gpu("h100-80gb"), options=RooflineOptions(host_blocked_s=2e-3), engine=engine
    )
    world = World(workload(rows, adapters := tuple(adapter(n, tier="host") for n in (1, 2))), adapters, engine, cost)
    stepped = [event for event in run(world, "fifo", jump=False).events[0] if type(event).__name__ == "Stepped"]
    assert {event.shape.blocked_seqs for event in stepped} >= {0, 1, 2, 3, 4, 5}
    for event in stepped:
        seconds = event.end - event.start - event.load_s
        assert seconds == pytest.approx(event.steps * cost.step_seconds(event.shape), rel=1e-9)
    jumped = run(world, "fifo")
    assert {i: e.now for i, e in jumped.ended.items()} == {
        i: e.now for i, e in run(world, "fifo", jump=False).ended.items()
    }
