"""Mismatches: what a policy decides by and no request has, or requests have and no policy uses; slots without time."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from loratory.experiment.policy_spec import PolicyFactory
from loratory.scenarios.cost_spec import KernelsCostSpec, LinearCostSpec, RooflineCostSpec
from loratory.scenarios.schema import Scenario
from loratory.serving.policy import Decisive
from loratory.serving.workload import Workload
from loratory.sim.cost.engine_times import ENGINE_TIMES

_LACKS: dict[Decisive, str] = {
    "adapter": "no request has an adapter, and it decides by adapter: it serves in order of arrival",
    "tenant": "all requests are of one tenant, and it decides by tenant: there is nothing to share; set tenants.map",
    "priority": "all requests have the same priority: it serves in order of arrival; set tenants.priorities",
    "deadline": "no request has a deadline: it serves in order of arrival; set workload.deadline_s, or its slack_s",
    "predicted_tokens": "requests carry no predicted_tokens, which it decides by: set workload.predicted_tokens",
}

_UNREAD: dict[Decisive, str] = {
    "weight": "tenants have weights, and no policy of the scenario uses them: they change nothing",
    "priority": "requests have priorities, and no policy of the scenario uses them: they change nothing",
    "predicted_tokens": "requests carry predicted_tokens, and no policy of the scenario uses them: they change nothing",
}


def lacking(policy: PolicyFactory, workload: Workload) -> tuple[str, ...]:
    """One sentence for each thing that a policy decides by and the workload does not have."""
    there = _there(workload)
    wanted = policy.decides_by or ()
    return tuple(f"{policy.spec}: {_LACKS[what]}" for what in wanted if what in _LACKS and what not in there)


def unread(decided_by: Iterable[Collection[str] | None], workload: Workload) -> tuple[str, ...]:
    """One sentence for each thing that the workload has and none of the scenario's policies decides by.

    ``decided_by``: what each of them decides by; with None for one of them, which may use anything, no sentence.
    """
    wanted = list(decided_by)
    if any(names is None for names in wanted):
        return ()
    used = {what for names in wanted for what in names or ()}
    return tuple(text for what, text in _UNREAD.items() if what in _there(workload) - used)


def untimed(scenario: Scenario, adapters: int) -> tuple[str, ...]:
    """One sentence on how slots change a real step's time but not a simulated one's; none without adapters or slots.

    vLLM's LoRA kernels work on tensors padded to max_lora_rank, in a grid over all slots: pulls 22782 and 32005.
    """
    cost = scenario.cost
    if scenario.engine.memory != "slots" or not adapters:
        return ()
    if (
        isinstance(cost, RooflineCostSpec | KernelsCostSpec)
        and ENGINE_TIMES[cost.engine_times or scenario.engine.preset].slot_kernels
    ):
        return ()
    timed = isinstance(cost, LinearCostSpec) and cost.slot_token_s > 0
    keys = "engine.max_lora_rank" if timed else "engine.max_loras or engine.max_lora_rank"
    return (
        f"cost model {cost.kind} adds no time for {keys}: real LoRA kernels slow down as they grow; here they change "
        "memory and which adapters fit",
    )


def _there(workload: Workload) -> set[str]:
    """Those of `Decisive` in which the requests of a workload differ."""
    deadline, priority, weights = workload.deadline, workload.priority, workload.tenant_weights
    there = {
        "adapter": bool((workload.adapter >= 0).any()),
        "tenant": len(np.unique(workload.tenant)) > 1,
        "weight": len(set(weights)) > 1,
        "priority": priority is not None and len(np.unique(priority)) > 1,
        "deadline": deadline is not None and bool(np.isfinite(deadline).any()),
        "predicted_tokens": workload.predicted_tokens is not None,
    }
    return {what for what, is_there in there.items() if is_there}
