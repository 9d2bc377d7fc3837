"""dry_run: an engine that has work, driven by a cost model until all of it is done, as fast as it can be computed."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from loratory.errors import StalledError
from loratory.serving.engine import Engine
from loratory.serving.plan import CostView, StepPlan, StepResult

STALL_PLANS = 1000
"""Plans in a row without a token after which the policy counts as stalling."""


def dry_run(engine: Engine, cost: CostView, most_plans: int, go_on: Callable[[], bool] = lambda: True) -> int:
    """Drive an engine until every request has ended, each output going to its ``max_tokens``; returns the plans made.

    It ends earlier after ``most_plans``, and when ``go_on()`` is false. Raises `PolicyError` when the policy fails, and
    `StalledError` when it leaves requests waiting that nothing will ever serve.
    """
    ledger = engine.ledger
    now = ledger.now
    flights: list[tuple[float, str, bool]] = []
    for state in ledger.adapters.values():
        if state.spec is not None and (state.tier == "loading" or state.prefetching):
            heappush(flights, (now + cost.load_seconds(state.spec, "host"), state.spec.name, state.prefetching))
    for plans in range(most_plans):
        while flights and flights[0][0] <= now:
            _, name, prefetch = heappop(flights)
            engine.loaded(name, prefetch)
        plan = engine.plan(now)
        if engine.idle_plans > STALL_PLANS:
            raise StalledError(f"it made {STALL_PLANS} plans without serving a token: {_left(engine)}")
        if plan is None:
            if not engine.unfinished or not go_on():
                return plans
            later = [*([flights[0][0]] if flights else ()), *(() if engine.wake_at is None else (engine.wake_at,))]
            if not later:
                raise StalledError(f"it serves nothing, and nothing can happen any more: {_left(engine)}")
            now = max(now, min(later))
            continue
        engine.expect_loads(plan, now)
        load_s = _start_loads(engine, plan, now, cost, flights)
        step_s = cost.step_seconds(plan.shape)
        steps = 1 + plan.max_repeat
        if flights and step_s > 0:
            steps = max(1, min(steps, int((flights[0][0] - now) / step_s) + 1))
        now += load_s + steps * step_s
        engine.commit(plan, StepResult(steps, (), load_s), now)
        if not go_on():
            return plans
    return most_plans


def _start_loads(
    engine: Engine, plan: StepPlan, now: float, cost: CostView, flights: list[tuple[float, str, bool]]
) -> float:
    """Seconds for which the step waits for loads; the others are in flight from now on."""
    waited = 0.0
    for load in plan.loads:
        seconds = load.seconds(cost)
        if load.prefetch or not engine.ledger.slots.sync:
            heappush(flights, (now + seconds, load.adapter.name, load.prefetch))
        else:
            waited += seconds
    return waited


def _left(engine: Engine) -> str:
    waiting, running = len(engine.view.waiting), len(engine.view.running)
    return f"{waiting} requests wait and {running} run"
