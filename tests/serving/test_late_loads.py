"""A prefetch that a load has overtaken may end after its adapter has gone."""

from __future__ import annotations

import pytest

from loratory.serving.actions import Load, Prefetch, Schedule
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.engine_view import View
from loratory.serving.plan import StepResult
from loratory.testing import ToyCost, adapter

CONFIG = EngineConfig(max_loras=2, max_cpu_loras=2, num_gpu_blocks=20, adapter_loading="async", async_scheduling=False)


class PrefetchThenLoad:
    """Brings an adapter to host memory, and then at once to the GPU."""

    def schedule(self, view: View) -> Schedule:
        """See `loratory.serving.policy.Policy`."""
        if "a1" in view.adapters and view.adapters["a1"].tier == "disk":
            yield Prefetch("a1")
            yield Load("a1")


@pytest.mark.parametrize("fails", [False, True])
def test_a_load_of_an_adapter_that_has_gone_means_nothing(fails: bool) -> None:
    engine = Engine(CONFIG, [adapter(1)], PrefetchThenLoad(), ToyCost())
    plan = engine.plan(0.0)
    assert plan is not None and [load.prefetch for load in plan.loads] == [True, False]
    engine.commit(plan, StepResult(), 0.1)
    engine.loaded("a1")
    answers: list[str] = []
    engine.adapters.remove("a1", answers.append)
    engine.plan(0.2)
    assert answers == [""] and not engine.ledger.adapters and not engine.ledger.slots.on_gpu
    if fails:
        engine.load_failed("a1", "no such file", True)
    else:
        engine.loaded("a1", True)
    assert engine.plan(0.3) is None and not engine.ledger.host_cache.held
